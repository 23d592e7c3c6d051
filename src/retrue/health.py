"""What is due after what the monitor saw: nothing, labels, a retraining, or a person who decides.

A fall of accuracy is shown by labels, so there is something to learn from. Drift alone does not say what is right: it
asks for labels first and retrains once there are enough. A model that nobody asked about for long is retrained in any
case. Requests keep a distance, so that one cause is not answered twice.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from retrue.errors import WrongSetting
from retrue.records import Trigger

Mode = Literal["automatic", "suggest"]  # whether the monitor starts a retraining, or only says that one is due
Action = Literal["none", "retrain", "suggest", "label", "wait"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Ages:
    """Hours since the model was made, and since the last label, text and check; None where there was none yet."""

    model_hours: float
    label_hours: float | None
    text_hours: float | None
    check_hours: float | None


@dataclass(frozen=True)
class Policy:
    """When the monitor acts, and whether it does so by itself; WrongSetting where a value makes no sense.

    Between two requests of a kind lie at least `cooldown_hours`. After `backstop_days` without either a new model or a
    request a retraining is due without any sign; 0 is never. Drift waits for `labels_wanted` new labels, unless
    `drift_retrains_at_once`.
    """

    mode: Mode = "automatic"
    cooldown_hours: float = 120.0
    backstop_days: float = 30.0
    labels_wanted: int = 200
    drift_retrains_at_once: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise WrongSetting(f"the monitor's mode is not one of {', '.join(MODES)}: set MODE")
        for name in ("cooldown_hours", "backstop_days", "labels_wanted"):
            if not getattr(self, name) >= 0:
                raise WrongSetting(f"{name.upper()} is not 0 or more")


@dataclass(frozen=True)
class Signs:
    """What is known at a check: `drift` and `accuracy` hold the sentence of a detector that fired, else None.

    `hours_since_request` counts from the last retraining that was requested or suggested, `hours_since_labels_asked`
    from the last request for labels; None where there was none. `new_labels` are those that no retraining has read.
    """

    drift: str | None
    accuracy: str | None
    model_hours: float
    hours_since_request: float | None
    new_labels: int
    hours_since_labels_asked: float | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, what brought it about (None where nothing did), and why, in sentences.

    "retrain" starts a retraining, "suggest" tells a person that one is due, "label" asks for labels, and "wait" says
    that one of these is due but the last request is too recent.
    """

    action: Action
    trigger: Trigger | None
    reasons: list[str]


def decide(signs: Signs, policy: Policy) -> Decision:
    """What is due, by the first of these that applies: accuracy, drift with labels, the backstop, drift without labels.

    A request for labels does not hold back the retraining that they make possible. While a retraining that was
    requested cools down, nobody is asked for labels either: it may answer the drift.
    """
    reasons = [sign for sign in (signs.accuracy, signs.drift) if sign is not None]
    missing = 0 if policy.drift_retrains_at_once else max(policy.labels_wanted - signs.new_labels, 0)
    action: Action = "retrain" if policy.mode == "automatic" else "suggest"
    trigger: Trigger
    if signs.accuracy is not None:
        trigger = "accuracy"
    elif signs.drift is not None and not missing:
        trigger = "drift"
    elif overdue := _overdue(signs, policy):
        trigger = "schedule"
        reasons.append(overdue)
    elif signs.drift is not None:
        action, trigger = "label", "drift"
        reasons.append(
            f"drift alone does not say what is right: give {missing} more label{'s' if missing > 1 else ''} with "
            f"`retrue feedback --file labels.csv` (a retraining needs {policy.labels_wanted}, and {signs.new_labels} "
            "are new)"
        )
    else:
        return Decision("none", None, [])
    held = _held("a retraining", signs.hours_since_request, policy)
    if action == "label":
        held = held or _held("labels", signs.hours_since_labels_asked, policy)
    if held:
        return Decision("wait", trigger, [*reasons, held])
    if action == "suggest":
        reasons.append("nothing was started, since the mode is suggest: start it with `retrue retrain`")
    return Decision(action, trigger, reasons)


def _overdue(signs: Signs, policy: Policy) -> str | None:
    """The sentence of the backstop, where model and last request are both older than it."""
    limit, asked = policy.backstop_days * 24, signs.hours_since_request
    if not limit or signs.model_hours <= limit or (asked is not None and asked <= limit):
        return None
    return (
        f"the model is {signs.model_hours / 24:.1f} days old and no retraining was requested in the last "
        f"{policy.backstop_days:.4g} days: one is due even without a sign"
    )


def _held(what: str, hours: float | None, policy: Policy) -> str | None:
    """The sentence of the cool-down, where the last request is too recent for another."""
    if hours is None or hours >= policy.cooldown_hours:
        return None
    limit = policy.cooldown_hours
    return f"the last request for {what} was {hours:.1f} hours ago, and the cool-down is {limit:.4g} hours"
