"""Whether the texts of a window still look like those that the model was proved on.

A document is a row of columns: fixed random projections of a hidden layer, the log of its token count, and the margin
of the classifier's answer. For each column the 1-Wasserstein distance between window and reference is taken in units
of the reference's standard deviation. Three groups are judged, each by one number:

    embedding   mean distance over the projections (a sliced Wasserstein distance)
    length      distance of the log token counts
    margin      distance of the margins

The statistic T is the largest of (distance - null mean) / null sd over the groups. What T does when nothing has drifted
depends on the window's size n, so it is measured and not assumed: at registration windows are drawn from the reference
itself, without replacement, for a grid of sizes. Such a window is a part of the reference of N rows, which makes its
distance too small by sqrt((N - n) / (N + n)): the distance to a reference that holds the window scales with
1/n - 1/N, that to an independent one with 1/n + 1/N. The distances are divided by that root, so what the table holds
hardly changes with n; it is interpolated in log n, and is used as it stands for windows larger than its last size.
"""

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrue.errors import ModelRefused

GROUPS = ("embedding", "length", "margin")
SKETCH = 256  # quantiles a column; with fewer the distances are biased by several per cent
WINDOWS = 1500
SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000)
TAIL = 0.05  # share of the null windows that the exponential tail is fitted to
LEVELS = np.linspace(0.0, 1.0 - TAIL, 96)

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """What `check` needs to know of N documents with K columns, without holding any of them.

    Null tables have a row per calibrated window size and are in units of sqrt(1/n + 1/N); `body` holds the quantiles of
    T at LEVELS, `tail` the mean excess of T over the last of them.
    """

    rows: int
    quantiles: Floats  # (K, SKETCH)
    sd: Floats  # (K,)
    sizes: NDArray[np.int64]  # (S,)
    mean: Floats  # (S, 3)
    spread: Floats  # (S, 3)
    body: Floats  # (S, len(LEVELS))
    tail: Floats  # (S,)

    def to_bytes(self) -> bytes:
        """The reference as an npz archive."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """A reference from what `to_bytes` gave; ModelRefused where it is cut short or of another version."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                values = dict(archive)
            return cls(**{**values, "rows": int(values["rows"])})
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ModelRefused("the drift reference cannot be read by this version: train the model again") from error


@dataclass(frozen=True)
class Drift:
    """What a check of `n` rows found; `distance` and `distances` are in standard deviations of the reference.

    `threshold` is the value of `statistic` whose p is the false-alarm rate that was asked for.
    """

    n: int
    distance: float
    statistic: float
    threshold: float
    p: float
    fired: bool
    worst: str
    distances: dict[str, float]


def columns(projection: NDArray[Any], tokens: NDArray[Any], scores: NDArray[Any]) -> Floats:
    """The (n, P + 2) table of projections (n, P), token counts (n,) and calibrated scores (n, C) with C > 1."""
    best = np.partition(np.asarray(scores, dtype=np.float64), -2, axis=1)[:, -2:]
    # A score may underflow to 0; the floor is below what float32 tells from 0 beside 1.
    margin = np.diff(np.log(np.maximum(best, 1e-12)), axis=1)
    length = np.log(np.maximum(tokens, 1))[:, None]
    return np.hstack([projection, length, margin]).astype(np.float32)


