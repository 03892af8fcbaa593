"""The validity study by another route: scipy, explicit loops, and one small run from stored features to table."""

import copy
import json

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from sagkit.data.load import load_images
from sagkit.metrics.labelfree import structure_score
from sagkit.studies import kinds_validity as validity
from sagkit.studies.kinds_zoo import Member

DESIGNS = list(validity.DESIGNS)


def rows(seed: int = 0, each: int = 3) -> list[dict]:
    """Rows of a study whose designs follow the semantic score with more and more noise."""
    rng, found = np.random.default_rng(seed), []
    for family in validity.FAMILIES:
        kind = "trained" if family in validity.KINDS else "untrained"
        for i in range(each):
            meaning = float(rng.normal())
            noise = 0.2 * np.arange(1, len(DESIGNS) + 1) * rng.normal(size=len(DESIGNS))
            scores = dict(zip(DESIGNS, (meaning + noise).tolist(), strict=True))
            scores |= {name: float(rng.normal()) for name in (*validity.RIVALS, validity.LOSS)}
            halves = [meaning + 0.3 * rng.normal(), meaning + 0.3 * rng.normal()]
            row = {"name": f"{family} {i}", "kind": kind, "family": family, "semantic": meaning, "halves": halves}
            found.append({**row, "scores": scores})
            harmed = {
                "name": f"{family} {i}, rank 1",
                "kind": "degraded",
                "of": f"{family} {i}",
                "semantic": meaning / 2,
            }
            found.append({**found[-1], **harmed, "scores": dict(scores)})
    return found


def of_side(study: list[dict], side: int) -> list[dict]:
    names = validity.FAMILIES[side::2]
    return [row for row in study if row["family"] in names and row["kind"] != "degraded"]


def correlation(part: list[dict], name: str) -> float:
    return spearmanr([row["scores"][name] for row in part], [row["semantic"] for row in part]).statistic


def test_the_best_design_on_the_choosing_half_is_chosen_whatever_the_other_half_and_copies_say():
    study = rows()
    found = {name: correlation(of_side(study, 0), name) for name in DESIGNS}
    chosen = validity.choose_design(study)
    assert chosen == max(found, key=found.get)
    changed, worst = copy.deepcopy(study), DESIGNS[-1]
    for row in changed:
        if row["kind"] == "degraded" or row["family"] in validity.FAMILIES[1::2]:
            row["scores"][worst], row["scores"][chosen] = row["semantic"], -row["semantic"]
        row["scores"]["RankMe"] = row["semantic"]  # a rival is never chosen
    assert validity.choose_design(changed) == chosen


def test_the_table_judges_on_the_other_half_and_resamples_families():
    study = {"rows": rows()}
    shown, chosen = validity.validity_table(study, draws=200), validity.choose_design(study["rows"])
    assert [name for name in shown.index if name.startswith("**")] == [f"**{chosen}**"]
    for name in ("RankMe", "consensus"):
        value, _, interval = shown.loc[name, "judging half"].partition(" ")
        assert float(value) == pytest.approx(correlation(of_side(study["rows"], 1), name), abs=0.006)
        low, high = (float(v) for v in interval.strip("[]").split(", "))
        assert low <= float(value) <= high
    picks = list(validity.family_draws(of_side(study["rows"], 1), 50))
    names = [row["family"] for row in of_side(study["rows"], 1)]
    for pick in picks:
        counts = {family: sum(names[i] == family for i in pick) for family in set(names)}
        assert all(count % 3 == 0 for count in counts.values())  # whole families of three
        assert len(pick) == len(names)


def test_a_design_chosen_elsewhere_is_judged_on_all_families():
    study = {"rows": rows(), "design": DESIGNS[5]}
    shown = validity.validity_table(study, draws=50)
    every = [row for row in study["rows"] if row["kind"] != "degraded"]
    value = shown.loc[f"**{DESIGNS[5]}**", "all"].partition(" ")[0]
    assert float(value) == pytest.approx(correlation(every, DESIGNS[5]), abs=0.006)
    assert "judging half" not in shown.columns


