"""The validity study by another route: scipy, explicit loops, and one small run from images to table."""

import copy
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from sagkit.data.load import load_images, make_shapes
from sagkit.metrics import labelfree
from sagkit.metrics.evaluate import references
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import rank_correlation
from sagkit.studies import validity
from sagkit.studies.zoo import Member, histogram, raw_pixels

DESIGNS = list(validity.DESIGNS)


def rows(n: int = 24, seed: int = 0) -> list[dict]:
    """Rows of a study whose designs follow the semantic score with more and more noise."""
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        row = {"name": f"m{i}", "kind": ("trained", "degraded")[i % 3 == 0], "run": f"r{i}", "side": i % 2}
        for split in ("val", "test"):
            semantic = float(rng.normal())
            noise = 0.3 * np.arange(1, len(DESIGNS) + 1) * rng.normal(size=len(DESIGNS))
            scores = dict(zip(DESIGNS, (semantic + noise).tolist(), strict=True))
            scores |= {name: float(rng.normal()) for name in validity.RIVALS}
            width = 0.3 * rng.random()
            row[split] = {"semantic": semantic, "interval": [semantic - width, semantic + width], "scores": scores}
            row[split]["halves"] = [semantic + 0.3 * rng.normal(), semantic + 0.3 * rng.normal()]
        found.append(row)
    return found


