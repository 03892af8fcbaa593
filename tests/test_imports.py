"""Imports run one way (DESIGN.md), and `import sagkit` loads torch and jaxtyping alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sagkit

HOUSE = Path(sagkit.__file__).parent
MODULES = {".".join(p.relative_to(HOUSE).with_suffix("").parts): p for p in sorted(HOUSE.rglob("*.py"))}

# What each module may import of sagkit. A module that is not named imports nothing of it.
MAY_IMPORT = {
    "__init__": {"loss", "pairing"},
    "subsets": {"hierarchy"},
    "data": {"shapes", "decode", "imageset", "subsets"},
    "walk": {"graph"},
    "loss": {"walk"},  # the type Pairs
    "spectral": {"loss"},
    "pairing": {"graph", "walk"},
    "controls": {"graph", "pairing", "walk"},
    "methods": {"controls", "loss", "pairing", "timing", "walk"},  # walk: the type Pairs
    "distill": {"loss", "methods", "model"},
    "examples": {"__init__", "augment", "data"},
    "record": {"checkpoint", "model"},
    "retrieve": {"checkpoint", "graph", "model"},
    "anomaly": {"graph", "retrieve"},
    "evaluate": {"augment", "data", "hierarchy", "metrics", "model", "retrieve", "subsets", "vectors"},
    "speed": {"markdown"},
    "zoo": {"model", "record"},
    "validity": {"augment", "data", "evaluate", "markdown", "metrics", "record", "zoo"},
    "assessment": {"markdown", "metrics", "plots"},
    "sources": {"checkpoint", "model", "record"},
    "floors": {"data", "metrics"},
    "assess": {"assessment", "data", "evaluate", "floors", "metrics", "model", "plots", "record", "sources"},
    "views": {"graph", "hierarchy", "loss", "plots", "purity", "walk"},
    "gallery": {"plots", "retrieve"},
    "widgets": {"gallery", "graph", "views"},
    "figures": {"augment", "data", "graph", "hierarchy", "markdown", "plots", "record", "views", "walk"},
    "purity": {"augment", "data", "graph", "hierarchy", "markdown", "model", "record", "walk"},
    "line": {"anomaly", "data", "hierarchy", "markdown", "model", "record", "retrieve"},
    "report": {"assessment", "line", "checkpoint", "config", "cost", "data", "evaluate", "markdown", "purity", "record"}
    | {"sharpen", "speed", "train", "validity", "versus"},
    "vectors": {"imageset"},
    "waves": {"vectors"},
    "model": {"dense"},
    "published": {"model"},
    "build": {
        "augment",
        "config",
        "controls",
        "dense",
        "distill",
        "imageset",
        "methods",
        "model",
        "pairing",
        "vectors",
    },
    "trainer": {"build", "checkpoint", "config", "data", "hierarchy"}
    | {"methods", "model", "optim", "record", "subsets", "vectors"},
    "resume": {"checkpoint", "config", "trainer"},
    "doctor": {"build", "checkpoint", "config", "metrics", "trainer", "vectors", "walk"},
    "pilotpage": {"data", "doctor", "page", "retrieve", "timing"},
    "budget": {"build", "checkpoint", "config", "data", "record", "train", "trainer"},
    "pilot": {"anomaly", "budget", "checkpoint", "data", "doctor", "evaluate", "model", "photos", "pilotpage"}
    | {"record", "retrieve", "timing"},
    "search": {"build", "config", "data", "evaluate", "graph", "train"},
    "tune": {"config", "record", "regret", "search"},
    "train": {"build", "config", "data", "doctor", "evaluate", "model", "record", "resume", "subsets", "timing"}
    | {"trainer", "vectors"},
    "versus": {"data", "evaluate", "imageset", "markdown", "metrics", "model", "record"},
    "sharpen": {"data", "imageset", "markdown", "metrics", "model", "record", "versus"},
    "ledger": {"config", "data", "imageset", "train"},
    "entry": {"checkpoint", "config", "record", "resume", "train"},
    "confirm": {"config", "data", "markdown", "record", "search", "train", "tune"},
}


def imports_of(path: Path) -> set[str]:
    """Names of the sagkit modules a file imports, anywhere in it; relative imports are spelled out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["sagkit", *path.relative_to(HOUSE).parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # What sagkit exports ("from sagkit import WalkPairing") is its __init__'s.
            members = {f"{module}.{alias.name}" for alias in node.names}
            known = {f"sagkit.{name.removesuffix('.__init__')}" for name in MODULES}
            inner = {m if m in known else f"{module}.__init__" for m in members}
            found |= inner if module in ("sagkit", "sagkit.metrics") else {module}
    return {name.removeprefix("sagkit.") for name in found if name == "sagkit" or name.startswith("sagkit.")}


def part(name: str) -> str:
    """The member of the house a module belongs to: metrics is one."""
    return name.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_house_allows(module):
    allowed = MAY_IMPORT.get(part(module), set()) | ({part(module)} if "." in module else set())
    assert {part(name) for name in imports_of(MODULES[module])} <= {part(name) for name in allowed}


def test_the_rules_name_modules_that_exist_and_leave_no_circle():
    known = {part(name) for name in MODULES}
    assert MAY_IMPORT.keys() <= known
    open_, order = {name: {part(x) for x in MAY_IMPORT.get(name, ())} - {name} for name in known}, []
    while ready := [name for name, needs in open_.items() if needs <= set(order)]:
        order += ready
        open_ = {name: needs for name, needs in open_.items() if name not in ready}
    assert not open_, f"circular: {open_}"


def test_only_what_makes_a_trainer_reads_configuration():
    readers = {part(name) for name, path in MODULES.items() if "config" in imports_of(path)}
    training = {"build", "ledger", "resume", "search", "train", "trainer", "tune"}
    assert readers == training | {"budget", "confirm", "doctor", "entry", "report"}


def loaded_by(code: str) -> set[str]:
    """Third-party packages in a fresh interpreter after running `code`."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) - set(sys.stdlib_module_names)


def test_importing_and_using_the_drop_in_module_loads_nothing_beyond_torch_and_jaxtyping():
    drop_in = "import sagkit; h = torch.randn(16, 4); sagkit.WalkPairing(k=3)(h, h)"
    # torch brings packages of its own (numpy, tqdm); the difference is what sagkit adds, at import or later.
    added = loaded_by(f"import torch, jaxtyping; {drop_in}") - loaded_by("import torch, jaxtyping")
    assert added == {"sagkit"}
