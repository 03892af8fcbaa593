"""The command `sagkit`: everything the kit does from a shell, each with its own --help.

    sagkit train --method sag-vicreg --data shapes
    sagkit study versus --help

A command is a module's `main`: its signature is the flags, its docstring the help, and lines of the module's docstring
that begin with `sagkit` are the examples. All three are read from the source file, so that a help or a mistyped flag is
answered at once, without torch; the module is imported when the work begins. `train` alone has the fields of `Config`
as flags. A command line that is wrong ends with exit code 2 and work that fails with 1, each told in one line.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import io
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import sagkit


class Command(NamedTuple):
    """The function behind a command, and the extra of pyproject.toml that brings what its module imports."""

    module: str
    extra: str
    function: str = "main"


COMMANDS = {
    "train": Command("sagkit.train.trainer", "train", "fit"),
    "report": Command("sagkit.studies.tables", "pilot"),
    "pilot": Command("sagkit.pilot.run", "pilot"),
    "explore": Command("sagkit.show.serve", "notebooks"),
    "assess": Command("sagkit.pilot.assess", "pilot"),
    "doctor": Command("sagkit.train.doctor", "train"),
}


def main(words: list[str] | None = None) -> None:
    """Run one command line; that of this process where none is given."""
    prog, table, words = "sagkit", COMMANDS, list(sys.argv[1:] if words is None else words)
    if words == ["--version"]:
        print(sagkit.__version__)
        return
    if words[:1] == ["study"]:
        prog, table, words = "sagkit study", studies(), words[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview(prog, table))
        return
    name, *words = words
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1) or table
        refuse(prog, f"unknown command {name!r}: did you mean {', '.join(near)}?")
    prog, command = f"{prog} {name}", table[name]
    if threading.current_thread() is threading.main_thread():  # what a batch system sends ends as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        (train if name == "train" else call)(command, prog, words)
    except ModuleNotFoundError as error:
        if (error.name or "sagkit").partition(".")[0] == "sagkit":  # a fault of ours, not a missing package
            raise
        raise SystemExit(f"{prog}: {sagkit.remedy(error, command.extra)}") from None
    except argparse.ArgumentTypeError as error:  # what a signature cannot say, as that one of two flags is needed
        refuse(prog, str(error))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{prog}: {error}") from None
    except KeyboardInterrupt as stop:  # Ctrl-C, or SIGTERM
        print(f"\n{prog}: interrupted{f', {stop}' if str(stop) else ''}", file=sys.stderr)
        raise SystemExit(130) from None


def studies() -> dict[str, Command]:
    """The modules of the wing `studies` that have a `main` and no command of their own, by name."""
    own, found = {command.module for command in COMMANDS.values()}, {}
    for path in sorted((Path(__file__).parent / "studies").glob("*.py")):
        command = Command(f"sagkit.studies.{path.stem}", "notebooks")
        if command.module not in own and Source(command).function:
            found[path.stem.replace("_", "-")] = command
    return found


def overview(prog: str, table: dict[str, Command]) -> str:
    """Every command of a table with the first line of its help."""
    lines = {name: Source(command).summary for name, command in table.items()}
    if table is COMMANDS:
        lines["study"] = "What this repository's own results are made with; `sagkit study` lists the names."
    width, example = max(map(len, lines)), next(iter(table))
    listed = "\n".join(f"  {name.ljust(width)}  {line}" for name, line in lines.items())
    return f"usage: {prog} NAME [--help | ...]\n\n{listed}\n\nexample:\n  {prog} {example} --help"


def train(command: Command, prog: str, words: list[str]) -> None:
    """Train by the fields of `Config`, and print where the record is and what it says."""
    from sagkit.train.config import parse

    config = parsed(prog, lambda: parse(words))
    run = function_of(command)(config)
    if run.record:  # of several processes, the first has it
        print(f"record: {run.path}; a table of such records: sagkit report --results {config.results}")
        for name, value in run.record["metrics"].items():
            print(f"  {name:28s} {value:.4f}")


def call(command: Command, prog: str, words: list[str]) -> None:
    """Call a command's function with what the words say."""
    import tyro

    source = Source(command)
    about = "\n  ".join([f"{source.summary}\n\nexamples:", *source.examples])
    given = parsed(prog, lambda: tyro.cli(source.signature(), prog=prog, args=words, description=about))
    function = function_of(command)
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(given)
    function(*bound.args, **bound.kwargs)


def function_of(command: Command) -> Callable:
    """The function itself; imports its module."""
    return getattr(import_module(command.module), command.function)


def parsed(prog: str, parse: Callable[[], Any]) -> Any:
    """What a parser makes of a command line; a complaint of the parser is told in one line."""
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return parse()
    except SystemExit as end:
        if end.code:
            refuse(prog, in_one_line(told.getvalue()).replace(f"Missing from {prog}: ", "missing "))
        raise  # a help, which is printed
    except ValueError as error:
        refuse(prog, str(error))


def in_one_line(box: str) -> str:
    """The first paragraphs of tyro's box, without frame, title and the help of the flag."""
    body = box.strip().partition("\n")[2]
    words = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", body).split()
    return re.split(r" (?:Got errors|Argument helptext|For full helptext)", " ".join(words))[0]


def refuse(prog: str, message: str) -> NoReturn:
    """End over a wrong command line."""
    print(f"{prog}: {message} (see {prog} --help)", file=sys.stderr)
    raise SystemExit(2)


class Source:
    """What the file of a command's module says, read without importing it."""

    def __init__(self, command: Command):
        self.path = Path(__file__).parents[1].joinpath(*command.module.split(".")).with_suffix(".py")
        self.tree = ast.parse(self.path.read_text(encoding="utf-8"))
        named = (node for node in self.tree.body if isinstance(node, ast.FunctionDef) and node.name == command.function)
        self.function = next(named, None)

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return ast.get_docstring(self.function).partition("\n")[0]

    @property
    def examples(self) -> list[str]:
        """Command lines in the module's docstring."""
        return re.findall(r"^ *(sagkit .*)$", ast.get_docstring(self.tree) or "", re.MULTILINE)

    def signature(self) -> Callable[..., dict[str, Any]]:
        """The function with its annotations, defaults and docstring, which only returns its arguments.

        Annotations may use builtins, Path and Literal; defaults literals, Path, and the module's literal constants.
        """
        names: dict[str, Any] = {"Path": Path, "Literal": Literal}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                with suppress(ValueError):
                    names[node.targets[0].id] = ast.literal_eval(node.value)
        self.function.body = [self.function.body[0], *ast.parse("return locals()").body]
        exec(compile(ast.Module([self.function], []), self.path, "exec"), names)
        return names[self.function.name]


if __name__ == "__main__":
    main()
