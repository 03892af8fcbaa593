"""Sentences say what the figures say: for runs that went well, went badly, or did neither."""

import pytest

from sagkit.show import prose


def row(spearman, purity):
    return {"Spearman": spearman, "superclass purity": purity}


WELL = {"vicreg": row(0.18, 0.5), "sag-vicreg": row(0.2, 0.6)}
FLOORS = {"pixels": row(0.1, 0.4), "untrained": row(0.08, 0.3)}
CONTROL = {"random": row(0.19, 0.5)}


def verdict(trained, chance=0.125):
    return prose.tour_verdict({**FLOORS, **trained, **CONTROL}, list(FLOORS), list(trained), "random", chance)


def test_a_run_that_was_read_and_one_that_is_trained_are_told_apart():
    assert prose.source({"a": (True, "a.json")}) == "**READ FROM A RECORD**: a (a.json)."
    both = prose.source({"a": (True, "a.json"), "b": (False, "now"), "c": (False, "now")})
    assert both == "**READ FROM A RECORD**: a (a.json).\n\n**TRAINED NOW**: b (now), c (now)."


@pytest.mark.parametrize(
    ("factor", "said"), [(1, "Training shows."), (0.6, "Training shows a little."), (0.4, "Training does not show.")]
)
def test_the_tours_verdict_follows_the_best_floor(factor, said):
    scaled = {name: {**row, "Spearman": factor * row["Spearman"]} for name, row in WELL.items()}
    told = verdict(scaled)
    assert told.startswith(f"**{said}**")
    assert f"{factor * 0.18:.3f} and {factor * 0.2:.3f}" in told
    assert f"{factor * 1.8:.2f} and {factor * 2:.2f} times the best floor (pixels, 0.100)" in told
    assert f"{abs(factor * 0.2 - 0.19):.3f} {'above' if factor == 1 else 'below'} it" in told
    (proof,) = (part for part in told.split("\n\n") if part.startswith("**What this does and does not prove.**"))
    assert ("hardly more" in proof, "**no** more" in proof) == (factor == 0.6, factor == 0.4)
    assert "walks add to it is not proved" in proof


def test_the_tours_verdict_on_purity_follows_chance():
    assert ": more than twice as many; 40% by pixels and 30% by untrained." in verdict(WELL)
    assert ": **not** more than twice as many; 40% by pixels" in verdict(WELL, chance=0.26)


def test_figures_that_round_to_one_are_level():
    assert prose.beside(0.1652, 0.1649) == "level with"
    assert prose.beside(0.170, 0.165) == "0.005 above"
    assert prose.beside(0.160, 0.165) == "0.005 below"


def test_edges_and_a_path_are_counted():
    assert prose.edges_reading(50, 100, 0.25) == (
        "50 of 100 edges join two images of one superclass: 0.50, 2.0 times chance (0.25)."
    )
    told = prose.path_reading(["a", "b", "c"], ["food", "food", "flags"])
    assert told == (
        "The walk begins at *a* (food); 1 of its 2 steps leads to that superclass. "
        "It ends at *c*, of another superclass, *flags*."
    )
    assert prose.path_reading(["a", "b"], ["food", "food"]).endswith("It ends at *b*, of the same superclass.")


@pytest.mark.parametrize(
    ("rho", "said"), [(0.1, "hardly follows"), (0.5, "neighbour follows the similarity"), (-0.5, "goes against")]
)
def test_odds_that_follow_similarity_or_do_not(rho, said):
    assert said in prose.row_reading(rho)
    assert f"(Spearman {rho:.2f})" in prose.row_reading(rho)


def test_purity_by_length_says_how_it_goes():
    lengths = {1: {"same superclass": 0.5}, 4: {"same superclass": 0.3}}
    told = prose.purity_by_length(lengths, {"same superclass": 0.25})
    assert told == "Same superclass: 0.50 after 1 step, 2.0 times chance (0.25); it falls to 0.30 after 4."
    assert "rises to" in prose.purity_by_length({1: lengths[4], 4: lengths[1]}, {"same superclass": 0.25})


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.5, 0.3, "falls from 0.50 to 0.30"), (0.3, 0.5, "rises from 0.30 to 0.50"), (0.5, 0.501, "stays near 0.50")],
)
def test_a_figure_moves_as_it_does(before, after, said):
    assert prose.moved(before, after) == said


def test_a_share_is_set_against_chance():
    assert prose.against(0.5, 0.25) == "0.50, 2.0 times chance (0.25)"
    assert prose.against(0.25, 0.25) == "0.25, no better than chance (0.25)"


