"""README.md, figures/RESULTS.md and figures/BENCHMARKS.md from the committed records, figures of the prose included.

    sagkit study results        write the three pages

The pages are jinja2 templates beside this file. A measured figure in them is never typed but asked for, as
`{{ diff("gpu-minute", "sag-vicreg", "spearman_pairs") }}`, which is answered from the records by the method of that
name of `Figures`. `on` is a profile, with `/training set` where that is not CIFAR-100. [K]
"""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sagkit.data.files import write_text
from sagkit.metrics.stats import Summary
from sagkit.pilot import assess
from sagkit.show.tables import origin, to_markdown
from sagkit.studies import coverage, kinds_validity, line, purity, sharpen, validity, versus
from sagkit.studies.benchmarks import bench_table, read_bench
from sagkit.studies.branches import branch_tables
from sagkit.studies.tables import PERCENT, paired_table, tables_of
from sagkit.studies.transfer import MEASURES, figures_by_seed, over_baseline, transfer_table
from sagkit.train.record import core_seconds, groups, pairs_by_seed, read_records, rows_of

PAGES = ("figures/RESULTS.md", "figures/BENCHMARKS.md", "README.md")
STUDIES = {
    "assess": assess,
    "coverage": coverage,
    "kinds-validity": kinds_validity,
    "line": line,
    "purity": purity,
    "sharpen": sharpen,
    "validity": validity,
    "versus": versus,
}
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
GOALS = {"gain": 15, "walk_share": 5, "knn": 35, "validity": 0.95}  # set beforehand: per cent, the last a correlation


