"""Sentences of a notebook that follow from its figures: each says what this run shows, or that it shows the opposite.

A notebook is a report on whatever its parameters ask for, so prose that names a figure is made from the figure. Every
function takes figures and returns Markdown; what holds for any run stays in the notebook's own text. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

CLEAR = 1.5  # times the best floor from which on a reader sees the difference without an interval [K]


def source(runs: Mapping[str, tuple[bool, str]]) -> str:
    """READ FROM A RECORD or TRAINED NOW, with what: by name of the run, whether it was read, and from or for where."""
    told = {True: [], False: []}
    for name, (read, where) in runs.items():
        told[read].append(f"{name} ({where})")
    lines = [
        f"**{title}**: {', '.join(told[read])}."
        for read, title in ((True, "READ FROM A RECORD"), (False, "TRAINED NOW"))
        if told[read]
    ]
    return "\n\n".join(lines)


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def purity_by_length(purity: Mapping[int, Mapping[str, float]], chance: Mapping[str, float]) -> str:
    """Of weighted purity by walk length: how far above chance the shortest walk ends, and what longer ones do."""
    shortest, longest = min(purity), max(purity)
    told = []
    for what, level in chance.items():
        near, far = purity[shortest][what], purity[longest][what]
        falls = "falls to" if far < near - 0.005 else "rises to" if far > near + 0.005 else "stays at"
        told.append(
            f"{what.capitalize()}: {near:.2f} after {shortest} step{'s' if shortest > 1 else ''}, "
            f"{near / level:.1f} times chance ({level:.2f}); it {falls} {far:.2f} after {longest}."
        )
    return " ".join(told)


def tour_verdict(
    table: Mapping[str, Mapping[str, float]],
    floors: Sequence[str],
    trained: Sequence[str],
    control: str,
    chance: float,
) -> str:
    """What the tour's table shows of its encoders against floors, chance and the control, and what it proves.

    Args:
        table: by row, with "Spearman" and "superclass purity".
        floors: rows that trained nothing.
        trained: rows of the two methods, the walking one last.
        control: row of random partners.
        chance: probability that two images share their superclass.
    """
    score = {name: row["Spearman"] for name, row in table.items()}
    best = max(floors, key=score.__getitem__)
    plain, walk = score[trained[0]], score[trained[-1]]
    lead = [score[name] / score[best] for name in trained]
    values = listed([f"{score[name]:.3f}" for name in trained])
    shows = "shows" if min(lead) >= CLEAR else "shows a little" if min(lead) > 1 else "does not show"
    first = (
        f"**Training {shows}.** Spearman of {listed(trained)} is {values}: {'only ' * (min(lead) <= 1)}"
        f"{listed([f'{ratio:.2f}' for ratio in lead])} times the best floor ({best}, {score[best]:.3f})."
    )
    pure = [table[name]["superclass purity"] for name in trained]
    others = [f"{table[name]['superclass purity']:.0%} by {name}" for name in floors]
    second = (
        f"Of the pairs that walks find, {listed([f'{p:.0%}' for p in pure])} join two images of one superclass, where "
        f"chance is {chance:.0%}: {'more' if min(pure) >= 2 * chance else '**not** more'} than twice as many; "
        f"{listed(others)}."
    )
    third = (
        f"The control, which pairs each image with a random one by the same weights, reaches {score[control]:.3f}; the "
        f"walks are {beside(walk, score[control])} it and {beside(walk, plain)} {trained[0]}."
    )
    alone = f"than the {best} alone hold{'' if best.endswith('s') else 's'}"
    beyond = {
        "shows": f"more of an order that other people made {alone}",
        "shows a little": f"part of an order that other people made, but hardly more of it {alone}",
        "does not show": f"**no** more of an order that other people made {alone}",
    }[shows]
    fourth = (
        f"**What this does and does not prove.** Two views of each picture, without a label, teach {beyond}; that "
        f"walks add to it is not proved, being {beside(walk, score[control])} random partners by one seed on few "
        "drawings: `figures/RESULTS.md` tests it on CIFAR-100 over seeds and controls."
    )
    return f"{first} {second}\n\n{third}\n\n{fourth}"


def beside(value: float, other: float, digits: int = 3) -> str:
    """How far a figure is above or below another: "0.012 above", or "level with" where rounding hides it."""
    gap = round(value - other, digits)
    return f"{abs(gap):.{digits}f} {'above' if gap > 0 else 'below'}" if gap else "level with"


def map_reading(own: Mapping[str, float], chance: float) -> str:
    """Of maps by name: the share of an image's ten nearest that are of its superclass, last against first."""
    (first, before), *_, (last, after) = own.items()
    told = "more" if after > before + 0.01 else "fewer" if after < before - 0.01 else "no more and no fewer"
    return (
        f"Of an image's ten nearest on the map, {before:.0%} share its superclass by {first} and {after:.0%} by {last} "
        f"(chance {chance:.0%}): {told}. Marks of one colour that lie together are what to look for."
    )