def register(columns: NDArray[Any], seed: int = 0) -> Reference:
    """The reference of documents (N, K) that the model was not trained on, with at least 20 of them.

    Windows are calibrated up to half of N.
    """
    table = _table(columns)
    width, rows = table.shape
    if rows < 2 * SIZES[0]:
        raise ValueError(f"{rows} rows are too few for a drift reference: give at least {2 * SIZES[0]}")
    centre, deviation = table.mean(axis=1, dtype=np.float64), table.std(axis=1, dtype=np.float64)
    # A column that does not vary, but for rounding, keeps its own unit.
    sd = np.where(deviation > 1e-6 * np.abs(centre), deviation, 1.0).astype(np.float32)
    quantiles = _quantiles(table)

    sizes = np.array([n for n in SIZES if n <= rows // 2])
    rng = np.random.default_rng(seed)
    picks = np.stack([rng.choice(rows, sizes[-1], replace=False) for _ in range(WINDOWS)])
    distances = np.empty((len(sizes), WINDOWS, width), dtype=np.float32)
    for k in range(width):
        values = table[k][picks]
        for s, n in enumerate(sizes):
            gaps = _quantiles(values[:, :n]) - quantiles[k]
            distances[s, :, k] = np.abs(gaps, out=gaps).mean(axis=1) / sd[k]
    distances /= np.sqrt((rows - sizes) / (sizes * rows))[:, None, None]

    null = _groups(distances)
    mean, spread = null.mean(axis=1), null.std(axis=1)
    spread = np.where(spread > 0, spread, np.float32(0.1))
    statistic = ((null - mean[:, None]) / spread[:, None]).max(axis=2)
    body = np.quantile(statistic, LEVELS, axis=1).T
    excess = np.maximum(statistic - body[:, -1:], 0).sum(axis=1) / (TAIL * WINDOWS)
    tail = np.maximum(excess, 0.05)
    floats = [x.astype(np.float32) for x in (mean, spread, body, tail)]
    return Reference(rows, quantiles, sd, sizes, *floats)


def check(reference: Reference, columns: NDArray[Any], alpha: float) -> Drift:
    """Compare a window (n, K) of at least 10 rows with the reference; it fires where p < alpha.

    p is the share of windows without drift whose statistic is as large. Below 5 % an exponential tail gives it, which
    is cautious: the tail of a Wasserstein distance falls faster.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"the false-alarm rate is {alpha}: give a share between 0 and 1")
    table = _table(columns)
    width, n = table.shape
    if width != len(reference.sd):
        raise ValueError(
            f"the window has {width} columns and the reference {len(reference.sd)}: "
            "compare only what the reference's own model scored"
        )
    if n < SIZES[0]:
        raise ValueError(f"a window of {n} rows is too small to judge: give at least {SIZES[0]}")
    gaps = np.abs(_quantiles(table) - reference.quantiles).mean(axis=1) / reference.sd
    distances = _groups(gaps)
    mean, spread, body = (_at(n, reference.sizes, x) for x in (reference.mean, reference.spread, reference.body))
    tail = float(_at(n, reference.sizes, reference.tail[:, None])[0])
    z = (distances / math.sqrt(1 / n + 1 / reference.rows) - mean) / spread
    statistic, edge = float(z.max()), float(body[-1])
    if statistic > edge:
        p = TAIL * math.exp(-(statistic - edge) / tail)
    else:
        # Both axes are turned round so that np.interp takes the larger p where quantiles tie.
        p = float(np.interp(-statistic, -body[::-1], 1 - LEVELS[::-1]))
    threshold = edge + tail * math.log(TAIL / alpha) if alpha < TAIL else float(np.interp(1 - alpha, LEVELS, body))
    return Drift(
        n=n,
        distance=float(distances[0]),
        statistic=statistic,
        threshold=threshold,
        p=p,
        fired=p < alpha,
        worst=GROUPS[int(z.argmax())],
        distances=dict(zip(GROUPS, distances.tolist(), strict=True)),
    )


def _table(columns: NDArray[Any]) -> Floats:
    """Columns as rows of memory, (K, n)."""
    table = np.asarray(columns, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] < len(GROUPS):
        raise ValueError(f"a table of shape {table.shape}: give (rows, projections + 2), as `columns` makes it")
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite: drop the rows that were not scored")
    return np.ascontiguousarray(table.T)


def _quantiles(values: Floats) -> Floats:
    """The SKETCH quantiles along the last axis, at the middles of equal steps.

    Their mean absolute difference to another sample's is the Wasserstein distance by the midpoint rule.
    """
    n = values.shape[-1]
    places = ((np.arange(SKETCH) + 0.5) / SKETCH * n).astype(np.intp)
    return np.sort(values, axis=-1)[..., places]


def _groups(distances: Floats) -> Floats:
    """Distances of K columns (..., K) as those of the three groups (..., 3)."""
    return np.concatenate([distances[..., :-2].mean(axis=-1, keepdims=True), distances[..., -2:]], axis=-1)


def _at(n: int, sizes: NDArray[np.int64], table: Floats) -> NDArray[np.float64]:
    """A null table's row for windows of n, linear in log n between the calibrated sizes."""
    return np.array([np.interp(math.log(n), np.log(sizes), column) for column in table.T])