@pytest.mark.parametrize(
    ("losses", "ramp", "said"),
    [
        ([3.0], None, "One epoch, with a mean loss of 3.00"),
        ([3.0, 2.0, 1.0], None, "falls from 3.00 to 1.00 over 3 epochs, and falls in every one of them."),
        ([3.0, 2.0, 2.2, 1.0], (2, 3), "10.0%, in epoch 3: there the walk term comes in"),
        ([3.0, 2.0, 2.2, 1.0], (0, 0.5), "10.0%, in epoch 3, where no walk term comes in."),
        ([3.0, 2.0, 2.2, 1.0], None, "10.0%, in epoch 3."),
        ([3.0, 6.0], None, "**A loss that does not fall is a run that does not train.**"),
    ],
)
def test_the_course_of_a_loss(losses, ramp, said):
    assert said in prose.loss_course(dict(enumerate(losses, 1)), ramp)


def test_the_courses_of_terms():
    told = prose.terms_course({"invariance": {1: 0.2, 4: 0.1}, "walk": {2: 0.1, 4: 0.3}, "variance": {4: 0.5}})
    assert told == (
        "The invariance term falls from 0.200 to 0.100, the walk term (from epoch 2 on) rises from 0.100 to 0.300 and "
        "the variance term is 0.500 in its one epoch."
    )
    assert "no terms" in prose.terms_course({})


@pytest.mark.parametrize(
    ("losses", "readout", "said"),
    [
        ((3, 2), {1: 0.1, 2: 0.2}, "Here both say the same."),
        ((3, 2), {1: 0.2, 2: 0.1}, "**The loss falls and the embedding does not get better.**"),
        ((2, 3), {1: 0.1, 2: 0.2}, "gets better although the loss does not fall"),
        ((2, 3), {1: 0.2, 2: 0.1}, "Neither gets better."),
        ((3, 2), {2: 0.1}, "1 readouts of kNN: too few"),
    ],
)
def test_readouts_beside_the_loss(losses, readout, said):
    assert said in prose.readouts_course(dict(enumerate(losses, 1)), readout, "kNN")


def test_training_that_helps_may_help_or_harms():
    knn = (0.1, 0.2)
    assert "do not touch" in prose.before_after(((0.1, 0.05, 0.15), (0.3, 0.2, 0.4)), knn)
    assert "**overlap**" in prose.before_after(((0.1, 0.05, 0.25), (0.3, 0.2, 0.4)), knn)
    assert "**Training did not raise it.**" in prose.before_after(((0.3, 0.2, 0.4), (0.1, 0.0, 0.2)), knn)
    assert "no reference distances" in prose.before_after(None, knn)
    assert "kNN accuracy rises from 10 to 20 per cent." in prose.before_after(None, knn)


def test_groups_the_doctor_and_the_map():
    told = prose.groups_reading({"a": 0.5, "b": 0.1}, {"a": 0.2, "b": 0.1})
    assert "largest for *a*: 0.50, 2.5 times chance (0.20)" in told
    assert "least for *b*: 0.10, no better than chance (0.10). 1 of 2 superclasses is above twice chance." in told
    assert "Nothing is found." in prose.doctor_reading([])
    assert "finds collapse and not finite" in prose.doctor_reading(["collapse", "not finite"])
    told = prose.map_reading({"pixels": 0.5, "us": 0.4}, 0.1)
    assert "50% share its superclass by pixels and 40% by us (chance 10%): fewer." in told
    assert "no walk term" in prose.schedule(1, 10, "vicreg", None)
    assert "first 25% of the run" in prose.schedule(1, 10, "sag-vicreg", ("25%", "10%"))


def test_a_line_is_read_score_by_score_and_seed_by_seed():
    def run(walks, distance, search):
        return {"AUROC walks": walks, "AUROC distance": distance, "search": search}

    runs = {
        "VICReg": {0: run(0.6, 0.5, 0.30), 1: run(0.7, 0.6, 0.31), 2: run(0.8, 0.7, 0.33)},
        "SAG-VICReg": {0: run(0.5, 0.6, 0.20), 1: run(0.6, 0.9, 0.2101), 2: run(0.8, 0.7, 0.2299)},
        "raw pixels": {0: {"AUROC walks": 0.52}},
    }
    score, method, line = prose.line_reading(runs, [0.5, 0.9]).split("\n\n")
    assert "best is AUROC walks for VICReg and AUROC distance for SAG-VICReg" in score
    assert "raw pixels have 0.52 by AUROC walks." in score
    assert "over 3 seeds: AUROC walks -0.067 (p = 0.18), AUROC distance +0.133" in method  # t = -2 on 2 degrees
    assert "search differs at the 5 % level" in method  # -0.100 with a spread of 0.0001
    assert "from 0.50 to 0.90: more than" in line
    assert "**less** than" in prose.line_reading(runs, [0.5, 0.51])