def edges_reading(same: int, edges: int, chance: float, what: str = "superclass") -> str:
    """Of the edges of a drawn graph: how many join two images of one superclass, beside chance."""
    return f"{same} of {counted(edges, 'edge')} join two images of one {what}: {against(same / edges, chance)}."


def row_reading(rho: float) -> str:
    """Of Spearman between the similarity of each image's nearest and the odds of stepping to it."""
    told = (
        "hardly follows the similarity to it: an image whose nearest is far away steps to it as surely as others"
        if abs(rho) < 0.3
        else f"{'follows' if rho > 0 else 'goes against'} the similarity to it, here"
    )
    return f"Each mark is an image. The probability of stepping to the nearest neighbour {told} (Spearman {rho:.2f})."


def path_reading(names: Sequence[str], groups: Sequence[str]) -> str:
    """Of a walk: where it begins and ends, and how many of its steps stay in the superclass of its start.

    Args:
        names: of the images along the path, the start first.
        groups: their superclasses.
    """
    stays = sum(group == groups[0] for group in groups[1:])
    end = "of the same superclass" if groups[-1] == groups[0] else f"of another superclass, *{groups[-1]}*"
    return (
        f"The walk begins at *{names[0]}* ({groups[0]}); {stays} of its {counted(len(names) - 1, 'step')} "
        f"{'leads' if stays == 1 else 'lead'} to that superclass. It ends at *{names[-1]}*, {end}."
    )


def moved(before: float, after: float, digits: int = 2, least: float = 0.02) -> str:
    """How a figure went: "falls from 0.47 to 0.34", "rises from ...", or "stays near 0.34" within a share `least`."""
    told = f"from {before:.{digits}f} to {after:.{digits}f}"
    if abs(after - before) <= least * max(abs(before), abs(after)):
        return f"stays near {after:.{digits}f}"
    return f"{'rises' if after > before else 'falls'} {told}"


def against(value: float, chance: float, digits: int = 2) -> str:
    """A share beside chance: "0.47, 1.4 times chance (0.33)", or that it is no better."""
    told = f"{value:.{digits}f}, "
    ratio = value / chance
    return (
        told + (f"{ratio:.1f} times chance" if ratio >= 1.05 else "no better than chance") + f" ({chance:.{digits}f})"
    )


def loss_course(loss: Mapping[int, float], ramp: tuple[float, float] | None) -> str:
    """Of the loss by epoch: where it went, and its largest rise from one epoch to the next.

    Args:
        loss: by epoch, in order.
        ramp: epochs between which the walk term comes in; None for a run without one.
    """
    epochs, values = list(loss), list(loss.values())
    if len(values) < 2:
        return f"One epoch, with a mean loss of {values[0]:.2f}: nothing to compare it with."
    whole = moved(values[0], values[-1], least=0.005)
    verdict = "" if values[-1] < values[0] else " **A loss that does not fall is a run that does not train.**"
    rises = {epoch: b / a - 1 for epoch, a, b in zip(epochs[1:], values[:-1], values[1:], strict=True) if b > a}
    if not rises:
        return f"The loss {whole} over {len(values)} epochs, and falls in every one of them.{verdict}"
    worst = max(rises, key=rises.__getitem__)
    told = f"The loss {whole} over {len(values)} epochs. Its largest rise is {rises[worst]:.1%}, in epoch {worst}"
    if ramp and ramp[0] < worst <= ramp[1] + 1:
        return f"{told}: there the walk term comes in, which was not part of the sum before.{verdict}"
    return f"{told}{', where no walk term comes in' if ramp else ''}.{verdict}"


def terms_course(terms: Mapping[str, Mapping[int, float]]) -> str:
    """Of each term by epoch (of those that have it, at least one): from where to where it went."""
    told = []
    for name, values in terms.items():
        (first, before), (last, after) = next(iter(values.items())), list(values.items())[-1]
        since = f" (from epoch {first} on)" if name == "walk" else ""
        went = moved(before, after, digits=3) if last > first else f"is {after:.3f} in its one epoch"
        told.append(f"the {name} term{since} {went}")
    text = listed(told)
    return f"{text[:1].upper()}{text[1:]}." if text else "The loss of this method has no terms of its own."


