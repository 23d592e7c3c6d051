"""Whether a candidate may replace the champion: it has to have shown, on the same rows, that it is better.

To promote whatever has the higher accuracy would promote half of the equals. Here a candidate needs a paired test that
luck passes in at most `alpha` of the draws, and a bound that says how much it can have lost on the frozen rows. Then it
may be shown worse in no slice of the rows and in nothing else that a user feels: calibration, time, size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrue import metrics
from retrue.errors import WrongSetting
from retrue.records import Trigger

METRICS = {"accuracy": "accuracy", "f1_macro": "macro F1"}
MONITOR = ("drift", "accuracy")  # the triggers by which the monitor says that the world has moved
LONGEST_TABLE = 200  # slices in the evidence, which has to fit into the workflow's state
DIGITS = 6

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """What a candidate has to show, and why one was trained at all.

    `trigger` decides which proof is enough. Asked for by the monitor, a candidate may prove itself on all rows or on
    the recent ones, each at half of `alpha`; else on all rows. `alpha` is the share of equal candidates that may pass
    by luck, and 1 - `alpha` the confidence of every interval. On the frozen rows the candidate must be shown to lose
    less than `margin` of the metric. In a slice of at least `slice_rows` rows it must not be shown worse by more than
    `slice_margin`, nor its calibration error to be larger by more than `calibration_margin`. CPU time a text and size
    may grow by the factors. A first model has no champion; it must be shown to reach the floors. Bootstraps resample
    the rows `draws` times, from `seed`.
    """

    trigger: Trigger = "person"
    metric: str = "accuracy"
    alpha: float = 0.05
    margin: float = 0.01
    slice_rows: int = 50
    slice_margin: float = 0.05
    calibration_margin: float = 0.01
    latency_factor: float = 1.5
    size_factor: float = 1.5
    floor_accuracy: float = 0.0
    floor_f1: float = 0.0
    draws: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise WrongSetting(f"the gate's metric is not one of {', '.join(METRICS)}: set GATE_METRIC")
        if not 0 < self.alpha < 1 or not 0 < self.margin < 1:
            raise WrongSetting("the gate's alpha and margin are shares between 0 and 1: set GATE_ALPHA and GATE_MARGIN")


@dataclass(frozen=True, eq=False)
class Showing:
    """What one model showed on n rows: calibrated `scores` (n, C), a column for each of `labels`, and what it cost.

    `truth` (n,) holds the column of the true label, `tokens` (n,) the length of each text, `sources` where each row
    came from, and `recent` (n,) marks those that came as feedback; the rest are the frozen test rows. `milliseconds` is
    the CPU time a text and `size` the bytes of the graph. ValueError where there are no rows or they do not fit.
    """

    labels: Sequence[str]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sources: Sequence[str]
    recent: Mask
    milliseconds: float
    size: int

    def __post_init__(self) -> None:
        if len({len(self.truth), len(self.scores), len(self.tokens), len(self.sources), len(self.recent)}) > 1:
            raise ValueError("the columns differ in length: give every one of them for each row")

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The column of the label with the highest score; (n,)."""
        return np.asarray(self.scores.argmax(axis=1))

    @cached_property
    def right(self) -> Mask:
        """Which rows it got right; (n,)."""
        return np.asarray(self.predicted == self.truth)


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, sentences with the numbers that decided, the first of them first, and all of the numbers."""

    promote: bool
    reasons: list[str]
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Candidate and champion on the same `rows`: it alone was right on `gained` of them, the champion on `lost`.

    `change` is the difference of their values, `low` to `high` its interval, `p_better` the chance that a candidate
    which is no better does as well, `p_worse` the same the other way round.
    """

    rows: int
    candidate: float
    champion: float
    change: float
    low: float
    high: float
    gained: int
    lost: int
    p_better: float
    p_worse: float

    def __str__(self) -> str:
        return f"{self.candidate:.4f} against {self.champion:.4f} on {self.rows} rows, +{self.gained} -{self.lost}"