class Figures:
    """What the templates may ask for. Every public method answers in text, from the records alone.

    Args:
        results: folder of run records and of the records of studies and benchmarks.
    """

    def __init__(self, results: str | Path = "figures/results"):
        self.results = Path(results)
        self._records = groups(read_records(results))
        self._studies = {
            str(path.relative_to(results).with_suffix("")): json.loads(path.read_text())
            for path in sorted([*Path(results).glob("*.json"), *Path(results).glob("*/*.json")])
        }
        # What is asked for more than once: settings of a row are compared, and some studies resample.
        self._rows = cache(lambda on: rows_of(self._records.get(_place(on), [])))
        self._paired = cache(lambda on, baseline: pairs_by_seed(self._records[_place(on)], baseline))
        self._shown = cache(lambda name: STUDIES[name.partition("/")[0]].summary(self._study(name)))

    # Rows of runs

    def value(self, on: str, row: str, key: str, digits: int | None = None, spread: bool = True) -> str:
        """Mean over seeds of a figure of a row, with its interval."""
        return _shown([run["metrics"][key] for run in self._runs(on, row)], key, digits, spread)

    def diff(
        self, on: str, row: str, key: str, baseline: str = "vicreg", digits: int | None = None, spread: bool = True
    ) -> str:
        """A row minus the baseline's matching row, paired by seed, with its interval."""
        return _shown(self._changes(on, row, key, baseline), key, digits, spread, signed=True)

    def gain(self, on: str, row: str, key: str) -> str:
        """The paired difference from VICReg in per cent of VICReg's own figure."""
        pairs = self._pairs(on, row)
        return _percent(sum(a[key] - b[key] for a, b in pairs) / sum(b[key] for _, b in pairs), 1)

    def fraction(self, on: str, part: str, whole: str, key: str) -> str:
        """How much of one row's difference from VICReg another row has, in per cent."""
        return _percent(np.mean(self._changes(on, part, key)) / np.mean(self._changes(on, whole, key)), 0)

    def seeds(self, on: str, row: str, baseline: str | None = None) -> str:
        """Number of runs of a row, or of its pairs with the baseline, in words."""
        return _word(len(self._pairs(on, row, baseline) if baseline else self._runs(on, row)))

    def rises(self, on: str, row: str, key: str) -> str:
        """In how many seeds a row lies above VICReg: `each of five`, or `four of five`."""
        change = self._changes(on, row, key)
        return _of(sum(value > 0 for value in change), len(change))

    def most_lost(self, on: str, row: str, key: str) -> str:
        """The loss against VICReg that the interval does not exclude, in points."""
        low, _ = Summary.over(self._changes(on, row, key)).interval
        return f"{-100 * low:.1f}"

    def span(self, on: str, rows: str | list[str], key: str) -> str:
        """Smallest and largest figure over the runs of one row or several."""
        rows = [rows] if isinstance(rows, str) else rows
        found = [run["metrics"].get(key, run.get(key)) for row in rows for run in self._runs(on, row)]
        scale, digits, unit = (100, 1, " %") if key in PERCENT | {"walk_share"} else (1, 3, "")
        low, high = (f"{scale * end:.{digits}f}" for end in (min(found), max(found)))
        return (low if low == high else f"{low} to {high}") + unit

    def untrained(self, key: str) -> str:
        """Smallest and largest figure over all untrained networks on CIFAR-100."""
        runs = [run for (_, on), of in self._records.items() if on == "cifar100" for run in of]
        found = [run["metrics"][key] for run in runs if not run["config"]["epochs"]]
        return f"{min(found):.3f} to {max(found):.3f}"

    def minutes(self, on: str, row: str) -> str:
        """Mean minutes of one core that a run of a row took."""
        return f"{np.mean([core_seconds(run) for run in self._runs(on, row)]) / 60:.0f}"

    def setting(self, on: str, row: str, field: str) -> str:
        """A field of the configuration of a row."""
        value = self._runs(on, row)[0]["config"][field]
        return f"{value:g}" if isinstance(value, float) else str(value)

    def start(self, on: str, row: str) -> str:
        """The epoch from which a row is paired."""
        config = self._runs(on, row)[0]["config"]
        return f"{config['walk_start'] * config['epochs']:g}"

    # Studies

    def trials(self, selection: str) -> str:
        """Number of pairing settings tried on validation images; of `entry` or `entry-gpu-search`."""
        return str(self._study(selection)["trials"])

    def selected_gain(self, selection: str) -> str:
        """Gain in Spearman of the setting with the largest of those that lose at most a point of kNN, in per cent."""
        chosen, plain = (self._study(selection)["validation"][name]["spearman_pairs"] for name in ("entry", "vicreg"))
        return _percent(chosen / plain - 1, 1)

    def over_classes(self, on: str, row: str, key: str = "spearman") -> str:
        """A row minus its baseline, with the interval that resamples seeds and classes."""
        (found,) = (one for one in self._study(f"versus/{on}")["rows"] if one["row"] == row)
        low, high = found[f"{key}_interval"]
        return f"{found[key]:+.4f} [{low:+.4f}, {high:+.4f}]"

    def steeper(self, what: str, row: str = "sag-vicreg") -> str:
        """Where VICReg with steeper axes reaches a row's Spearman: `power`, `price` in kNN, `missed` and `ahead`.

        `missed` counts seeds in which no power that was tried does, `ahead` the powers at which the row leads.
        """
        record = self._study("sharpen/gpu-minute")
        powers, known = record["powers"], record["powers"].index(1.0)
        ours, plain = (
            {key: np.array([[at[key] for at in run] for run in runs.values()]) for key in ("spearman_pairs", "knn")}
            for runs in (record["rows"][row], record["rows"]["vicreg"])
        )
        wanted, curve = ours["spearman_pairs"][:, known], plain["spearman_pairs"]
        power = np.interp(wanted.mean(), curve.mean(axis=0), powers)
        price = plain["knn"][:, known].mean() - np.interp(power, powers, plain["knn"].mean(axis=0))
        return {
            "power": f"{power:.1f}",
            "price": f"{100 * price:.1f}",
            "missed": _word(int((curve.max(axis=1) < wanted).sum())),
            "ahead": _of(int((ours["spearman_pairs"].mean(axis=0) > curve.mean(axis=0)).sum()), len(powers)),
        }[what]

    def unseen(self, profile: str, row: str, what: str) -> str:
        """A row minus VICReg on drawings that neither was trained on: a measure of the study, or how many are `below`
        VICReg, and how many `surely`, with an interval that excludes zero."""
        _, change = over_baseline(figures_by_seed(self._study("transfer/shapes"), profile), row)
        if what in change:
            return _shown(change[what], what, None, True, signed=True)
        over = [Summary.over(values) for values in change.values()]
        if what == "surely":
            return _word(sum(one.interval[1] < 0 for one in over))
        return _of(sum(one.mean < 0 for one in over), len(over))

    def cell(self, study: str, row: str, column: str) -> str:
        """A cell of the table of a study, `line/cifar100` or `validity/shapes`, as the page shows it; bold or not."""
        lines = (line[2:-2].split(" | ") for line in self.study(study).splitlines() if line.startswith("| "))
        head, _, *body = lines
        return next(dict(zip(head, cells, strict=True)) for cells in body if cells[0].strip("*") == row)[column]

    def embeddings(self, data: str) -> str:
        """Number of embeddings in the validity study of a data set."""
        return str(len(self._study(f"validity/{data}")["rows"]))

    def reliability(self, data: str) -> str:
        """Agreement of the semantic score with itself on other classes."""
        return f"{validity.reliability(self._study(f'validity/{data}')['rows']):.2f}"

    def confirmed(self, of: str) -> str:
        """How far apart in Spearman the means of the `settings` lie, or the `seeds` of one setting at most."""
        found = defaultdict(list)
        for run in self._study("tune/shapes-confirmed")["runs"]:
            found[run["role"]].append(run["spearman_pairs"])
        if of == "settings":
            return f"{np.ptp([np.mean(values) for values in found.values()]):.3f}"
        return f"{max(np.ptp(values) for values in found.values()):.2f}"

    # Tables

    def main_table(self, on: str, names: dict[str, str]) -> str:
        """The table of README: rows by title, with their differences from VICReg."""
        shown = {}
        for title, row in names.items():
            cells = {"seeds": str(len(self._runs(on, row)))}
            for key, head in (("spearman_pairs", "Spearman"), ("knn", "kNN %")):
                cells[head] = self.value(on, row, key)
                cells[f"{head} − VICReg"] = "" if row == "vicreg" else self.diff(on, row, key)
            shown[title] = cells
        return to_markdown(pd.DataFrame.from_dict(shown, orient="index").rename_axis("method"))

    def rows(self, on: str) -> str:
        """Rows, differences from VICReg and caption, of a profile and training set."""
        return tables_of(*_place(on), self._all)

    def branches(self, on: str) -> str:
        """Branches of trunks, with the controls that stand beside each row."""
        return branch_tables(self._records.get(_place(on), []))

    def minus(self, on: str, baseline: str) -> str:
        """Every row minus one row, with caption."""
        return paired_table(*_place(on), baseline, self._all)

    def study(self, name: str) -> str:
        """The table and caption of a study, `purity/cifar100`."""
        return self._shown(name)

    def transfer(self, profile: str, row: str) -> str:
        """Rows of a profile on drawings, a row minus VICReg, and caption."""
        record = self._study("transfer/shapes")
        figures = figures_by_seed(record, profile)
        title, change = over_baseline(figures, row)
        cells = {name: Summary.over(change[key]).show(False, signed=True) for key, name in MEASURES.items()}
        cells["seeds"] = len(change["structure"])
        both = pd.concat([transfer_table(figures), pd.DataFrame(cells, index=[title])]).rename_axis("encoder")
        return (
            f"{to_markdown(both)}\n\ntest images of {record['data']}, encoders of {profile} trained on "
            f"{record['train_set']}; kNN with a bank of {record['bank_size']:,} training images of {record['data']}; "
            f"± is a 95 % t-interval over seeds; {origin(record)}"
        )

    def duration(self, command: str) -> str:
        """How long `make COMMAND` took in a fresh clone, installation apart."""
        found = self._study("bench/commands")
        return f"{found['seconds'][command] / 60:.1f} min on {found['cores']} cores"

    def bench(self, name: str) -> str:
        """The table of a benchmark."""
        return bench_table(name, read_bench(self.results))

    @property
    def _all(self) -> list[dict]:
        return [record for of in self._records.values() for record in of]

    def _runs(self, on: str, row: str) -> list[dict]:
        rows = self._rows(on)
        if row not in rows:
            raise ValueError(f"no records of {row!r} on {on}: choose one of {', '.join(rows) or 'none'}")
        return rows[row]

    def _pairs(self, on: str, row: str, baseline: str = "vicreg") -> list[tuple[dict, dict]]:
        self._runs(on, row)
        pairs = self._paired(on, baseline)
        if row not in pairs:
            raise ValueError(f"{row!r} and {baseline!r} have no seed in common on {on}")
        return pairs[row]

    def _changes(self, on: str, row: str, key: str, baseline: str = "vicreg") -> list[float]:
        return [a[key] - b[key] for a, b in self._pairs(on, row, baseline)]

    def _study(self, name: str) -> dict:
        if name not in self._studies:
            kind, _, what = name.partition("/")
            remedy = f"python tests/bench_{what}.py" if kind == "bench" else f"sagkit study {kind}"
            raise ValueError(f"no record {name}.json under {self.results}: run `{remedy}`")
        return self._studies[name]


