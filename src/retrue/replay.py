"""Which rows an epoch draws, so that a model learns what is new without forgetting what it knows.

Rehearsal of old rows is the plainest remedy against forgetting (Robins 1995, "Catastrophic forgetting, rehearsal and
pseudorehearsal").
"""

import numpy as np
from numpy.typing import NDArray

MOST = 4  # draws of one row in an epoch


def draws(base: int, recent: int, share: float | None, most: int = MOST) -> tuple[int, int]:
    """How many base and recent rows an epoch draws: together as many as there are rows, `share` of them base rows.

    Where a row would be drawn more than `most` times the other kind fills up, so the share that comes out may be
    another one. Without a share (None or below 0), or without rows of one kind, every row is drawn once.
    """
    if share is None or share < 0 or not base or not recent:
        return base, recent
    if share > 1:
        raise ValueError(f"a replay share of {share} is no share: give one from 0 to 1, or -1 for rows as they come")
    total = base + recent
    wanted = round((1 - share) * total)
    drawn = min(max(wanted, total - most * base), most * recent)
    return total - drawn, drawn


def epoch(
    recent: NDArray[np.bool_], share: float | None, rng: np.random.Generator, most: int = MOST
) -> NDArray[np.int64]:
    """The row numbers of one epoch in random order, as many as there are rows; `recent` marks the rows that are new.

    Rows of one kind are drawn equally often, give or take one; who is drawn once more is drawn anew in each epoch.
    """
    kinds = np.flatnonzero(~recent), np.flatnonzero(recent)
    counts = draws(len(kinds[0]), len(kinds[1]), share, most)
    rows = [_drawn(kind, count, rng) for kind, count in zip(kinds, counts, strict=True)]
    return rng.permutation(np.concatenate(rows))


def _drawn(rows: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if not len(rows):
        return rows
    whole, rest = divmod(count, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:rest]])
