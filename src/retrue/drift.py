"""Whether the texts of a window still look like those that the model was proved on, and what is different about them.

A document is a row of columns, and the columns make six groups, each judged by one number:

    embedding   a hidden layer along the main directions of the training texts: the mean distance over them
    residual    how much of that layer lies outside those directions
    length      the log of the token count
    pieces      the share of tokens that continue a word: rare words, misspelt ones, another language
    symbols     the share of characters that are neither letter, digit nor white space
    margin      log odds of the second of two labels, or of each of more: their mean distance

The distance of a column is the 1-Wasserstein distance between window and reference, in units of the reference's
standard deviation. Each group has a p, the share of windows without drift that lie as far away, and the statistic T is
-log of the product of the two smallest: few drifts show in one group alone. What distances and T do when nothing has
drifted depends on the window's size n, so it is measured and not assumed: at registration windows are drawn from the
reference itself, without replacement, for a grid of sizes; of whole groups where its rows come in groups. Such a window
is a part of the reference of N rows, which makes its distance too small by sqrt((N - n) / (N + n)): the distance to a
reference that holds the window scales with 1/n - 1/N, that to an independent one with 1/n + 1/N. The distances are
divided by that root, so what the table holds hardly changes with n; it is interpolated in log n, and is used as it
stands for windows larger than its last size. How much windows vary is itself learned from so many rows or groups only,
so the table is widened by one standard error of a standard deviation.

Traffic comes in clusters that the reference need not have: a day's texts are about the day's films. Then quiet windows
lie further away than the table knows. `stretch` measures by how much, from windows that were accepted.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrue.artifact import PROJECTIONS
from retrue.errors import ModelRefused

GROUPS = ("embedding", "residual", "length", "pieces", "symbols", "margin")
SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of a group that are told
SKETCH = 256  # quantiles a column; with fewer the distances are biased by several per cent
WINDOWS = 1500
SIZES = (10, 20, 50, 100, 200, 500, 1000)  # a larger one takes as long as all of these and says the same
TAIL = 0.05  # share of the null windows that an exponential tail is fitted to
LEVELS = np.linspace(0.0, 1.0 - TAIL, 96)
MIDDLES = (np.arange(SKETCH) + 0.5) / SKETCH
BURN_IN = 60  # accepted windows before their spread is believed
CAUTION = 1.7  # the stretch until then, where the reference knows no groups: what reviews of few films at a time need
NARROWEST = np.float32(0.1)  # what counts as far where the null windows do not vary at all
FAR = 6.0  # standard deviations above the mean, where p is near 1e-3
MARGIN = PROJECTIONS + len(GROUPS) - 2  # where the margin's columns begin

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """What `check` needs to know of N documents with K columns, without holding any of them.

    Null tables have a row per calibrated window size. Those of the distances, for each group, are in units of
    sqrt(1/n + 1/N): `body` holds the quantiles at LEVELS, `tail` the mean excess over the last of them; `joint` and
    `joint_tail` are the same of T. `groups` equal groups would say as much as the rows do (Kish 1965), and `made_by`
    names what scored them.
    """

    rows: int
    groups: float
    made_by: str
    quantiles: Floats  # (K, SKETCH)
    sd: Floats  # (K,)
    sizes: NDArray[np.int64]  # (S,)
    mean: Floats  # (S, G), G = len(GROUPS)
    spread: Floats  # (S, G)
    body: Floats  # (S, G, len(LEVELS))
    tail: Floats  # (S, G)
    joint: Floats  # (S, 1, len(LEVELS))
    joint_tail: Floats  # (S, 1)

    def to_bytes(self) -> bytes:
        """The reference as an npz archive."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, made_by: str | None = None) -> Self:
        """A reference from what `to_bytes` gave.

        ModelRefused where it is cut short, of another version, or, with `made_by`, of rows that something else scored:
        between an fp32 graph and its own int8 copy every window looks drifted.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                values = dict(archive)
            found = cls(
                **{
                    **values,
                    "rows": int(values["rows"]),
                    "groups": float(values["groups"]),
                    "made_by": str(values["made_by"]),
                }
            )
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ModelRefused("the drift reference cannot be read by this version: train the model again") from error
        if made_by is not None and found.made_by != made_by:
            raise ModelRefused(
                f"the drift reference was made by {found.made_by or 'nobody knows what'}, and {made_by} serves: "
                "train the model again"
            )
        return found


@dataclass(frozen=True)
class Drift:
    """What a check of `n` rows found; `distance` and `distances` are in standard deviations of the reference.

    `threshold` is the value of `statistic` whose p is the false-alarm rate that was asked for. `quantiles` has those at
    SHOWN "before", in the reference, and "after", in the window, for the groups of one column: tokens for the length, a
    probability for the margin.
    """

    n: int
    distance: float
    statistic: float
    threshold: float
    p: float
    worst: str
    distances: dict[str, float]
    quantiles: dict[str, dict[str, list[float]]]


def columns(
    projection: NDArray[Any], tokens: NDArray[Any], pieces: NDArray[Any], symbols: NDArray[Any], scores: NDArray[Any]
) -> Floats:
    """The table of documents, a row each.

    From the graph's projections (n, CAPTURED) with the residual last, token counts (n,), the two shares (n,), and
    calibrated scores (n, C) with C > 1. It has one column of log odds where C is 2, and else C of them.
    """
    # A score may underflow to 0; the floor is below what float32 tells from 0 beside 1.
    share = np.maximum(np.asarray(scores, dtype=np.float64), 1e-12)
    if share.shape[1] == 2:
        margin = np.diff(np.log(share), axis=1)
    else:
        margin = np.log(share) - np.log(np.maximum(1 - share, 1e-12))
    scalars = [np.log(np.maximum(tokens, 1)), pieces, symbols]
    return np.hstack([projection, np.stack(scalars, axis=1), margin]).astype(np.float32)


def register(
    columns: NDArray[Any], *, made_by: str = "", groups: Sequence[str | None] | None = None, seed: int = 0
) -> Reference:
    """The reference of documents (N, K) that the model was not trained on, with at least 20 of them.

    `groups` names the film, file or caller of each row, None for a row of its own: rows of a group are alike, so that
    windows vary as if there were fewer rows. Windows are calibrated up to half of N.
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
    members = _members(groups or [None] * rows)
    picks = _windows(np.random.default_rng(seed), members, int(sizes[-1]))
    distances = np.empty((len(sizes), WINDOWS, width), dtype=np.float32)
    for k in range(width):
        values = table[k][picks]
        for s, n in enumerate(sizes):
            gaps = _quantiles(values[:, :n]) - quantiles[k]
            distances[s, :, k] = np.abs(gaps, out=gaps).mean(axis=1) / sd[k]
    distances /= np.sqrt((rows - sizes) / (sizes * rows))[:, None, None]

    independent = float(rows**2 / np.sum(np.bincount(members) ** 2))
    null = _groups(distances) * np.float32(1 + 1 / math.sqrt(2 * independent))
    mean, spread = null.mean(axis=1), null.std(axis=1)
    body, tail = _table_of(null, np.where(spread > 0, 0.05 * spread, NARROWEST))
    spread = np.where(spread > 0, spread, NARROWEST)
    statistic = np.stack([_statistic(_surprise(*each)) for each in zip(null, body, tail, strict=True)])
    joint, joint_tail = _table_of(statistic[:, :, None], np.full((len(sizes), 1), 0.05))
    floats = [x.astype(np.float32) for x in (mean, spread, body, tail, joint, joint_tail)]
    return Reference(rows, independent, made_by, quantiles, sd, sizes, *floats)


