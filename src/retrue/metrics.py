"""How good a classifier is, with honest intervals, and how far its probabilities can be believed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Quality:
    """What was right and wrong on `n` labelled rows; `confusion[i][j]` counts rows of labels[i] taken for labels[j]."""

    n: int
    accuracy: float
    low: float
    high: float
    f1_macro: float
    f1: dict[str, float]
    confusion: list[list[int]]
    labels: list[str]


def quality(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Quality:
    """Accuracy with its exact 95 % interval (Clopper and Pearson 1934), F1 per label, and the confusion matrix.

    A label that neither occurs nor is predicted has an F1 of 0. ValueError where there are no rows, where the two
    columns differ in length, or where a value is not one of `labels`.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true labels and {len(predicted)} predicted ones: give one of each per row")
    if not truth:
        raise ValueError("there are no labelled rows to judge: wait until labels have arrived")
    place = {label: i for i, label in enumerate(labels)}
    if not place.keys() >= {*truth, *predicted}:
        raise ValueError("a row's label is not one of the given labels: give every label that occurs")
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, ([place[x] for x in truth], [place[x] for x in predicted]), 1)
    hits = np.diagonal(confusion)
    f1 = 2 * hits / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    n, right = len(truth), int(hits.sum())
    low, high = interval(right, n)
    return Quality(
        n=n,
        accuracy=right / n,
        low=low,
        high=high,
        f1_macro=float(f1.mean()),
        f1=dict(zip(labels, f1.tolist(), strict=True)),
        confusion=confusion.tolist(),
        labels=list(labels),
    )


def interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson 1934) from quantiles of the beta distribution."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} rows is no share: give 0 <= successes <= n with n > 0")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of logits along the last axis."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def fit_temperature(logits: NDArray[Any], truth: NDArray[Any]) -> float:
    """The temperature between 0.05 and 20 that makes softmax(logits / temperature) likeliest (Guo et al. 2017, 4.2).

    `logits` is (n, C) and `truth` (n,) holds the column of each row's true label. The mean log loss is convex in
    1 / temperature, so its slope is bisected until the temperature is known to 12 digits.
    """
    z, y = _rows(logits, truth)
    of_truth = z[np.arange(len(y)), y]
    low, high = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
    while high - low > 1e-12:
        middle = (low + high) / 2
        expected = (softmax(z * math.exp(middle)) * z).sum(axis=1)
        if (expected - of_truth).mean() < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def calibration_error(probabilities: NDArray[Any], truth: NDArray[Any], bins: int = 15) -> float:
    """The expected calibration error of the winning class over equal bins of confidence (Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, truth, bins)
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in found) / sum(bin.count for bin in found)


def _rows(values: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    table, y = np.asarray(values, dtype=np.float64), np.asarray(truth)
    if table.ndim != 2 or y.shape != table.shape[:1] or not len(y):
        raise ValueError(f"values of shape {table.shape} and truth of shape {y.shape}: give (n, C) and (n,) with n > 0")
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite: give the classifier's own numbers")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= table.shape[1]:
        raise ValueError(f"truth must hold whole numbers from 0 to {table.shape[1] - 1}")
    return table, y.astype(np.int64)


@dataclass(frozen=True)
class Bin:
    """The `count` rows whose winning class got a probability in (low, high]; the other two are their means."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: NDArray[Any], truth: NDArray[Any], bins: int = 15) -> list[Bin]:
    """The reliability diagram over equal bins of confidence (Guo et al. 2017, eq. 1 and 2); empty bins are left out."""
    scores, y = _rows(probabilities, truth)
    confidence = scores.max(axis=1)
    right = scores.argmax(axis=1) == y
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return [
        Bin(k / bins, (k + 1) / bins, float(confidence[own].mean()), float(right[own].mean()), int(own.sum()))
        for k in range(bins)
        if (own := bin_of == k).any()
    ]


@dataclass(frozen=True)
class Slice:
    """Accuracy with its exact 95 % interval on the `n` rows of one part, such as by "label" the part "positive"."""

    by: str
    part: str
    n: int
    accuracy: float
    low: float
    high: float


def slices(right: NDArray[np.bool_], parts: Mapping[str, Mapping[str, NDArray[np.bool_]]]) -> list[Slice]:
    """What a model gets right on parts of the rows: `right` (n,) row by row, `parts` by what they are cut by.

    Each part is a mask (n,). An empty part is left out, and so is a cut into a single part: it says what all rows say.
    """
    found = []
    for by, masks in parts.items():
        filled = {part: mask for part, mask in masks.items() if mask.any()}
        for part, mask in filled.items() if len(filled) > 1 else ():
            n, hits = int(mask.sum()), int(right[mask].sum())
            found.append(Slice(by, part, n, hits / n, *interval(hits, n)))
    return found


def groups(values: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """The rows of each value, as masks, by the value's alphabetical order."""
    column = np.array(values, dtype=object)
    return {value: np.asarray(column == value) for value in sorted(set(values))}


def terciles(lengths: Sequence[int], unit: str) -> dict[str, NDArray[np.bool_]]:
    """The shortest, the middle and the longest third of the rows, as masks, named by their limits."""
    values = np.asarray(lengths)
    low, high = (int(value) for value in np.quantile(values, [1 / 3, 2 / 3], method="inverted_cdf"))
    return {
        f"up to {low:,} {unit}": values <= low,
        f"{low + 1:,} to {high:,} {unit}": (values > low) & (values <= high),
        f"over {high:,} {unit}": values > high,
    }
