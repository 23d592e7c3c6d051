"""How good a classifier is and how much better than another, with honest intervals; how far it can be believed.

Two classifiers that answered the same rows differ only where one was right and the other wrong. `gained` counts the
rows that the first alone got right, `lost` those that the second alone did.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv, ndtri

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
BINS = 15
DRAWS = 2_000


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
    true, said = (np.array([place[label] for label in column]) for column in (truth, predicted))
    confusion = _confusion(true, said, len(labels))
    hits, f1 = np.diagonal(confusion), _f1(confusion)
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


def macro_f1(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> float:
    """The mean of the F1 of each label, where labels are numbers from 0 to `classes` - 1."""
    return float(_f1(_confusion(truth, predicted, classes)).mean())


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


def calibration_error(probabilities: NDArray[Any], truth: NDArray[Any], bins: int = BINS) -> float:
    """The expected calibration error of the winning class over equal bins of confidence (Guo et al. 2017, eq. 3)."""
    bin_of, gap = _gaps(probabilities, truth, bins)
    return float(np.abs(np.bincount(bin_of, weights=gap, minlength=bins)).sum() / len(gap))


def calibration_samples(
    scores: Sequence[NDArray[Any]], truth: NDArray[Any], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The expected calibration errors of classifiers on the same `draws` resamples of the rows; (classifiers, draws).

    Rows that are in the same bins, and right or wrong alike, in every classifier are one cell, which stands for them
    with the mean of their confidences.
    """
    bins, gaps = zip(*(_gaps(table, truth, BINS) for table in scores), strict=True)
    columns = [2 * bin_of + (gap > 0) for bin_of, gap in zip(bins, gaps, strict=True)]
    cells, place, counts = _cells(2 * BINS, columns)
    resampled = rng.multinomial(len(truth), counts / len(truth), size=draws).astype(np.float64)
    errors = []
    for cell, gap in zip(cells, gaps, strict=True):
        of_bin = np.zeros((len(cell), BINS))
        of_bin[np.arange(len(cell)), cell // 2] = np.bincount(place, weights=gap) / counts
        errors.append(np.abs(resampled @ of_bin).sum(axis=1) / len(truth))
    return np.array(errors)


def win_chance(won: int, of: int) -> float:
    """The chance to win at least so many of fair coin tosses.

    With `won` the gained rows of those on which two classifiers differ, this is the exact one-sided p of McNemar (1947)
    for the first being no better than the second.
    """
    return float(bdtrc(won - 1, of, 0.5)) if won else 1.0


def difference(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided score interval of the difference of two paired accuracies (Tango 1998, Stat. Med. 17, 891-908).

    It stays honest with few rows that differ, where the textbook's normal interval shrinks to a point.
    """
    return _lowest_difference(gained, lost, n, confidence), -_lowest_difference(lost, gained, n, confidence)


def rows_to_show(gained: int, lost: int, n: int, floor: float, confidence: float = 0.95) -> int | None:
    """How many rows with these shares would put the lower end of the interval at `floor`; None where none would.

    With the shares held, the score grows as the square root of the number of rows.
    """
    score = _score(gained, lost, n, floor)
    return math.ceil(n * (float(ndtri((1 + confidence) / 2)) / score) ** 2) if score > 0 else None


def f1_samples(
    predicted: Sequence[NDArray[Any]], truth: NDArray[Any], classes: int, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The macro F1 of classifiers on the same `draws` resamples of the rows (Efron 1979); (classifiers, draws).

    Labels are numbers from 0 to `classes` - 1. Rows that agree in the truth and in every answer are one cell, so a
    resample is one draw from a multinomial.
    """
    cells, _, counts = _cells(classes, [truth, *predicted])
    return np.array([one.mean(axis=1) for one in _f1_draws(cells, counts, classes, draws, rng)])


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float


def f1_intervals(
    confusion: Sequence[Sequence[int]], seed: int, draws: int = DRAWS, confidence: float = 0.95
) -> tuple[Estimate, list[Estimate]]:
    """Macro F1 and the F1 of each label with intervals, from counts (C, C) of rows by true and by predicted label.

    Rows are resampled `draws` times and the quantiles of what comes out are taken (Efron 1979): a resample of the rows
    is a multinomial draw of the counts. A label with few rows gets a wide interval, which may still be too narrow; one
    without any has 0 to 0. ValueError where there are no rows or the table is not square.
    """
    table = np.asarray(confusion, dtype=np.int64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.sum() == 0:
        raise ValueError(f"counts of shape {table.shape}: give (C, C) with at least one row in them")
    cells = np.nonzero(table)
    (drawn,) = _f1_draws(cells, table[cells], len(table), draws, np.random.default_rng(seed))
    drawn = np.column_stack([drawn.mean(axis=1), drawn])
    values = [float(_f1(table).mean()), *_f1(table).tolist()]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()
    macro, *labels = (Estimate(*one) for one in zip(values, low, high, strict=True))
    return macro, labels


def estimated_accuracy(probabilities: NDArray[Any]) -> float:
    """The accuracy that a model expects of itself without a label: the mean of its winning probabilities (n, C).

    Confidence-based estimation, also known as average confidence (Hendrycks and Gimpel 2017). It holds where the
    probabilities are calibrated on texts like these: the mix of texts may change, the meaning of a text may not. Where
    texts are of a new kind, confidence and accuracy part, and mostly it promises too much. So it is advice where labels
    are missing, and no ground for an alarm or for promoting a model. ValueError where there are no rows.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"probabilities of shape {table.shape}: give (n, C) with n > 0")
    return float(table.max(axis=1).mean())


@dataclass(frozen=True)
class Bin:
    """The `count` rows whose winning class got a probability in (low, high]; the other two are their means."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: NDArray[Any], truth: NDArray[Any], bins: int = BINS) -> list[Bin]:
    """The reliability diagram over equal bins of confidence (Guo et al. 2017, eq. 1 and 2); empty bins are left out."""
    bin_of, gap = _gaps(probabilities, truth, bins)
    confidence, right = np.asarray(probabilities).max(axis=1), gap <= 0
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


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """Standard errors between what was seen and a true difference (Tango 1998, eq. 7 and 8)."""
    linear = -(gained + lost) + (2 * n - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    share = (math.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)  # lost rows were this difference true
    spread = n * (2 * share + difference * (1 - difference))
    away = gained - lost - n * difference
    if away == 0:
        return 0.0
    return away / math.sqrt(spread) if spread > 0 else math.copysign(math.inf, away)


def _lowest_difference(gained: int, lost: int, n: int, confidence: float) -> float:
    """The smallest true difference that what was seen does not contradict, by bisection."""
    limit = float(ndtri((1 + confidence) / 2))
    low, high = -1.0, (gained - lost) / n
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _score(gained, lost, n, middle) > limit:
            low = middle
        else:
            high = middle
    return low


def _confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(2 * np.diagonal(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1))


def _f1_draws(
    cells: Sequence[NDArray[Any]], counts: NDArray[Any], classes: int, draws: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """The F1 of each label on the same resamples of the rows, (draws, classes) for each classifier.

    `cells` holds the true labels and then each classifier's, cell by cell, and `counts` the rows in each cell.
    """
    n = int(counts.sum())
    resampled = rng.multinomial(n, counts / n, size=draws).astype(np.float64)
    true, *said = (np.eye(classes)[cell] for cell in cells)
    occur = resampled @ true
    return [2 * (resampled @ (true * one)) / np.maximum(occur + resampled @ one, 1) for one in said]


def _cells(size: int, columns: Sequence[NDArray[Any]]) -> tuple[tuple[NDArray[Any], ...], NDArray[Any], NDArray[Any]]:
    """The combinations that occur in columns of numbers below `size`, the place of each row, and how often each is."""
    shape = (size,) * len(columns)
    codes, place, counts = np.unique(
        np.ravel_multi_index(tuple(columns), shape), return_inverse=True, return_counts=True
    )
    return np.unravel_index(codes, shape), place, counts


def _gaps(probabilities: NDArray[Any], truth: NDArray[Any], bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each row's bin of confidence, and its confidence less 1 where it was right."""
    scores, y = _rows(probabilities, truth)
    confidence = scores.max(axis=1)
    right = scores.argmax(axis=1) == y
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1), confidence - right


def _rows(values: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    table, y = np.asarray(values, dtype=np.float64), np.asarray(truth)
    if table.ndim != 2 or y.shape != table.shape[:1] or not len(y):
        raise ValueError(f"values of shape {table.shape} and truth of shape {y.shape}: give (n, C) and (n,) with n > 0")
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite: give the classifier's own numbers")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= table.shape[1]:
        raise ValueError(f"truth must hold whole numbers from 0 to {table.shape[1] - 1}")
    return table, y.astype(np.int64)
