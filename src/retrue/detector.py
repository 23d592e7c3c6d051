"""Alarms that may be looked at every hour: evidence is added up from check to check, and an alarm has a stated price.

Both detectors are e-detectors of Shiryaev's and Roberts's kind (Shin, Ramdas and Rinaldo 2022, arXiv:2203.03532). While
all is well a total grows by one a step on average, so an alarm at a total of `run_length` or more comes after that many
steps or later on average, whatever else is true of the data. A step is a check for drift and a label for accuracy, so a
check without news changes nothing. Totals are plain numbers to keep between checks; begin anew with each model.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECKS = 8_760  # one false alarm for drift in a year of hourly checks, or later
LABELS = 10_000  # one false alarm for accuracy in so many labels, or later
KAPPAS = np.array([0.1, 0.25, 0.5, 0.8])
ODDS = np.array([1.5, 2.0])  # of an error, as multiples of the odds that are tolerated
LARGEST = 1e9  # totals end here, so that an alarm ends soon after its cause
SMALLEST = 1e-300  # a p below it counts as this one
NODES = 256  # a batch of up to 511 labels is added up exactly, one of 5,000 to 10 digits

Floats = NDArray[np.float64]


def evidence(p: float) -> float:
    """What a p-value says against its null as an e-value: the mean over kappa of kappa p^(kappa - 1).

    Its mean is at most 1 where p is uniform or larger (Vovk and Wang 2021, Ann. Stat. 49, 1736-1754). ValueError where
    p is no probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"{p} is no p-value: give a number from 0 to 1")
    return float((KAPPAS * max(p, SMALLEST) ** (KAPPAS - 1)).mean())


def add(total: float, e: float | None) -> float:
    """The total after one more check with e-value `e`; a check that could judge nothing has None and changes nothing.

    Alarm where the total is at least the run length in checks.
    """
    return total if e is None else min((total + 1) * e, LARGEST)


def count(totals: Sequence[float] | None, right: int, wrong: int, lowest: float) -> list[float]:
    """The totals, one for each of ODDS, after one more batch of labels, against "accuracy is at least `lowest`".

    Each label multiplies what there is, and one more, by its likelihood ratio: S becomes (S + 1) L. The order of labels
    in a batch is not known, so S is averaged over all of its orders. That keeps the guarantee, which counts labels, and
    makes little of how they are batched. With k errors among n labels, whose ratios are a and b, the mean is

        S a^k b^(n-k) + sum over j = 1..n of the mean product of j labels drawn from the batch,

    and by 1 / C(n, j) = (n + 1) times the integral of t^j (1 - t)^(n-j) over 0..1 the sum is (n + 1) times the integral
    of (1 + (a - 1) t)^k (1 + (b - 1) t)^(n-k), less 1. None stands for the totals of a new model. ValueError where
    there are fewer than 0 labels, where `lowest` is not between 0 and 1, or where the totals are not one for each.
    """
    if right < 0 or wrong < 0:
        raise ValueError(f"{right} right and {wrong} wrong labels are no batch: give counts of 0 or more")
    if not 0 < lowest < 1:
        raise ValueError(f"the lowest accuracy is {lowest}: tolerate one between 0 and 1")
    before = np.zeros(len(ODDS)) if totals is None else np.array(totals, dtype=np.float64)
    if before.shape != ODDS.shape:
        raise ValueError(f"{before.size} totals where there are {len(ODDS)}: begin anew with None")
    n = right + wrong
    if n == 0:
        return list(before.tolist())
    error = 1 - lowest
    alternative = ODDS * error / (lowest + ODDS * error)
    a, b = (alternative / error - 1)[:, None], ((1 - alternative) / lowest - 1)[:, None]  # the ratios less 1
    t, weights = _nodes(min(n // 2 + 1, NODES))
    begun = np.logaddexp.reduce(wrong * np.log1p(a * t) + right * np.log1p(b * t) + np.log((n + 1) * weights), axis=1)
    ratio = (wrong * np.log1p(a) + right * np.log1p(b))[:, 0]
    most = math.log(LARGEST)
    after = before * np.exp(np.minimum(ratio, most)) + np.expm1(np.clip(begun, 0, most))
    return list(np.minimum(after, LARGEST).tolist())


def level(totals: Sequence[float] | None) -> float:
    """The mean of the totals, which keeps the guarantee of each.

    Alarm where it is at least the run length in labels.
    """
    return sum(totals) / len(totals) if totals else 0.0


@cache
def _nodes(number: int) -> tuple[Any, Any]:
    """Places and weights of Gauss and Legendre's rule on 0..1."""
    places, weights = np.polynomial.legendre.leggauss(number)
    return (places + 1) / 2, weights / 2