def check(
    reference: Reference, columns: NDArray[Any], alpha: float = 0.01, stretch: Mapping[str, float] | None = None
) -> Drift:
    """Compare a window (n, K) of at least 10 rows with the reference.

    p is the share of windows without drift whose statistic is as large. Below 5 % an exponential tail gives it, which
    is cautious: the tail of a Wasserstein distance falls faster. `stretch` is what the function of that name found.
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
    sketch = _quantiles(table)
    distances = _groups(np.abs(sketch - reference.quantiles).mean(axis=1) / reference.sd)
    wider = np.array([(stretch or {}).get(group, 1.0) for group in GROUPS])
    body, tail, joint, joint_tail = (
        _at(n, reference.sizes, x) for x in (reference.body, reference.tail, reference.joint, reference.joint_tail)
    )
    surprise = _surprise(distances / wider / math.sqrt(1 / n + 1 / reference.rows), body, tail)
    statistic = float(_statistic(surprise))
    if alpha < TAIL:
        threshold = float(joint[0, -1] + joint_tail[0] * math.log(TAIL / alpha))
    else:
        threshold = float(np.interp(1 - alpha, LEVELS, joint[0]))
    before, after = _shown(reference.quantiles), _shown(sketch)
    return Drift(
        n=n,
        distance=float(distances[0]),
        statistic=statistic,
        threshold=threshold,
        p=math.exp(-float(_surprise(np.array([statistic]), joint, joint_tail)[0])),
        worst=GROUPS[int(surprise.argmax())],
        distances=dict(zip(GROUPS, distances.tolist(), strict=True)),
        quantiles={group: {"before": before[group], "after": after[group]} for group in before},
    )


def stretch(reference: Reference, past: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By how much the windows that were accepted lie further away than the null table says, for each group.

    `past` has the "n" and "distances" of a Drift each. A factor scales the whole null distribution, as a design effect
    does, so far that neither the mean nor the point FAR standard deviations above it is nearer than that of the past:
    few large clusters widen the tail more than they move the mean. Both are taken two standard errors above their
    estimates. It is never less than 1: what is quieter than it should be may be luck. Until there are BURN_IN windows
    the factor is CAUTION, or 1 where the reference itself came in groups.
    """
    if len(past) < BURN_IN:
        return dict.fromkeys(GROUPS, CAUTION if reference.groups == reference.rows else 1.0)
    n = np.array([window["n"] for window in past])
    distances = np.array([[window["distances"][group] for group in GROUPS] for window in past])
    mean, spread = (_at(n, reference.sizes, table) for table in (reference.mean, reference.spread))
    unit = np.where(mean > 0, mean, spread)  # a column that never varied has no distance
    ratios = distances / np.sqrt(1 / n + 1 / reference.rows)[:, None] / unit
    sd, expected = ratios.std(axis=0, ddof=1), np.sqrt(np.mean((spread / unit) ** 2, axis=0))
    found = np.ones(len(GROUPS))
    for far in (0.0, FAR):
        error = sd * math.sqrt((1 + far**2 / 2) / len(past))  # that of a mean and sd of as many normal values
        found = np.maximum(found, (ratios.mean(axis=0) + far * sd + 2 * error) / (1 + far * expected))
    return dict(zip(GROUPS, found.tolist(), strict=True))


