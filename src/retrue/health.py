"""Whether what the monitor saw calls for a retraining."""

from dataclasses import dataclass
from typing import Literal

from retrue.drift import Drift
from retrue.metrics import Quality


@dataclass(frozen=True)
class Ages:
    """Hours since the model was made, and since the last label, text and check; None where there was none yet."""

    model_hours: float
    label_hours: float | None
    text_hours: float | None
    check_hours: float | None


@dataclass(frozen=True)
class Decision:
    """What to do and why: "wait" says that there is a reason to retrain but the last request is too recent."""

    action: Literal["none", "retrain", "wait"]
    reasons: list[str]


def too_low(quality: Quality, lowest: float, minimum_labels: int) -> bool:
    """Whether labels show that accuracy is under `lowest`: even the upper end of its 95 % interval has to be."""
    return quality.n >= minimum_labels and quality.high < lowest


def decide(
    *,
    drift: Drift | None,
    quality: Quality | None,
    expected_accuracy: float,
    tolerated_drop: float,
    minimum_labels: int,
    hours_since_request: float | None,
    cooldown_hours: float,
) -> Decision:
    """Ask for a retraining where texts have drifted or accuracy is shown to be too low.

    Accuracy counts as too low once even the upper end of its 95 % interval is under what the model promised less the
    tolerated drop, and only with the minimum of labels. `drift` and `quality` are None where there was too little to
    look at, `hours_since_request` where nobody has asked yet.
    """
    reasons = []
    if drift is not None and drift.statistic > drift.threshold:
        reasons.append(
            f"the texts have drifted, most of all in {drift.worst}: statistic {drift.statistic:.2f} over the threshold "
            f"{drift.threshold:.2f} on {drift.n} rows (p = {drift.p:.2g})"
        )
    lowest = expected_accuracy - tolerated_drop
    if quality is not None and too_low(quality, lowest, minimum_labels):
        reasons.append(
            f"accuracy on {quality.n} labels is {quality.accuracy:.3f} ({quality.low:.3f} to {quality.high:.3f}), "
            f"under the {lowest:.3f} that is tolerated"
        )
    if not reasons:
        return Decision("none", [])
    if hours_since_request is not None and hours_since_request < cooldown_hours:
        reasons.append(
            f"a retraining was requested {hours_since_request:.1f} hours ago, and the cool-down is {cooldown_hours:.1f}"
        )
        return Decision("wait", reasons)
    return Decision("retrain", reasons)
