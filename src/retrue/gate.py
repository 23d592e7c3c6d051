"""Whether a candidate may replace the champion: it has to have shown, on the same rows, that it is better.

Two models differ only on the rows that one gets right and the other wrong. Were both equally good, the candidate would
win each of these with probability 1/2, so the chance of winning at least as many as it did is a binomial tail: the
exact, one-sided test of McNemar (1947). To promote whatever has the higher accuracy would promote half of the equals.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import bdtrc

from retrue.metrics import quality


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, a sentence with the numbers that decided, and all of them as plain values for the ledger."""

    promote: bool
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Candidate and champion on the same `rows`: it alone was right on `gained` of them, the champion on `lost`.

    `p_better` is the chance that an equal candidate gains as many of the rows on which they differ, `p_worse` that it
    loses as many; `change` is the difference of the accuracies.
    """

    rows: int
    candidate: float
    champion: float
    change: float
    gained: int
    lost: int
    p_better: float
    p_worse: float

    def __str__(self) -> str:
        return f"{self.candidate:.4f} against {self.champion:.4f} on {self.rows} rows, +{self.gained} -{self.lost}"


def decide(
    truth: Sequence[str],
    candidate: Sequence[str],
    champion: Sequence[str] | None,
    recent: Sequence[bool],
    *,
    labels: Sequence[str],
    margin: float = 0.01,
    alpha: float = 0.05,
) -> Verdict:
    """Promote a candidate that is shown better on all rows or on the recent ones, and not shown worse on the others.

    `truth` and the two models' answers are labels row by row, `recent` marks the rows that came as feedback; the rest
    are the base set, on which the accuracy may not drop by more than `margin` with p < alpha. With both kinds of rows
    there are two chances to be promoted, each tested at alpha / 2 (Bonferroni), so that an equal candidate passes at
    most alpha of the time. Without a champion the lower end of the candidate's 95 % interval must beat the share of
    the commonest label. ValueError where there are no rows or the columns differ in length.
    """
    if len(recent) != len(truth) or (champion is not None and len(champion) != len(truth)):
        raise ValueError("the columns differ in length: give the truth, both answers and the mark of recent per row")
    own = quality(truth, candidate, labels)
    evidence: dict[str, Any] = {"alpha": alpha, "margin": margin, "candidate": asdict(own)}
    if champion is None:
        share = max(sum(row) for row in own.confusion) / own.n
        evidence["commonest_label"] = share
        promote = own.low > share
        return Verdict(
            promote,
            f"there is no champion, and the candidate's accuracy of {own.accuracy:.4f} on {own.n} rows (at least "
            f"{own.low:.4f}) {'beats' if promote else 'does not beat'} the share of the commonest label, {share:.4f}",
            evidence,
        )
    evidence["champion"] = asdict(quality(truth, champion, labels))

    outcomes = [(a == t, b == t) for t, a, b in zip(truth, candidate, champion, strict=True)]
    parts = {
        "all rows": outcomes,
        "recent rows": [pair for pair, new in zip(outcomes, recent, strict=True) if new],
        "base rows": [pair for pair, new in zip(outcomes, recent, strict=True) if not new],
    }
    found = {name: compare(pairs) for name, pairs in parts.items() if pairs}
    evidence["comparisons"] = {name: asdict(part) for name, part in found.items()}

    tests = ["all rows", "recent rows"] if len(found) == len(parts) else ["all rows"]
    level = alpha / len(tests)
    evidence["level"] = level
    base = found.get("base rows")
    if base is not None and base.change < -margin and base.p_worse < alpha:
        return Verdict(
            False,
            f"the candidate is worse on the base rows: {base} (p = {base.p_worse:.2g}), "
            f"which is more than the {margin:.3f} that may be lost",
            evidence,
        )
    best = min(tests, key=lambda name: found[name].p_better)
    part = found[best]
    promote = part.p_better < level
    return Verdict(
        promote,
        f"the candidate {'is better' if promote else 'is not shown better; it comes nearest'} on {best}: {part} "
        f"(p = {part.p_better:.2g}, {'under' if promote else 'not under'} {level:.3g})",
        evidence,
    )


def compare(outcomes: Sequence[tuple[bool, bool]]) -> Comparison:
    """McNemar's exact test of pairs (candidate is right, champion is right), of which there is at least one."""
    rows = len(outcomes)
    gained = sum(a and not b for a, b in outcomes)
    lost = sum(b and not a for a, b in outcomes)
    right = sum(a for a, _ in outcomes)
    differ = gained + lost
    return Comparison(
        rows=rows,
        candidate=right / rows,
        champion=(right - gained + lost) / rows,
        change=(gained - lost) / rows,
        gained=gained,
        lost=lost,
        p_better=tail(gained, differ),
        p_worse=tail(lost, differ),
    )


def tail(won: int, of: int) -> float:
    """The chance to win at least so many of fair coin tosses."""
    return float(bdtrc(won - 1, of, 0.5)) if won else 1.0