def _members(groups: Sequence[str | None]) -> NDArray[np.intp]:
    """The number of each row's group, from 0."""
    names = [(0, group) if group is not None else (1, row) for row, group in enumerate(groups)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])


def _windows(rng: np.random.Generator, members: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Rows of WINDOWS windows (WINDOWS, most); the first n of one are a window of n: whole groups and a part of one."""
    rows = np.argsort(members, kind="stable")
    sizes = np.bincount(members)
    starts = np.cumsum(sizes) - sizes
    picks = np.empty((WINDOWS, most), dtype=np.intp)
    for window in picks:
        order = rng.permutation(len(sizes))
        ends = np.cumsum(sizes[order])
        order = order[: np.searchsorted(ends, most) + 1]
        shift = np.repeat(starts[order] - (ends[: len(order)] - sizes[order]), sizes[order])
        window[:] = rows[(shift + np.arange(len(shift)))[:most]]
    return picks


def _table(columns: NDArray[Any]) -> Floats:
    """Columns as rows of memory, (K, n)."""
    table = np.asarray(columns, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] <= MARGIN:
        raise ValueError(f"a table of shape {table.shape}: give a row a text, as `columns` makes it")
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite: drop the rows that were not scored")
    return np.ascontiguousarray(table.T)


def _quantiles(values: Floats) -> Floats:
    """The SKETCH quantiles along the last axis, at the middles of equal steps.

    Their mean absolute difference to another sample's is the Wasserstein distance by the midpoint rule.
    """
    return np.sort(values, axis=-1)[..., (MIDDLES * values.shape[-1]).astype(np.intp)]


def _groups(distances: Floats) -> Floats:
    """Distances of K columns (..., K) as those of the groups (..., G)."""
    embedding, margin = (
        part.mean(axis=-1, keepdims=True) for part in np.split(distances, [PROJECTIONS, MARGIN], -1)[::2]
    )
    return np.concatenate([embedding, distances[..., PROJECTIONS:MARGIN], margin], axis=-1)


def _table_of(null: NDArray[Any], least: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of null values (S, WINDOWS, G) the quantiles at LEVELS (S, G, L) and the tail (S, G), no less than `least`."""
    body = np.moveaxis(np.quantile(null, LEVELS, axis=1), 0, -1)
    excess = np.maximum(null - body[:, None, :, -1], 0).sum(axis=1) / (TAIL * WINDOWS)
    return body, np.maximum(excess, least)


def _surprise(values: NDArray[Any], body: NDArray[Any], tail: NDArray[Any]) -> NDArray[np.float64]:
    """-log p of values (..., G), from the quantiles (G, L) and the tail (G,) of such values without drift."""
    # Both axes are turned round so that np.interp takes the larger p where quantiles tie.
    shares = [
        np.interp(-values[..., group], -quantiles[::-1], 1 - LEVELS[::-1]) for group, quantiles in enumerate(body)
    ]
    excess = np.maximum(values - body[:, -1], 0) / tail
    return np.asarray(excess - np.log(np.stack(shares, axis=-1)))


def _statistic(surprise: NDArray[np.float64]) -> NDArray[np.float64]:
    """T of the groups' -log p (..., G)."""
    return np.asarray(np.sort(surprise, axis=-1)[..., -2:].sum(axis=-1))


def _shown(sketch: Floats) -> dict[str, list[float]]:
    """The quantiles at SHOWN of every group of one column."""
    shown = {
        group: np.interp(SHOWN, MIDDLES, column)
        for group, column in zip(GROUPS[1:], sketch[PROJECTIONS:], strict=False)
    }
    shown["length"] = np.exp(shown["length"])
    if len(sketch) > MARGIN + 1:
        del shown["margin"]
    else:
        shown["margin"] = 1 / (1 + np.exp(-shown["margin"]))
    return {group: values.tolist() for group, values in shown.items()}


def _at(n: int | NDArray[np.int64], sizes: NDArray[np.int64], table: Floats) -> NDArray[np.float64]:
    """A null table's row for windows of n, or a row for each n; linear in log n between the calibrated sizes."""
    place = np.interp(np.log(n), np.log(sizes), np.arange(len(sizes)))
    low = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, len(sizes) - 1)
    share = (place - low).reshape(np.shape(n) + (1,) * (table.ndim - 1))
    return np.asarray(table[low] + share * (table[high] - table[low]), dtype=np.float64)