def readouts_course(loss: Mapping[int, float], readout: Mapping[int, float], what: str) -> str:
    """Of a readout taken at some epochs, beside the loss of the same epochs: whether they agree."""
    if len(readout) < 2:
        return f"This run's log has {len(readout)} readouts of {what}: too few to hold against the loss."
    first, last = min(readout), max(readout)
    better, fell = readout[last] > readout[first], loss[last] < loss[first]
    verdict = {
        (True, True): "Here both say the same.",
        (False, True): "**The loss falls and the embedding does not get better.**",
        (True, False): "The embedding gets better although the loss does not fall.",
        (False, False): "Neither gets better.",
    }[better, fell]
    return (
        f"Between epochs {first} and {last} the loss {moved(loss[first], loss[last], least=0.005)} and {what} "
        f"{moved(readout[first], readout[last], digits=3)}. {verdict}"
    )


def groups_reading(own: Mapping[str, float], chance: Mapping[str, float], what: str = "superclass") -> str:
    """Of superclasses (or `what`) by name, best first: the share of near neighbours of their own, extremes named."""
    names = list(own)
    best, worst = names[0], names[-1]
    above = sum(own[name] > 2 * chance[name] for name in names)
    return (
        f"Of an image's ten nearest, the share of its own {what} is largest for *{best}*: "
        f"{against(own[best], chance[best])}; and least for *{worst}*: {against(own[worst], chance[worst])}. "
        f"{above} of {counted(len(names), what, f'{what}es')} {'is' if above == 1 else 'are'} above twice chance."
    )


def before_after(
    spearman: tuple[tuple[float, float, float], tuple[float, float, float]] | None, knn: tuple[float, float]
) -> str:
    """What training did to rank correlation, each as (value, low, high), and to kNN accuracy, before and after."""
    told = []
    if spearman:
        (before, _, top), (after, bottom, _) = spearman
        told.append(f"Rank correlation over image pairs {moved(before, after)}.")
        if after > before:
            apart = bottom > top
            told.append(f"The two intervals {'do not touch' if apart else '**overlap**: this may be chance'}.")
        else:
            told.append("**Training did not raise it.**")
    else:
        told.append("These classes have no reference distances, hence no rank correlation.")
    told.append(f"kNN accuracy {moved(100 * knn[0], 100 * knn[1], digits=0)} per cent.")
    return " ".join(told)


def doctor_reading(names: Sequence[str]) -> str:
    """What the doctor found, by the names of its diagnoses."""
    if not names:
        return "Nothing is found. That is the absence of the failures of section 8 and no more."
    return f"**The doctor finds {listed(list(names))}**; section 8 says what that means."


def schedule(warmup: float, epochs: int, method: str, walk: tuple[str, str] | None) -> str:
    """How learning rate and walk term go over a run.

    Args:
        warmup: epochs over which the rate rises.
        epochs: of the run.
        method: its name.
        walk: share of the run before the walk term, and share in which it rises; None for a run without one.
    """
    first = "the first" if warmup == 1 else f"the first {warmup:g}"
    rate = f"The learning rate rises over {first} of {counted(epochs, 'epoch')} and then falls along half a cosine."
    if walk is None:
        return f"{rate} A run of {method} has no walk term, and so no second line."
    return (
        f"{rate} The walk term is off for the first {walk[0]} of the run, because the neighbours of an untrained "
        f"encoder are noise, and then rises within {walk[1]} of it. So it is strongest while the steps become small: "
        "it refines an embedding and does not make one. When it starts and how fast it rises are this kit's decisions; "
        "the paper's abstract does not say (`figures/METHOD.md`)."
    )


