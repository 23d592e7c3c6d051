"""Windows of texts, with and without drift, drawn from the pools."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pools import FILMS, HOME, TRAINED, Pool

SIZES = (50, 200, 1000)
REFERENCE = 5_000
NEGATIVES = "more negatives"

Rows = NDArray[np.int64]


class Kind(NamedTuple):
    """One kind of windows: of n texts, a share of them drifted as named, or none."""

    name: str
    n: int
    share: float


@dataclass(frozen=True, eq=False)
class Split:
    """One cut of the home rows; all numbers are rows of the pools laid end to end."""

    seed: int
    reference: Rows
    rest: Rows
    drifted: dict[str, Rows]

    def kinds(self, sizes: Sequence[int], shares: Sequence[float]) -> Iterator[Kind]:
        for n in sizes:
            yield Kind("", n, 0.0)
            yield from (Kind(name, n, share) for name in self.drifted for share in shares)

    def windows(self, kind: Kind, count: int, turn: int = 0) -> Rows:
        """So many windows (count, n) of a kind, the same whenever asked for.

        Those without drift share no row until all rows were taken, and then come again in another order.
        """
        place = [*self.drifted].index(kind.name) + 1 if kind.name else 0
        random = np.random.default_rng([self.seed, place, kind.n, round(100 * kind.share), turn])
        drifted = round(kind.n * kind.share)
        own = kind.n - drifted
        fit = len(self.rest) // own
        passes = [random.permutation(self.rest)[: fit * own].reshape(fit, own) for _ in range(-(-count // fit))]
        kept = np.concatenate(passes)[:count]
        if not drifted:
            return kept
        rows = self.drifted[kind.name]
        extra = [random.choice(rows[~np.isin(rows, window)], drifted, replace=False) for window in kept]
        return np.hstack([kept, extra])


def cut(texts: dict[str, Pool], seed: int) -> Split:
    """A reference and the rest of the home rows, and where the drifted rows are."""
    starts = dict(zip(texts, np.cumsum([0, *(len(pool.tokens) for pool in texts.values())]), strict=False))
    rows = starts[HOME] + np.random.default_rng(seed).permutation(len(texts[HOME].tokens))
    rest = rows[REFERENCE:]
    drifted = {
        name: starts[name] + np.arange(len(pool.tokens))
        for name, pool in texts.items()
        if name not in (HOME, FILMS, TRAINED)
    }
    drifted[NEGATIVES] = rest[texts[HOME].labels[rest - starts[HOME]] == 0]
    return Split(seed, rows[:REFERENCE], rest, drifted)


def whole(films: NDArray[np.str_], n: int, count: int, seed: int) -> Iterator[Rows]:
    """So many windows of whole films, of n rows or little more; each film comes once before any comes again."""
    random = np.random.default_rng(seed)
    rows = {film: np.flatnonzero(films == film) for film in np.unique(films).tolist()}
    window: list[Rows] = []
    while True:
        for film in random.permutation([*rows]).tolist():
            window.append(rows[film])
            if sum(map(len, window)) >= n:
                yield np.concatenate(window)
                window, count = [], count - 1
                if not count:
                    return
