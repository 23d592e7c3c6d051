"""Whether a version that answers a share of the traffic does harm: failures, slowness, other answers to like texts.

The gate has judged the model already, so harm has to be shown, and little traffic shows little. What two versions are
asked in the same time are texts of one kind: their answers differ by chance and by what the new model knows better, and
should differ by no more than `Bounds` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

SURE = 0.001  # the chance of a harmless version to be found harmful, by each thing that is looked at
LEAST = 50  # calls, or answers, of each version below which nothing is compared
PERMUTATIONS = 2_000


@dataclass(frozen=True)
class Bounds:
    """What a canary may do: `failures` is a share of its calls, `slowdown` a multiple of the champion's duration.

    `distance` is how far apart the scores of a label may lie (Wasserstein, 0 to 1), `agreement` the least share of
    golden inputs to which both give the same label.
    """

    failures: float = 0.01
    slowdown: float = 2.0
    distance: float = 0.2
    agreement: float = 0.5


@dataclass(frozen=True)
class Calls:
    """How often a version was called and how often it failed, and the 95th percentile of its durations."""

    calls: int
    failed: int
    milliseconds: float | None


@dataclass(frozen=True)
class Finding:
    """Each harm in one sentence, and what was counted."""

    harms: list[str]
    evidence: dict[str, Any]


def conduct(canary: Calls, champion: Calls, bounds: Bounds) -> Finding:
    """Whether more calls fail than may, by an exact binomial test, and whether they take too long."""
    harms = []
    # At least so many failures of so many calls, were the share just what is allowed.
    chance = float(bdtrc(canary.failed - 1, canary.calls, bounds.failures)) if canary.failed else 1.0
    if chance < SURE:
        harms.append(
            f"{canary.failed} of {canary.calls} calls failed (p = {chance:.2g}), and {bounds.failures:.1%} may"
        )
    slowdown = None
    if min(canary.calls, champion.calls) >= LEAST and canary.milliseconds and champion.milliseconds:
        slowdown = canary.milliseconds / champion.milliseconds
        if slowdown > bounds.slowdown:
            harms.append(
                f"calls take {slowdown:.1f} times as long as the champion's (95th percentile of "
                f"{canary.milliseconds:.0f} against {champion.milliseconds:.0f} ms), and {bounds.slowdown:g} may be"
            )
    counted = {"calls": canary.calls, "failed": canary.failed, "champion_calls": champion.calls, "slowdown": slowdown}
    return Finding(harms, counted)


def answers(
    canary: NDArray[np.float64], champion: NDArray[np.float64], labels: Sequence[str], bounds: Bounds
) -> Finding:
    """Whether scores (n, labels) lie further apart than they may, and by more than chance.

    The distance is the largest Wasserstein distance over labels, which the mix of labels moves as much as sure answers
    that become unsure; its p comes from permutations of who answered.
    """
    n, m = len(canary), len(champion)
    if min(n, m) < LEAST:
        return Finding([], {"answers": n, "champion_answers": m, "distance": None})
    pooled = np.vstack([canary, champion])
    order = np.argsort(pooled, axis=0)
    steps = np.diff(np.take_along_axis(pooled, order, axis=0), axis=0)

    def distances(own: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The area between the two distribution functions, for each label."""
        below = np.cumsum(np.where(own[order], 1 / n, -1 / m), axis=0)[:-1]
        return np.asarray((np.abs(below) * steps).sum(axis=0))

    own = np.arange(n + m) < n
    found = distances(own)
    distance, worst = float(found.max()), labels[int(found.argmax())]
    harms = []
    if distance > bounds.distance:
        random = np.random.default_rng(0)
        larger = sum(distances(random.permutation(own)).max() >= distance for _ in range(PERMUTATIONS))
        if (larger + 1) / (PERMUTATIONS + 1) < SURE:
            harms.append(
                f"the scores of {worst} lie {distance:.2f} from the champion's on texts of the same time, "
                f"and {bounds.distance:g} may lie between"
            )
    return Finding(harms, {"answers": n, "champion_answers": m, "distance": distance})


def mirrored(canary: Sequence[str], champion: Sequence[str], bounds: Bounds) -> Finding:
    """Whether the labels of the same golden inputs agree as often as they should."""
    share = float(np.mean([one == other for one, other in zip(canary, champion, strict=True)]))
    harms = []
    if share < bounds.agreement:
        harms.append(f"only {share:.0%} of {len(canary)} golden inputs get the champion's label")
    return Finding(harms, {"agreement": share})
