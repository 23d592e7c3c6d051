"""Do explanations point at the words that decide? Reviews whose opinion people turned by changing a few words tell.

Of each pair the words that differ should speak for the label of their own side. Leaving a word out is compared with
putting [MASK] in its place, and all words with what is found in fewer runs. The table goes into docs/benchmarks.md.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import page
import pyarrow.parquet as pq
from pools import model
from scipy.stats import rankdata
from tqdm import tqdm

from retrue import explanation
from retrue.classifier import Classifier

LABELS = ["negative", "positive"]
RUNS = (32, 64)
FEW = 3  # words of a text that weigh most


@dataclass
class Found:
    """What one way of taking words away says of many texts: a weight for the text's own label, word by word."""

    weights: list[float]
    changed: list[bool]
    runs: list[int]
    first: list[bool]  # of the words that weigh most, which were changed

    def row(self, name: str) -> list[str]:
        weights, changed = np.array(self.weights), np.array(self.changed)
        right = weights > 0
        ranks = rankdata(weights)
        ours, others = changed.sum(), (~changed).sum()
        area = (ranks[changed].sum() - ours * (ours + 1) / 2) / (ours * others)
        figures = [right[changed].mean(), right[~changed].mean(), changed.mean(), np.mean(self.first)]
        return [name, *(f"{each:.1%}" for each in figures), f"{area:.3f}", f"{np.mean(self.runs):.0f}"]


def main() -> None:
    """Explain both sides of every pair, and write the page."""
    asked = arguments()
    data = Path(os.environ["RETRUE_DATA"])
    classifier = Classifier.open(model(data))
    texts = list(pairs(data, classifier, asked.pairs))
    ways = ("left out", "[MASK]", *(f"left out, {runs} runs" for runs in RUNS))
    found = {way: Found([], [], [], []) for way in ways}
    for text, label, changed in tqdm(texts, disable=None):
        for way, into in found.items():
            note(classifier, text, label, changed, way, into)
    words = sum(len(changed) for _, _, changed in texts)
    text = "\n\n".join(
        [
            f"{len(texts)} reviews of {asked.pairs} pairs, {words:,} words; the model ({classifier.card.encoder}, "
            f"{classifier.card.precision}) reads each to its end. A word is right where the label of its review is "
            f"less probable without it. With fewer runs the words are those that were looked at alone.",
            page.table(
                ["", "changed words right", "other words right", "changed, of all", f"changed, of the {FEW} heaviest",
                 "area under the curve", "runs a text"],
                [into.row(way) for way, into in found.items()],
            ),
        ]
    )  # fmt: skip
    sys.stdout.write(text + "\n")
    page.put("explain", f"{text}\n\n{page.made_by()}", asked.page)


def pairs(data: Path, classifier: Classifier, most: int) -> Iterator[tuple[str, str, list[bool]]]:
    """Both sides of pairs that the model reads to their ends and gets right: text, label, and which words differ."""
    rows = pq.read_table(data / "redistributable/imdb_counterfactual.parquet").to_pylist()
    sides: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        sides.setdefault(str(row["id"]).rpartition("-")[0], []).append(row)
    order = sorted(name for name, both in sides.items() if len(both) == 2)
    taken = 0
    for place in np.random.default_rng(0).permutation(len(order)):
        both = [(str(row["text"]), LABELS[int(str(row["label"]))]) for row in sides[order[place]]]
        said = [classifier.score(text) for text, _ in both]
        if any(one.truncated or one.label != label for one, (_, label) in zip(said, both, strict=True)):
            continue
        split = [[text[start:end].lower() for start, end in explanation.words(text)] for text, _ in both]
        matched = difflib.SequenceMatcher(None, *split, autojunk=False).get_matching_blocks()
        for side, (text, label) in enumerate(both):
            same = {block[side] + k for block in matched for k in range(block.size)}
            yield text, label, [k not in same for k in range(len(split[side]))]
        taken += 1
        if taken == most:
            return


def note(classifier: Classifier, text: str, label: str, changed: list[bool], way: str, into: Found) -> None:
    """Add what one way of taking words away says of a text."""
    places = explanation.words(text)
    if way == "[MASK]":
        whole = classifier.score(text).scores[label]
        weights = {
            start: whole - classifier.score(f"{text[:start]}[MASK]{text[end:]}").scores[label] for start, end in places
        }
        into.runs.append(len(places) + 1)
    else:
        runs = int(way.split()[2]) if "," in way else len(places) + 1
        told = explanation.explain(lambda texts: [found.scores for found in classifier.score_many(texts)], text, runs)
        weights = {part.start: part.weight if told.label == label else -part.weight for part in told.words}
        into.runs.append(told.runs)
    is_changed = dict(zip((start for start, _ in places), changed, strict=True))
    for start, weight in weights.items():
        into.weights.append(weight)
        into.changed.append(is_changed[start])
    into.first += [is_changed[start] for start in sorted(weights, key=lambda one: -weights[one])[:FEW]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=100, help="pairs of reviews")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the table goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