def test_validity_over_resamplings_is_that_of_each():
    scores, semantic = np.random.default_rng(0).integers(0, 5, size=(2, 40, 7)).astype(float)  # ties as in resamplings
    scores[3] = 1
    found = validity.row_correlations(validity.centred_ranks(scores), validity.centred_ranks(semantic))
    wanted = [validity.validity(a, b) for a, b in zip(scores, semantic, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found[3] == 0


def test_validity_is_the_rank_correlation_over_embeddings():
    scores, semantic = np.random.default_rng(0).normal(size=(2, 30))
    scores[3] = scores[7]
    assert validity.validity(scores, semantic) == pytest.approx(spearmanr(scores, semantic).statistic)
    assert validity.validity(np.ones(30), semantic) == 0
    drawn = np.random.default_rng(1).integers(30, size=(20, 30))
    one_by_one = [validity.validity(scores[rows], semantic[rows]) for rows in drawn]
    ranks = validity.centred_ranks(semantic[drawn])
    assert validity.row_correlations(validity.centred_ranks(scores[drawn]), ranks) == pytest.approx(one_by_one)
    assert (validity.row_correlations(validity.centred_ranks(np.ones((3, 30))), ranks[:3]) == 0).all()


def test_the_best_on_the_first_half_and_validation_images_is_chosen():
    study = rows()
    half = [row for row in study if row["side"] == 0]
    semantic = [row["val"]["semantic"] for row in half]
    found = {d: spearmanr([row["val"]["scores"][d] for row in half], semantic).statistic for d in DESIGNS}
    assert validity.choose_design(study) == max(found, key=found.get)
    winner = DESIGNS[17]
    for row in half:
        row["val"]["scores"][winner] = row["val"]["semantic"]
    assert validity.choose_design(study) == winner


def test_the_choice_looks_neither_at_the_second_half_nor_at_test_images():
    study = rows()
    chosen, changed = validity.choose_design(study), copy.deepcopy(study)
    worst = DESIGNS[-1]
    for row in changed:
        for split in ("val", "test") if row["side"] else ("test",):
            row[split]["scores"][worst] = row[split]["semantic"]
            row[split]["scores"][chosen] = -row[split]["semantic"]
    assert validity.choose_design(changed) == chosen


def test_a_rival_is_no_design_and_is_never_chosen():
    study = rows()
    for row in study:
        row["val"]["scores"]["RankMe"] = row["val"]["semantic"]
    assert validity.choose_design(study) in DESIGNS


def test_only_pairs_whose_intervals_are_apart_have_an_order():
    study, right, clear = rows(), 0, 0
    scores = np.array([row["test"]["scores"][DESIGNS[5]] for row in study])
    for i, a in enumerate(study):
        for j, b in enumerate(study):
            if a["test"]["interval"][0] > b["test"]["interval"][1]:
                clear += 1
                right += scores[i] > scores[j]
    assert 0 < right < clear < 24 * 23 / 2
    assert validity.ordered(scores, study) == (right, clear)
    assert validity.ordered(np.zeros(24), study) == (0, clear)


def test_reliability_is_that_of_spearman_and_brown():
    study = rows()
    half = spearmanr(*np.array([row["test"]["halves"] for row in study]).T).statistic
    assert validity.reliability(study) == pytest.approx(2 * half / (1 + half))


def test_the_table_judges_on_the_second_half_and_marks_the_chosen_design():
    study = {"rows": rows(40)}
    shown, chosen = validity.validity_table(study, bootstrap=50), validity.choose_design(study["rows"])
    assert [name for name in shown.index if name.startswith("**")] == [f"**{chosen}**"]
    second = [row["test"] for row in study["rows"] if row["side"] == 1]
    for name in ("RankMe", "two standard views: Ward 20"):
        wanted = spearmanr([row["scores"][name] for row in second], [row["semantic"] for row in second]).statistic
        value, _, interval = shown.loc[name, "half B, test"].partition(" ")
        assert float(value) == pytest.approx(wanted, abs=0.006)
        low, high = (float(v) for v in interval.strip("[]").split(", "))
        assert low <= float(value) <= high


def test_a_design_chosen_in_another_study_is_judged_on_the_whole_zoo():
    design = DESIGNS[11]
    study = {"rows": rows(40), "design": design}
    every = [row["test"] for row in study["rows"]]
    wanted = spearmanr([row["scores"][design] for row in every], [row["semantic"] for row in every]).statistic
    shown = validity.validity_table(study, bootstrap=50)
    assert float(shown.loc[f"**{design}**", "all, test"].split(" ")[0]) == pytest.approx(wanted, abs=0.006)
    assert "half B, test" not in shown.columns


def test_an_unknown_design_is_refused():
    with pytest.raises(ValueError, match=r"no design 'guess': choose one of two standard views: distances"):
        validity.main(design="guess")


@pytest.fixture(scope="module")
def scene():
    return validity.prepare(make_shapes(240, seed=3), "shapes", n=110, seed=0)


@pytest.mark.slow
def test_a_member_is_judged_by_labels_once_and_by_views_for_everything_else(scene):
    found = validity.judge_member(Member("colours", "hand-made", "colours", histogram), scene, bootstrap=20)
    h = histogram(scene.images)
    assert found["semantic"] == pytest.approx(rank_correlation(h, scene.labels, scene.reference).spearman, abs=1e-5)
    assert found["interval"][0] < found["semantic"] < found["interval"][1]
    assert found["scores"].keys() == {*DESIGNS, *validity.RIVALS}
    f = {name: histogram(view).astype(float) for name, view in scene.views.items()}
    wanted = {
        "clean, changed: distances": structure_score(f["clean"], f["changed0"]).score,
        "two changed views: heights of trees": labelfree.tree_agreement(f["changed0"], f["changed1"]),
        "RankMe": labelfree.rankme(f["clean"]),
        "plain cophenetic": labelfree.cophenetic(f["clean"]),
    }
    for name, value in wanted.items():
        assert found["scores"][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.slow
def test_views_are_the_same_for_all_members_and_halves_share_no_class(scene):
    again = validity.prepare(make_shapes(240, seed=3), "shapes", n=110, seed=0)
    for name, view in scene.views.items():
        np.testing.assert_array_equal(view, again.views[name])
    h, halves = histogram(scene.images), []
    classes = np.random.default_rng(0).permutation(27)
    for half in (classes[:14], classes[14:]):
        rows = [i for i, label in enumerate(scene.labels) if label in half]
        halves.append(rank_correlation(h[rows], scene.labels[rows], scene.reference).spearman)
    assert validity.class_halves(h, scene) == pytest.approx(halves)


def test_a_study_goes_on_from_its_cache_and_begins_anew_where_anything_is_another(tmp_path, monkeypatch, capsys):
    judged, members = (
        [],
        [Member(name, "hand-made", name, embed) for name, embed in (("a", raw_pixels), ("b", histogram))],
    )

    def judge(member, split, bootstrap=200):
        judged.append(member.name)
        return rows(2)[0]["test"]

    few = make_shapes(60, size=8, seed=0)
    split = validity.JudgedSplit(few.images, np.asarray(few.labels), np.eye(27), {})
    monkeypatch.setattr(validity, "load_images", lambda *_: few)
    monkeypatch.setattr(validity, "prepare", lambda *_: split)
    monkeypatch.setattr(validity, "summary", lambda record: f"{len(record['rows'])} judged")
    monkeypatch.setattr(validity, "judge_member", judge)
    monkeypatch.setattr(validity, "zoo", lambda *_: members)
    where = {"data": "shapes", "results": str(tmp_path / "results"), "cache": str(tmp_path / "cache")}

    def judged_by(**options):
        judged.clear()
        validity.main(**where, **options)
        return judged.copy()

    assert judged_by(n=110) == ["a", "a", "b", "b"]  # two splits each
    assert judged_by(n=110) == []
    assert len(judged_by(n=111)) == len(judged_by(n=110, seed=1)) == 4
    members[1] = members[1]._replace(embed=lambda images: 2 * histogram(images))  # an encoder that was trained again
    assert judged_by(n=110) == ["b", "b"]
    source = tmp_path / "house/studies/validity.py"
    source.parent.mkdir(parents=True)
    source.write_text("other code")
    monkeypatch.setattr(validity, "__file__", str(source))
    assert len(judged_by(n=110)) == 4
    record = json.loads((tmp_path / "results/validity/shapes.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["a", "b"]
    assert "2 judged" in capsys.readouterr().out


@pytest.mark.slow  # the whole of a study: every score of a member on two splits
def test_a_study_judges_on_test_images_and_writes_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(validity, "zoo", lambda *_: [Member("h", "hand-made", "h", histogram)])
    validity.main(data="shapes", n=110, results=str(tmp_path / "results"), cache=str(tmp_path / "cache"))
    (fresh,) = json.loads((tmp_path / "results/validity/shapes.json").read_text())["rows"]
    test = load_images("shapes", "test")
    reference = next(iter(references("shapes", test.class_names).values()))
    wanted = rank_correlation(histogram(test.images), test.labels, reference).spearman
    assert fresh["test"]["semantic"] == pytest.approx(wanted, abs=1e-5)
    assert fresh["val"]["semantic"] != fresh["test"]["semantic"]
