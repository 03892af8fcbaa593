"""The line study: fair draws, figures of one line against loops, and a record that is continued and read."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from sagkit.__main__ import main as sagkit
from sagkit.data.load import ImageSet
from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES, superclasses
from sagkit.model import make_encoder
from sagkit.studies import line as lining
from sagkit.studies.line import (
    Judged,
    Line,
    encoders,
    first_of_each,
    line_figures,
    line_table,
    lines,
    main,
    summary,
)
from sagkit.train.record import save_encoder, write_record

GROUP = torch.as_tensor(superclasses("cifar100")[1])


def test_over_twenty_draws_every_superclass_is_odd_once_and_usual_four_times():
    drawn = lines()
    assert Counter(line.odd for line in drawn) == Counter(range(20))
    assert Counter(s for line in drawn for s in line.usual) == Counter(dict.fromkeys(range(20), 4))
    assert all(line.odd not in line.usual for line in drawn)
    assert drawn == lines()
    assert drawn != lines(seed=1)
    assert lines(7) == drawn[:7]


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 21}, {"makes": 20}, {"makes": 0}])
def test_impossible_draws_are_refused(arguments):
    with pytest.raises(ValueError, match="choose 1 to 20 lines of 1 to 19"):
        lines(**arguments)


def judged(n: int, seed: int) -> Judged:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(100, (n,), generator=generator)
    place = torch.randn(20, 6, generator=torch.Generator().manual_seed(9))
    return Judged(place[GROUP[labels]] + torch.randn(n, 6, generator=generator), labels, GROUP[labels])


def test_the_figures_of_a_line_are_those_of_loops():
    bank, queries, line = judged(600, 0), judged(300, 1), Line((2, 5, 11, 17), 8)
    found = line_figures(bank, queries, line)
    x = bank.features.double().numpy()
    kept = [i for i in range(600) if int(bank.group[i]) in line.usual]
    centre = x[kept].mean(axis=0)

    def cosine(a, b):
        return float((a - centre) @ (b - centre) / np.linalg.norm(a - centre) / np.linalg.norm(b - centre))

    scores, shares = {True: [], False: []}, {"class": [], "superclass": []}
    for q in range(300):
        if int(queries.group[q]) not in (*line.usual, line.odd):
            continue
        near = sorted(kept, key=lambda i: -cosine(queries.features[q].double().numpy(), x[i]))
        odd = int(queries.group[q]) == line.odd
        scores[odd].append(1 - cosine(queries.features[q].double().numpy(), x[near[4]]))
        if not odd:
            shares["class"].append(np.mean([bank.labels[i] == queries.labels[q] for i in near[:10]]))
            shares["superclass"].append(np.mean([bank.group[i] == queries.group[q] for i in near[:10]]))
    wins = [(a > b) + 0.5 * (a == b) for a in scores[True] for b in scores[False]]
    assert found["auroc_neighbours"] == pytest.approx(np.mean(wins), abs=1e-3)
    assert found["precision_class"] == pytest.approx(np.mean(shares["class"]), abs=1e-3)
    assert found["precision_superclass"] == pytest.approx(np.mean(shares["superclass"]), abs=1e-3)
    assert found.keys() == lining.FIGURES.keys()
    assert line_figures(bank, queries, line, ("walks",)).keys() == {
        "auroc_walks", "precision_class", "precision_superclass"
    }  # fmt: skip


def test_a_table_takes_means_over_lines_and_then_intervals_over_seeds_and_pairs_them():
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(size=(3, 2)) for name in ("vicreg", "sag-vicreg")}
    rows = [
        {"encoder": name, "seed": seed, "lines": [dict.fromkeys(lining.FIGURES, float(v)) for v in of[seed]]}
        for name, of in values.items()
        for seed in range(3)
    ]
    rows.append({"encoder": "raw-pixels", "seed": 0, "lines": [{"auroc_walks": 0.25}, {"auroc_walks": 0.75}]})
    shown = line_table({"rows": rows})
    assert shown.loc["raw pixels", "AUROC walks"] == "0.500"
    assert shown.loc["raw pixels", "AUROC Mahalanobis"] == "not run"

    def interval(x):
        return f"{student.ppf(0.975, 2) * x.std(ddof=1) / 3**0.5:.3f}"

    per_seed = {name: of.mean(axis=1) for name, of in values.items()}
    plain, change = per_seed["vicreg"], per_seed["sag-vicreg"] - per_seed["vicreg"]
    assert shown.loc["VICReg", "AUROC neighbours"] == f"{plain.mean():.3f} ± {interval(plain)}"
    assert shown.iloc[-1]["precision@10 class"] == f"{change.mean():+.3f} ± {interval(change)}"
    record = {"rows": rows, "drawn": [1, 2], "per_class": 3, "processor": "p", "command": "c", "commit": "0123456789ab"}
    assert "2 draws" in summary(record)
    assert "the anomalies among them" in summary(record)


def cifar(n: int, seed: int) -> ImageSet:
    labels = torch.arange(100).repeat(n)
    names = tuple(sorted(name for members in CIFAR100_SUPERCLASSES.values() for name in members.split()))
    images = torch.randint(256, (len(labels), 3, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
    return ImageSet(images, labels, names)


def test_the_first_images_of_each_class_make_the_bank():
    images = cifar(5, 0)
    kept = first_of_each(images, 2)
    assert torch.bincount(kept.labels).tolist() == [2] * 100
    assert torch.equal(kept.images, images.images[:200])  # classes follow each other five times
    with pytest.raises(ValueError, match="at least 1 image of each class, got 0"):
        first_of_each(images, 0)


@pytest.mark.slow
def test_the_study_reads_stored_encoders_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    sets = {"train": cifar(4, 0), "test": cifar(2, 1)}
    monkeypatch.setattr(lining, "load_images", lambda name, split: sets[split])
    for method, variant, seed in (("vicreg", "default", 0), ("vicreg", "queue", 0), ("sag-vicreg", "default", 1)):
        name = method if variant == "default" else f"{method}-{variant}"
        path = tmp_path / "laptop" / f"{name}-seed{seed}.json"
        write_record(path, {"method": method, "variant": variant, "seed": seed})
        save_encoder(path.with_suffix(".safetensors"), make_encoder("resnet10-w4"), "resnet10-w4")
    (tmp_path / "laptop" / "sag-vicreg-seed1.safetensors").unlink()
    found = encoders(str(tmp_path / "laptop"), ("vicreg", "raw-pixels", "sag-vicreg"))
    assert list(found) == [("vicreg", 0), ("raw-pixels", 0)]
    out, judged_names, judge = tmp_path / "line.json", [], lining.judge_lines

    def watched(encoder, *rest):
        judged_names.append(type(encoder).__name__)
        if len(judged_names) == 2:
            raise KeyboardInterrupt
        return judge(encoder, *rest)

    monkeypatch.setattr(lining, "judge_lines", watched)
    with pytest.raises(KeyboardInterrupt):
        main(str(tmp_path / "laptop"), str(out), draws=2, per_class=3)
    assert [row["encoder"] for row in json.loads(out.read_text())["rows"]] == ["vicreg"]
    main(str(tmp_path / "laptop"), str(out), draws=2, per_class=3)
    assert judged_names == ["Encoder", "Flatten", "Flatten"]  # what was judged is not judged again
    record = json.loads(out.read_text())
    assert [(row["encoder"], len(row["lines"])) for row in record["rows"]] == [("vicreg", 2), ("raw-pixels", 2)]
    assert "auroc_Mahalanobis" not in record["rows"][1]["lines"][0]
    main(str(tmp_path / "laptop"), str(out), draws=3, per_class=3)  # other draws: another study
    assert len(judged_names) == 5
    said = capsys.readouterr().out
    assert "raw pixels" in said
    assert f"no stored encoder of sag-vicreg, vicreg-random in {tmp_path / 'laptop'}: left out" in said
    monkeypatch.setattr(lining, "load_encoder", lambda path: make_encoder("resnet10-w4").eval())
    write_record(tmp_path / "other/vicreg-seed0.json", {"method": "vicreg", "variant": "default", "seed": 0})
    (tmp_path / "other/vicreg-seed0.safetensors").write_bytes(b"")
    main(str(tmp_path / "other"), str(out), draws=3, per_class=3)  # other encoders: another study
    assert len(judged_names) == 7
    with pytest.raises(SystemExit, match=r"^sagkit study line: 21 lines of 4 superclasses"):
        sagkit(["study", "line", "--draws", "21"])