def counted(n: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 edge", "2,000 edges"."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def counted_first(n: int, one: str) -> str:
    """The same at the beginning of a sentence: "No files", "1 file"."""
    return counted(n, one) if n else f"No {one}s"


def beside_baselines(structure: Mapping[str, Mapping[str, float]], precision: Mapping[str, float]) -> str:
    """What an encoder's label-free score is beside raw pixels', by their intervals, and its precision beside theirs."""
    own, raw = structure["this encoder"], structure["raw pixels"]
    told = f"Structure of this encoder is {own['label_free']:.2f}, of raw pixels {raw['label_free']:.2f}: "
    if own["label_free_low"] > raw["label_free_high"]:
        told += "above, with intervals that do not touch."
    elif own["label_free_high"] < raw["label_free_low"]:
        told += "**below raw pixels**, with intervals that do not touch: this encoder is no help here."
    else:
        told += "**the intervals overlap**, so nothing is shown."
    if precision:
        others = [f"{value:.2f} by {name}" for name, value in precision.items() if name != "this encoder"]
        told += f" Of a picture's ten nearest {precision['this encoder']:.2f} share its class folder, {listed(others)}."
    return told


def areas_reading(auroc: Mapping[str, Mapping[str, float]], kinds: Mapping[str, Mapping[str, float]]) -> str:
    """Of AUROC by embedding and score: the best score of this encoder and of raw pixels; and the hardest kind."""
    if not auroc:
        return "Without known anomalies there is no AUROC: scores rank pictures, and a look decides."
    own, raw = auroc["this encoder"], auroc["raw pixels"]
    best, plain = max(own, key=own.__getitem__), max(raw, key=raw.__getitem__)
    told = f"Best by this encoder is {best}, {own[best]:.2f}; by raw pixels {plain}, {raw[plain]:.2f}."
    if kinds:
        mean = {kind: sum(of.values()) / len(of) for kind, of in kinds.items()}
        hardest = min(mean, key=mean.__getitem__)
        told += f" Hardest are the pictures of kind *{hardest}* ({mean[hardest]:.2f} on average over scores)."
    return told


def vectors_reading(figures: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    """Of kNN by set and embedding: whether a trained encoder is above raw values, and above an untrained one."""
    told = []
    for name in dict.fromkeys(of for of, _ in figures):
        best = max(figures[name, method]["knn"] for method in ("vicreg", "sag-vicreg"))
        raw, untrained = figures[name, "raw values"]["knn"], figures[name, "untrained"]["knn"]
        over = [
            what for what, value in (("raw values", raw), ("an untrained network", untrained)) if best > value + 0.02
        ]
        told.append(
            f"{name.capitalize()}: kNN {best:.2f} by the better trained encoder, {raw:.2f} by raw values, "
            f"{untrained:.2f} untrained; training is "
            + (f"clearly above {listed(over)}." if over else "**not clearly above either**.")
        )
    return " ".join(told)


def line_reading(runs: Mapping[str, Mapping[int, Mapping[str, float]]], by_line: Sequence[float]) -> str:
    """Of anomalies on a line: the best score, SAG-VICReg beside VICReg by seed, and what the choice of the line moves.

    Args:
        runs: by embedding and seed, the mean over all lines of each figure, by title; AUROC among them.
        by_line: AUROC of one score by line, the mean over VICReg's seeds.
    """
    from scipy.stats import (
        ttest_1samp,
    )  # here, because `explore` imports this room and not scipy.stats, a second's work

    mean = {
        name: {title: fmean(run[title] for run in of.values()) for title in of[min(of)]} for name, of in runs.items()
    }
    scores = [title for title in mean["VICReg"] if title.startswith("AUROC")]
    best = {name: max(scores, key=row.__getitem__) for name, row in mean.items() if row.keys() >= set(scores)}
    where = {
        title: listed([name for name, own in best.items() if own == title]) for title in dict.fromkeys(best.values())
    }
    raw = [f"{mean['raw pixels'][title]:.2f} by {title}" for title in scores if title in mean["raw pixels"]]
    told = [
        f"**The score.** Of {len(scores)}, best is "
        + listed([f"{title} for {names}" for title, names in where.items()])
        + f"; raw pixels have {listed(raw)}"
    ]
    seeds = sorted(runs["VICReg"].keys() & runs["SAG-VICReg"].keys())
    gaps = {t: [runs["SAG-VICReg"][seed][t] - runs["VICReg"][seed][t] for seed in seeds] for t in mean["VICReg"]}
    p = {title: float(ttest_1samp(gap, 0).pvalue) if any(gap) else 1.0 for title, gap in gaps.items()}
    sure = [title for title in gaps if p[title] * len(gaps) < 0.05]
    differ = f"{listed(sure)} {'differs' if len(sure) == 1 else 'differ'}" if sure else "none differs"
    told.append(
        f"**The method.** SAG-VICReg less VICReg, over {counted(len(seeds), 'seed')}: "
        + listed([f"{title} {fmean(gap):+.3f} (p = {p[title]:.2g})" for title, gap in gaps.items()])
        + f". With Bonferroni's correction for {len(gaps)} figures, {differ} at the 5 % level"
    )
    widest = max(abs(fmean(gap)) for title, gap in gaps.items() if title in scores)
    reach = max(by_line) - min(by_line)
    told.append(
        f"**The line.** From the hardest to the easiest line VICReg's AUROC goes from {min(by_line):.2f} to "
        f"{max(by_line):.2f}: {'more' if reach > widest else '**less**'} than the largest difference of the two "
        f"methods, {widest:.3f}"
    )
    return ".\n\n".join(told) + "."