def judge(candidate: Showing, champion: Showing | None, rules: Rules) -> Verdict:
    """Promote a candidate that is shown better, and shown worse in nothing; a tie keeps the champion.

    Both models answered the same rows in the same order, as exported. ValueError where they did not.
    """
    evidence: dict[str, Any] = {"rules": asdict(rules), "candidate": _described(candidate)}
    if champion is None:
        objections, merits = _first(candidate, rules, evidence)
    else:
        if not _same_rows(candidate, champion):
            raise ValueError("candidate and champion did not answer the same rows: score both on each row")
        evidence["champion"] = _described(champion)
        merits, inferior, unproven = _proof(candidate, champion, rules, evidence)
        objections = [
            *inferior,
            *unproven,
            *_slices(candidate, champion, rules, evidence),
            *_calibration(candidate, champion, rules, evidence),
            *_cost(candidate, champion, rules),
        ]
    return Verdict(not objections, objections or merits, _plain(evidence))


def compare(candidate: Showing, champion: Showing, rows: Mask, rules: Rules) -> Comparison:
    """The paired test and the interval of the difference on some of the rows, of which there is at least one.

    Accuracies: McNemar's exact test and Tango's score interval. Macro F1: the share of resamples of the rows in which
    the candidate is not ahead, and their quantiles (Efron and Tibshirani 1993, chapters 13 and 15).
    """
    part = _accuracies(candidate, champion, rows, rules)
    if rules.metric == "accuracy":
        return part
    truth, answers, classes = (
        candidate.truth[rows],
        [m.predicted[rows] for m in (candidate, champion)],
        len(candidate.labels),
    )
    ours, theirs = (metrics.macro_f1(truth, answer, classes) for answer in answers)
    samples = metrics.f1_samples(answers, truth, classes, rules.draws, np.random.default_rng(rules.seed))
    changes = samples[0] - samples[1]
    low, high = np.quantile(changes, [rules.alpha / 2, 1 - rules.alpha / 2])
    return replace(
        part, candidate=ours, champion=theirs, change=ours - theirs, low=float(low), high=float(high),
        # What was seen counts as a draw too, so that p is never 0.
        p_better=(1 + int((changes <= 0).sum())) / (1 + rules.draws),
        p_worse=(1 + int((changes >= 0).sum())) / (1 + rules.draws),
    )  # fmt: skip


def _accuracies(candidate: Showing, champion: Showing, rows: Mask, rules: Rules) -> Comparison:
    ours, theirs = (model.right[rows] for model in (candidate, champion))
    n, gained, lost = len(ours), int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    low, high = metrics.difference(gained, lost, n, 1 - rules.alpha)
    return Comparison(
        rows=n,
        candidate=float(ours.mean()),
        champion=float(theirs.mean()),
        change=(gained - lost) / n,
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p_better=metrics.win_chance(gained, gained + lost),
        p_worse=metrics.win_chance(lost, gained + lost),
    )


def slices(showing: Showing) -> Iterator[tuple[str, Mask]]:
    """The rows by length (terciles of their tokens), label, source and recency, each with its name.

    What holds every row or the same rows as an earlier slice says nothing new and is left out.
    """
    short, long = np.quantile(showing.tokens, [1 / 3, 2 / 3])
    tokens, sources = showing.tokens, np.array(showing.sources)
    found = {
        f"length up to {short:.0f} tokens": tokens <= short,
        f"length {short:.0f} to {long:.0f} tokens": (tokens > short) & (tokens <= long),
        f"length over {long:.0f} tokens": tokens > long,
        **{f"label {label}": showing.truth == column for column, label in enumerate(showing.labels)},
        "recency frozen": ~showing.recent,
        "recency recent": showing.recent,
        **{f"source {source}": sources == source for source in sorted(set(showing.sources))},
    }
    seen = {np.ones(len(tokens), dtype=bool).tobytes(), np.zeros(len(tokens), dtype=bool).tobytes()}
    for name, rows in found.items():
        if rows.tobytes() not in seen:
            seen.add(rows.tobytes())
            yield name, rows