def _place(on: str) -> tuple[str, str]:
    profile, _, train_set = on.partition("/")
    return profile, train_set or "cifar100"


def _shown(values: list[float], key: str, digits: int | None, spread: bool, signed: bool = False) -> str:
    over, (scale, usual) = Summary.over(values), (100, 1) if key in PERCENT else (1, 3)
    digits = usual if digits is None else digits
    half = "" if over.half_width is None or not spread else f" ± {scale * over.half_width:.{digits}f}"
    return f"{scale * over.mean:{'+' if signed else ''}.{digits}f}{half}"


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} %"


def _of(some: int, whole: int) -> str:
    return f"{'each' if some == whole else _word(some)} of {_word(whole)}"


def _word(number: int) -> str:
    return WORDS[number] if number < len(WORDS) else str(number)


def environment(figures: Figures, **options) -> Environment:
    """The templates, by name of their page with `.j2`, with every public method of `figures` to call.

    Args:
        figures: what the templates ask.
        options: further ones of jinja2's environment.
    """
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    asked = dict(inspect.getmembers(figures, inspect.ismethod))
    found.globals |= {name: method for name, method in asked.items() if not name.startswith("_")} | {"goals": GOALS}
    return found


def page(name: str, figures: Figures) -> str:
    """One of `PAGES` as it has to read.

    Raises:
        ValueError: where a record that it reads from is missing.
    """
    return environment(figures).get_template(f"{Path(name).name}.j2").render()


def main(results: str = "figures/results", out: str = ".") -> None:
    """Write README.md, figures/RESULTS.md and figures/BENCHMARKS.md from the records.

    Args:
        results: folder of records.
        out: folder of the checkout that the pages are written into.
    """
    figures = Figures(results)
    for name, text in {name: page(name, figures) for name in PAGES}.items():
        write_text(Path(out) / name, text)
        print(f"{Path(out) / name}: {len(text.encode()):,} bytes")
