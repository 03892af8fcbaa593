"""The pages written from records: current, without a typed figure, and equal to the records by another route."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from sagkit.pilot.assess import summary
from sagkit.studies.results import PAGES, Figures, environment, main, page
from sagkit.train.record import write_record

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "figures/results"
TEMPLATES = ROOT / "sagkit/studies/templates"
COUNTS = ("seeds(", "setting(", "start(", "trials(", "embeddings(", "goals.", "gpu", "late", "sag")  # nothing measured
ABSENT = ("branches(", 'bench("gpu")')  # a sentence, until there are records of them


@pytest.fixture(scope="module")
def figures():
    return Figures(RESULTS)


def metrics(row: str, key: str, on: str = "gpu-minute/cifar100") -> list[float]:
    """A figure by seed, straight from the files."""
    paths = sorted((RESULTS / on).glob(f"{row}-seed?.json"))
    return [json.loads(path.read_text())["metrics"][key] for path in paths]


def template(name: str) -> str:
    return (TEMPLATES / f"{Path(name).name}.j2").read_text()


def answers(name: str, figures: Figures) -> dict[str, str]:
    """What stands in a page for each expression of its template."""
    asked = re.findall(r"\{\{ (.*?) \}\}", template(name), re.DOTALL)
    marked = environment(figures, finalize=lambda value: f"⟦{value}⟧").get_template(f"{Path(name).name}.j2").render()
    return dict(zip(asked, re.findall(r"⟦(.*?)⟧", marked, re.DOTALL), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_committed_pages_are_those_of_the_committed_records(name, figures):
    assert (ROOT / name).read_text() == page(name, figures), f"{name} is stale: run sagkit study results"


def measured_anew(node, generator: np.random.Generator, name: str = ""):
    """A record in which every measured number, a float, is another one; settings and counts stay."""
    if name in ("config", "power", "powers"):
        return node
    if isinstance(node, dict):
        return {key: measured_anew(value, generator, key) for key, value in node.items()}
    if isinstance(node, list):
        return [measured_anew(value, generator) for value in node]
    return node * generator.uniform(0.2, 0.6) if isinstance(node, float) else node


@pytest.mark.slow
def test_every_measured_figure_of_the_pages_follows_the_records(figures, tmp_path):
    """With other records every answer is another one, in one of four draws at least: nobody typed it."""

    def drawn(seed):
        generator = np.random.default_rng(seed)
        for path in sorted(RESULTS.rglob("*.json")):
            there = tmp_path / str(seed) / path.relative_to(RESULTS)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(json.dumps(measured_anew(json.loads(path.read_text()), generator)))
        return Figures(tmp_path / str(seed))

    first, *others = (drawn(seed) for seed in range(4))
    for name in PAGES:
        before, after = answers(name, figures), answers(name, first)
        same = [what for what in before if before[what] == after[what] and not what.startswith(COUNTS + ABSENT)]
        names = dict(re.findall(r'\{% set (\w+) = "(.*?)" %\}', template(name)))
        for other in others:
            same = [what for what in same if environment(other).compile_expression(what)(**names) == before[what]]
        assert same == []


@pytest.mark.parametrize("name", PAGES)
def test_no_measured_figure_is_typed_into_the_prose_of_a_template(name):
    text = template(name)
    for not_prose in (r"\{[{%#].*?[}%#]\}", r"```.*?```", r"^(?: {4,}|\|).*?$", r"`.*?`", r"\]\(.*?\)", r"<!--.*?-->"):
        text = re.sub(not_prose, "", text, flags=re.DOTALL | re.MULTILINE)
    for no_result in (r"Py(thon|Torch) \d\.\d+", r"arXiv \d+\.\d+", r"95 %"):
        text = re.sub(no_result, "", text)
    assert re.findall(r"\S*\d\.\d\S*|\d+ ?%", text) == []


def test_differences_and_gains_are_those_of_the_files_by_scipy(figures):
    sag, plain = (np.array(metrics(row, "spearman_pairs")) for row in ("sag-vicreg", "vicreg"))
    low, high = ttest_rel(sag, plain).confidence_interval(0.95)
    mean = (sag - plain).mean()
    assert figures.diff("gpu-minute", "sag-vicreg", "spearman_pairs") == f"{mean:+.3f} ± {(high - low) / 2:.3f}"
    assert figures.gain("gpu-minute", "sag-vicreg", "spearman_pairs") == f"{100 * mean / plain.mean():.1f} %"
    assert figures.rises("gpu-minute", "sag-vicreg", "spearman_pairs") == "each of five"
    knn = np.array(metrics("sag-vicreg", "knn")) - metrics("vicreg", "knn")
    assert figures.rises("gpu-minute", "sag-vicreg", "knn") == "one of five"
    assert (knn > 0).sum() == 1
    assert (
        figures.most_lost("gpu-minute", "sag-vicreg", "knn")
        == f"{-100 * ttest_rel(knn, 0 * knn).confidence_interval().low:.1f}"
    )
    matched = sag[:3] - metrics("sag-vicreg-random", "spearman_pairs")
    assert figures.diff("gpu-minute", "sag-vicreg", "spearman_pairs", "sag-vicreg (random)").startswith(
        f"{matched.mean():+.3f} ± "
    )
    assert figures.diff("gpu-minute", "sag-vicreg (oracle)", "knn") == "+0.9"  # two seeds: no interval


def test_a_part_of_a_gain_and_a_span_are_those_of_the_files(figures):
    on = "tuned/cifar100"
    plain, late, random = (
        np.mean(metrics(row, "spearman_pairs", on))
        for row in ("vicreg", "sag-vicreg-later-a200", "sag-vicreg-late-random")
    )
    part = figures.fraction("tuned", "sag-vicreg (late-random)", "sag-vicreg (later-a200)", "spearman_pairs")
    assert part == f"{100 * (random - plain) / (late - plain):.0f} %"
    knn = [100 * value for value in metrics("vicreg-long", "knn", on)]
    assert figures.span("tuned", "vicreg (long)", "knn") == f"{min(knn):.1f} to {max(knn):.1f} %"


def test_the_power_that_reaches_a_spearman_is_found_on_the_mean_curve(figures):
    rows = json.loads((RESULTS / "sharpen/gpu-minute.json").read_text())["rows"]
    power = float(figures.steeper("power"))

    def mean(row, at, key="spearman_pairs"):
        return np.mean([next(f[key] for f in run if f["power"] == at) for run in rows[row].values()])

    assert mean("vicreg", 1.5) < mean("sag-vicreg", 1.0) < mean("vicreg", 2.0)
    assert 1.5 < power < 2.0
    bracket = [100 * (mean("vicreg", 1.0, "knn") - mean("vicreg", at, "knn")) for at in (1.5, 2.0)]
    assert bracket[0] < float(figures.steeper("price")) < bracket[1]


def test_a_cell_is_the_one_that_the_page_shows(figures):
    cell = figures.cell("line/cifar100", "SAG-VICReg − VICReg, by seed", "AUROC walks")
    (line,) = (line for line in figures.study("line/cifar100").splitlines() if line.startswith("| SAG-VICReg − VICReg"))
    assert line.split(" | ")[4] == cell


def test_the_table_of_an_assessment_keeps_the_order_that_was_asked_for(tmp_path):
    found = {"data": "cifar100", "resamplings": 0, "processor": "a machine", "command": "python x", "commit": "0" * 40}
    rows = [{"what": w, "name": w, "verdict": "v", "metrics": {"knn": k}} for w, k in (("pixels", 0.1), ("net", 0.3))]
    write_record(tmp_path / "assess/cifar100.json", found | {"rows": rows})
    text = Figures(tmp_path).study("assess/cifar100")
    assert text == summary(found | {"rows": rows})
    assert text.index("| pixels |") < text.index("| net |")


def test_a_missing_record_or_row_is_said_with_its_remedy(figures, tmp_path):
    with pytest.raises(ValueError, match=r"no records of 'barlow' on gpu-minute: choose one of dino \(untrained\)"):
        figures.value("gpu-minute", "barlow", "knn")
    with pytest.raises(ValueError, match="no records of 'vicreg' on full: choose one of none"):
        figures.value("full", "vicreg", "knn")
    with pytest.raises(ValueError, match=r"no record versus/tuned.json under .*: run `sagkit study versus`"):
        Figures(tmp_path).over_classes("tuned", "sag-vicreg")
    with pytest.raises(ValueError, match="no records of"):
        main(results=str(tmp_path), out=str(tmp_path))
    assert not list(tmp_path.iterdir()), "pages are written together or not at all"


def test_the_readme_is_short_and_has_one_table():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 10_000
    assert len(re.findall(r"^\| ---", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", [*PAGES, "figures/METHOD.md"])
def test_links_of_the_pages_lead_somewhere(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:)(.*?)\)", text)
    missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    paths = re.findall(r"`((?:tests|notebooks|sagkit|figures)/[\w/.-]+)", text)
    missing += [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert links
    assert missing == []


def test_sections_of_the_method_that_are_cited_exist():
    sections = set(re.findall(r"^## (\d)\.", (ROOT / "figures/METHOD.md").read_text(), re.MULTILINE))
    sources = [
        path
        for wing in ("sagkit", "notebooks")
        for path in (ROOT / wing).rglob("*")
        if path.suffix in (".py", ".ipynb")
    ]
    cited = {number for path in sources for number in re.findall(r"METHOD\.md,? section (\d)", path.read_text())}
    assert cited
    assert cited <= sections
    assert [path for path in sources if "DESIGN.md" in path.read_text()] == []