def _first(candidate: Showing, rules: Rules, evidence: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What speaks against and for a model that nothing serves yet: it must beat the commonest label and the floors."""
    own, share = evidence["candidate"], float(np.bincount(candidate.truth).max() / len(candidate.truth))
    evidence["commonest_label"] = share
    accuracy = (
        f"there is no champion, and the candidate's accuracy of {own['accuracy']:.4f} on {own['rows']} rows (at least "
        f"{own['low']:.4f})"
    )
    objections = []
    if own["low"] <= share:
        objections.append(f"{accuracy} does not beat the share of the commonest label, {share:.4f}")
    if own["low"] < rules.floor_accuracy:
        objections.append(f"{accuracy} is not shown to reach the floor of {rules.floor_accuracy:.4f}")
    rng = np.random.default_rng(rules.seed)
    (f1,) = metrics.f1_samples([candidate.predicted], candidate.truth, len(candidate.labels), rules.draws, rng)
    own["f1_low"] = float(np.quantile(f1, rules.alpha / 2))
    if own["f1_low"] < rules.floor_f1:
        objections.append(
            f"the candidate's macro F1 of {own['f1_macro']:.4f} (at least {own['f1_low']:.4f}) is not shown to reach "
            f"the floor of {rules.floor_f1:.4f}"
        )
    return objections, [f"{accuracy} beats the share of the commonest label, {share:.4f}"]


def _proof(
    candidate: Showing, champion: Showing, rules: Rules, evidence: dict[str, Any]
) -> tuple[list[str], list[str], list[str]]:
    """What shows the candidate better; what shows it inferior; and what is not shown though it must be."""
    everything = np.ones(len(candidate.truth), dtype=bool)
    parts = {"all rows": everything, "recent rows": candidate.recent, "frozen rows": ~candidate.recent}
    found = {name: compare(candidate, champion, rows, rules) for name, rows in parts.items() if rows.any()}
    two = rules.trigger in MONITOR and len(found) == len(parts)
    chances = ["all rows", "recent rows"] if two else ["all rows"]
    level = rules.alpha / len(chances)  # Bonferroni
    evidence |= {"comparisons": {name: asdict(part) for name, part in found.items()}, "level": level}

    best = min(chances, key=lambda name: found[name].p_better)
    part, name = found[best], METRICS[rules.metric]
    numbers = f"on {best}: {name} {part} (p = {part.p_better:.2g}"
    merits, inferior, unproven = [], [], []
    if part.p_better < level:
        merits.append(f"the candidate is better {numbers}, under {level:.3g})")
    else:
        unproven.append(f"the candidate is not shown better; it comes nearest {numbers}, not under {level:.3g})")
    if frozen := found.get("frozen rows"):
        change = f"{frozen}, a change of {frozen.change:+.4f} ({frozen.low:+.4f} to {frozen.high:+.4f})"
        if frozen.low > -rules.margin:
            merits.append(f"it loses less than {rules.margin:.3g} on the frozen rows: {name} {change}")
        elif needed := _rows_needed(frozen, rules):
            unproven.append(
                f"the candidate is not shown to lose less than {rules.margin:.3g} on the frozen rows: {name} {change}, "
                f"for which about {needed} such rows are needed"
            )
        else:
            inferior.append(
                f"the candidate is worse on the frozen rows: {name} {change}, and {rules.margin:.3g} may be lost"
            )
    return merits, inferior, unproven


def _rows_needed(frozen: Comparison, rules: Rules) -> int | None:
    """How many frozen rows with the same shares would prove what these are too few for; None where none would."""
    if rules.metric == "accuracy":
        return metrics.rows_to_show(frozen.gained, frozen.lost, frozen.rows, -rules.margin, 1 - rules.alpha)
    room = frozen.change + rules.margin
    # An interval narrows as the square root of the number of rows grows.
    return math.ceil(frozen.rows * ((frozen.change - frozen.low) / room) ** 2) if room > 0 else None


def _slices(candidate: Showing, champion: Showing, rules: Rules, evidence: dict[str, Any]) -> list[str]:
    """The slices in which the candidate is shown worse by more than may be lost, in accuracy whatever the metric is."""
    found = {name: _accuracies(candidate, champion, rows, rules) for name, rows in slices(candidate)}
    judged = {name: part for name, part in found.items() if part.rows >= rules.slice_rows}
    level = rules.alpha / max(len(judged), 1)  # Bonferroni
    largest = sorted(found, key=lambda name: -found[name].rows)[:LONGEST_TABLE]
    evidence["slices"] = [{"slice": name, "judged": name in judged, **asdict(found[name])} for name in largest]
    evidence["slice_level"] = level
    return [
        f"the candidate is worse on the slice {name}: accuracy {part} (p = {part.p_worse:.2g}, under {level:.2g}), and "
        f"{rules.slice_margin:.3g} may be lost there"
        for name, part in judged.items()
        if part.p_worse < level and part.change < -rules.slice_margin
    ]


def _calibration(candidate: Showing, champion: Showing, rules: Rules, evidence: dict[str, Any]) -> list[str]:
    """Whether the candidate's scores are shown to be further from the truth than the champion's.

    A resample looks worse calibrated than the rows it is drawn from, and the more so the more bins are in use. The
    basic bootstrap interval (Davison and Hinkley 1997, section 5.2) takes that off, where quantiles would add it.
    """
    ours, theirs = (evidence[name]["calibration_error"] for name in ("candidate", "champion"))
    rng = np.random.default_rng(rules.seed)
    samples = metrics.calibration_samples((candidate.scores, champion.scores), candidate.truth, rules.draws, rng)
    change = ours - theirs
    top, bottom = np.quantile(samples[0] - samples[1], [1 - rules.alpha / 2, rules.alpha / 2])
    low, high = 2 * change - float(top), 2 * change - float(bottom)
    evidence["calibration"] = {"change": change, "low": low, "high": high}
    if low <= rules.calibration_margin:
        return []
    return [
        f"the candidate's scores are worse calibrated: an expected error of {ours:.4f} against {theirs:.4f}, "
        f"{change:+.4f} ({low:+.4f} to {high:+.4f}), and {rules.calibration_margin:.3g} may be lost"
    ]


def _cost(candidate: Showing, champion: Showing, rules: Rules) -> list[str]:
    objections = []
    if candidate.milliseconds > rules.latency_factor * champion.milliseconds:
        objections.append(
            f"the candidate takes {candidate.milliseconds:.2f} ms of CPU time a text against the champion's "
            f"{champion.milliseconds:.2f}, more than {rules.latency_factor:.3g} times as much"
        )
    if candidate.size > rules.size_factor * champion.size:
        objections.append(
            f"the candidate has {candidate.size / 1e6:.2f} MB against the champion's {champion.size / 1e6:.2f}, "
            f"more than {rules.size_factor:.3g} times as much"
        )
    return objections


def _described(model: Showing) -> dict[str, Any]:
    """One model alone, as plain values."""
    error = metrics.calibration_error(model.scores, model.truth)  # first, since it checks the table
    n, right = len(model.truth), int(model.right.sum())
    low, high = metrics.interval(right, n)
    return {
        "rows": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "f1_macro": metrics.macro_f1(model.truth, model.predicted, len(model.labels)),
        "calibration_error": error,
        "milliseconds": model.milliseconds,
        "size": model.size,
    }


def _same_rows(one: Showing, other: Showing) -> bool:
    return (
        list(one.labels) == list(other.labels)
        and np.array_equal(one.truth, other.truth)
        and np.array_equal(one.recent, other.recent)
    )


def _plain(value: Any) -> Any:
    """The same with its numbers rounded to six significant digits."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
