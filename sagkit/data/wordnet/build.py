"""Cut the part of WordNet's noun taxonomy that lies above CIFAR's classes, and write it as `taxonomy.tsv`.

    apt-get install wordnet-base && python -m sagkit.data.wordnet.build /usr/share/wordnet

Each class has one synset, chosen by eye: the sense that fits the data set's pictures and its own superclass. Where that
is not the first sense of the word, `SENSES` says which; the gloss of every choice stands in the table for review.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sagkit.data.files import write_text
from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES

CIFAR100 = sorted(" ".join(CIFAR100_SUPERCLASSES.values()).split())
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

SENSES = {  # class: (lemma, sense number); all others are the first sense of their own name
    "aquarium_fish": ("goldfish", 1),
    "beaver": ("beaver", 7),  # the rodent, not its fur
    "bowl": ("bowl", 3),  # the dish; the first sense is any round vessel
    "castle": ("castle", 2),  # the fortress, not the mansion
    "cloud": ("cloud", 2),  # in the sky
    "dolphin": ("dolphin", 2),  # the whale, not the fish
    "flatfish": ("flatfish", 2),  # the fish, not its flesh
    "forest": ("forest", 2),  # the land, beside plain and mountain; the first sense is a collection of plants
    "girl": ("girl", 2),  # the child, as `boy`
    "keyboard": ("computer_keyboard", 1),
    "lamp": ("lamp", 2),  # the furnishing that holds bulbs
    "leopard": ("leopard", 2),  # the cat, not its pelt
    "lobster": ("lobster", 2),  # the animal, not its flesh
    "maple_tree": ("maple", 2),
    "mushroom": ("mushroom", 5),  # the edible body, as the data set's superclass "fruit and vegetables" has it
    "oak_tree": ("oak", 2),
    "otter": ("otter", 2),  # the animal, not its fur
    "palm_tree": ("palm", 3),
    "pickup_truck": ("pickup", 1),
    "pine_tree": ("pine", 1),
    "plate": ("plate", 4),  # the dish
    "raccoon": ("raccoon", 2),  # the animal, not its fur
    "ray": ("ray", 7),  # the fish
    "seal": ("seal", 9),  # the animal
    "shrew": ("shrew", 2),
    "skunk": ("skunk", 4),
    "sweet_pepper": ("sweet_pepper", 2),  # the vegetable, beside the fruits; the first sense is the plant
    "table": ("table", 2),  # the furniture
    "television": ("television", 3),  # the set
    "tiger": ("tiger", 2),  # the cat
    "trout": ("trout", 2),  # the fish, not its flesh
    "turtle": ("turtle", 2),  # the reptile, not the sweater
    "whale": ("whale", 2),
    "willow_tree": ("willow", 1),
}


def read_nouns(folder: Path) -> tuple[dict, dict, dict]:
    """WordNet's noun files as (synset offsets by lemma, words by offset, (hypernyms, gloss) by offset)."""
    senses, words, nodes = {}, {}, {}
    for line in (folder / "index.noun").read_text().splitlines():
        if not line.startswith("  "):  # the licence
            fields = line.split()
            senses[fields[0]] = fields[4 + int(fields[3]) + 2 :]
    for line in (folder / "data.noun").read_text().splitlines():
        if not line.startswith("  "):
            left, _, gloss = line.partition(" | ")
            fields = left.split()
            count = int(fields[3], 16)
            words[fields[0]] = [fields[4 + 2 * i] for i in range(count)]
            rest = fields[5 + 2 * count :]
            pointers = [rest[i : i + 4] for i in range(0, len(rest), 4)]
            nodes[fields[0]] = ([p[1] for p in pointers if p[0] in ("@", "@i")], gloss.strip())
    return senses, words, nodes


def main(folder: str) -> None:
    """Write `taxonomy.tsv` beside this file from the `dict` folder of WordNet 3."""
    senses, words, nodes = read_nouns(Path(folder))

    def name(offset: str) -> str:  # the first word and the offset: readable, and unique
        return f"{words[offset][0]}.{offset}"

    lines, seen = [], set()
    for data, classes in (("cifar100", CIFAR100), ("cifar10", CIFAR10)):
        for label in classes:
            lemma, sense = SENSES.get(label, (label, 1))
            offset = senses[lemma][sense - 1]
            lines.append("\t".join((data, label, name(offset), nodes[offset][1])))
            seen.add(offset)
    queue = sorted(seen)
    while queue:
        offset = queue.pop()
        for parent in nodes[offset][0]:
            lines.append("\t".join(("is-a", name(offset), name(parent), "")))
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    out = Path(__file__).with_name("taxonomy.tsv")
    write_text(out, "\n".join(lines) + "\n")
    print(f"{out}: {len(lines)} lines, {len(seen)} synsets")


if __name__ == "__main__":
    main(*sys.argv[1:])