def test_kinds_are_compared_one_encoder_of_each_and_runs_within_their_kind():
    study = rows()
    trained = [row for row in study if row["kind"] == "trained"]
    within = [correlation([row for row in trained if row["family"] == kind], "consensus") for kind in validity.KINDS]
    assert validity.within_kinds(study, "consensus") == pytest.approx(np.mean(within))
    for row in trained:  # between kinds the score is right, within a kind it is upside down
        order = validity.KINDS.index(row["family"])
        row["scores"]["visits"] = order - 0.01 * row["semantic"]
        row["semantic"] = order + 0.01 * row["semantic"]
    assert validity.one_of_each(study, ["visits"]) == {"visits": pytest.approx(1)}
    assert validity.within_kinds(study, "visits") == pytest.approx(-1)


def test_failures_are_shares_of_the_unharmed_and_count_scores_that_rise_where_meaning_falls():
    study = rows()
    for row in study:
        row["semantic"] = abs(row["semantic"]) * (0.5 if row["kind"] == "degraded" else 1)
        row["scores"]["RankMe"] = 2.0 if row["kind"] == "degraded" else 1.0
    shown = validity.failures({"rows": study})
    assert shown.loc["rank 1", "semantic"] == "0.25"
    assert shown.loc["rank 1", "RankMe"] == f"2.00, wrong {len(study) // 2}"


def test_reliability_is_that_of_spearman_and_brown():
    study = [row for row in rows() if row["kind"] != "degraded"]
    half = spearmanr(*np.array([row["halves"] for row in study]).T).statistic
    assert validity.reliability(study) == pytest.approx(2 * half / (1 + half))


@pytest.mark.slow  # every score of ten embeddings
def test_a_study_judges_every_member_and_writes_its_record(tmp_path, monkeypatch, capsys):
    test = load_images("shapes", "test")
    labels = np.asarray(test.labels)[:110]
    rng, members = np.random.default_rng(0), []
    reference = next(iter(validity.references("shapes", test.class_names).values()))
    place = reference @ rng.normal(size=(27, 6))
    for i, family in enumerate((*validity.KINDS[:4], "untrained", "pixels", "colour histogram", "gradients")):
        clean = place[labels] + (0.5 + 0.5 * i) * rng.normal(size=(110, 6))
        seen = {
            v: clean + 0.5 * rng.normal(size=clean.shape) for v in ("standard0", "standard1", "changed0", "turned0")
        }
        members.append(Member(f"m{i}", "trained" if i < 4 else "untrained", family, {"clean": clean, **seen}))
    zoo = {
        "labels": labels.tolist(),
        "classes": test.class_names,
        "rows": [{"name": m.name, "loss": 1.0} for m in members],
    }
    monkeypatch.setattr(validity, "read_zoo", lambda results, data: (zoo, members))
    monkeypatch.setattr(validity, "degraded", lambda m: [m._replace(name=f"{m.name}, same", kind="degraded")])
    monkeypatch.setattr(validity, "choose_design", lambda rows: "consensus")
    (tmp_path / "kinds-validity").mkdir()
    (tmp_path / "kinds-validity/cifar100.json").write_text(json.dumps({"rows": []}))
    validity.main("shapes", tmp_path, n=100)
    record = json.loads((tmp_path / "kinds-validity/shapes.json").read_text())
    assert record["design"] == "consensus"
    by_name = {row["name"]: row for row in record["rows"]}
    views = members[1].views
    score = structure_score(views["clean"][:100], views["changed0"][:100]).score
    assert by_name["m1"]["scores"]["clean, changed: distances"] == pytest.approx(score, abs=1e-6)
    assert by_name["m1"]["scores"] == by_name["m1, same"]["scores"] | {validity.LOSS: -1.0}
    assert by_name["m0"]["semantic"] > by_name["m7"]["semantic"]
    i, j = np.triu_indices(110, k=1)
    other = labels[i] != labels[j]
    wanted = spearmanr(
        pdist(views["clean"] - views["clean"].mean(0), "cosine")[other], reference[labels[i], labels[j]][other]
    )
    assert by_name["m1"]["semantic"] == pytest.approx(wanted.statistic, abs=2e-5)
    assert "**consensus**" in capsys.readouterr().out
