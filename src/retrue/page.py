"""One check of the monitor as a page for people: a single file that asks for nothing outside itself."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from retrue import charts
from retrue.charts import Point

RUNS = 12  # stretches of alike decisions that are told
NARROW = 16  # labels up to which the confusion matrix is a table; of more, the largest mistakes are told
SPACE = "\u202f"  # narrow, and no line ends at it
LABEL = "retrue feedback --file labels.csv"
POWERS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The report in a line: `tone` is good, look, bad or open, `advice` says what to do and `command` how."""

    tone: str
    title: str
    notes: list[str]
    advice: str
    command: str | None


@dataclass(frozen=True)
class Run:
    """Successive checks of one model with one decision: the last accuracy, the largest statistic and its group."""

    first: str
    last: str
    checks: int
    model: str
    decision: str
    accuracy: float | None
    statistic: float | None
    worst: str | None


def render(report: Report, history: Sequence[Point]) -> str:
    """The HTML of a report; `history` holds a point for each check, oldest first, and ends with the report's own.

    Without a history, as for two plain files, nothing is drawn over time.
    """
    confusion = report["confusion"] or {"labels": [], "counts": []}
    return _template().render(
        report=report,
        verdict=verdict(report),
        history=history,
        accuracy=charts.accuracy(history),
        lost=charts.evidence(history, "accuracy_"),
        drift=charts.drift(history),
        evidence=charts.evidence(history),
        moved=sorted(report["drift"]["distances"].items(), key=lambda item: -item[1]) if report["drift"] else [],
        slices=[(by, list(parts)) for by, parts in itertools.groupby(report["slices"], lambda part: part["by"])],
        is_narrow=len(confusion["labels"]) <= NARROW,
        mistakes=_mistakes(confusion["labels"], confusion["counts"]),
        runs=runs(history),
        least=_least(report),
        ends=_ends,
        fill=_fill,
        place=_place,
    )


def verdict(report: Report) -> Verdict:
    """What a person should know first, why, and what to do next."""
    texts, labels, serves = report["drift"], report["accuracy"], report["model"] is not None
    drifted, fallen = bool(texts and texts["fired"]), bool(labels and labels["fired"])
    if fallen:
        tone, title = "bad", "Accuracy has fallen, and the texts have drifted" if drifted else "Accuracy has fallen"
    elif drifted:
        tone, title = "look", "The texts have drifted"
    elif report["trigger"] == "schedule":
        tone, title = "look", "The model is due for a retraining"
    elif texts and labels:
        tone, title = "good", "Healthy"
    elif labels:
        tone, title = "good", "Accuracy holds; too few new texts to judge drift"
    elif texts:
        tone, title = "good", "No drift is seen; accuracy is not known yet" if serves else "No drift is seen"
    elif serves or report["n"]:
        tone, title = "open", "Not enough to judge yet"
    else:
        tone, title = "open", "No model is serving yet"
    notes = [*report["reasons"], *(why for name in ("drift", "accuracy") if (why := report[f"{name}_reason"]))]
    if texts and not drifted and texts["statistic"] >= texts["threshold"]:
        notes.append(
            "This window alone is unusual. That happens by chance now and then, so it is evidence and no alarm yet."
        )
    return Verdict(tone, title, [_sentence(note) for note in notes], *_advice(report, title))


def runs(history: Sequence[Point]) -> list[Run]:
    """The last stretches of checks with one decision, the newest first."""
    found = []
    for (model, decision), group in itertools.groupby(history, lambda point: (point["model"], point["decision"])):
        own = list(group)
        known = [point["accuracy"] for point in own if point["accuracy"] is not None]
        seen = [point for point in own if point["statistic"] is not None]
        peak = max(seen, key=lambda point: float(point["statistic"]), default={"statistic": None, "worst": None})
        accuracy = known[-1] if known else None
        found.append(
            Run(own[0]["time"], own[-1]["time"], len(own), model, decision, accuracy, peak["statistic"], peak["worst"])
        )
    return found[: -RUNS - 1 : -1]


@cache
def _template() -> jinja2.Template:
    shape = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shape.filters |= {"percent": _percent, "number": _number, "time": _time, "age": _age}
    return shape.from_string(resources.files(__package__).joinpath("page.html.j2").read_text("utf-8"))


def _advice(report: Report, title: str) -> tuple[str, str | None]:
    retrain = f'retrue retrain --reason "{title[0].lower()}{title[1:]}"'
    if report["model"] is None:
        if not report["n"]:
            return "Train a first model:", "retrue retrain"
        if report["drift"] and report["drift"]["fired"]:
            return "To know what that costs, have some of the new texts labelled and compare the answers.", None
        return "Nothing has to be done.", None
    match report["decision"]:
        case "retrain" if report["requested"]:
            return "A retraining was asked for. What comes of it is written here:", "retrue ledger"
        case "retrain":
            return "A retraining is due, but this check was not to ask for it. To ask yourself:", retrain
        case "suggest":
            return "A retraining is suggested, and waits for you:", retrain
        case "label":
            return "Have some of the newest texts labelled, then hand in the labels:", LABEL
        case "wait":
            return "A retraining was asked for lately, so there is none now. To have one all the same:", retrain
        case _ if report["accuracy"] is None:
            return "Nothing has to be done. Labels would tell how good the answers are:", LABEL
    return "Nothing has to be done.", None


def _mistakes(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[int, str, str]]:
    """The most frequent mistakes: how often, the true label, the answer."""
    wrong = [(n, labels[i], labels[j]) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    return sorted(wrong, key=lambda mistake: -mistake[0])[:NARROW]


def _least(report: Report) -> float:
    """Where the axis of accuracies and F1 begins, which ends at 1."""
    f1 = report["f1"]
    parts = [*report["slices"], *([report["accuracy"]] if report["accuracy"] else [])]
    parts += [f1, *f1["per_class"].values()] if f1 else []
    return charts.ticks(min([part["low"] for part in parts], default=0.0), 1.0)[0]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around values."""
    marks = charts.ticks(min(values), max(values))
    return marks[0], marks[-1]


def _fill(evidence: float, limit: float) -> str:
    """How far a meter is filled, in powers of ten: empty at 0.1, and four fifths at the limit."""
    return _place(0.8 * (math.log10(max(evidence, 0.1)) + 1) / (math.log10(limit) + 1), 0.0, 1.0)


def _place(value: float, low: float, high: float) -> str:
    """Where a value lies between two others, in %; what is outside lies at the edge."""
    return f"{100 * min(max((value - low) / (high - low), 0.0), 1.0):.1f}%"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}{SPACE}%".replace("-", "\u2212")


def _number(value: float) -> str:
    """Whole and large numbers with separators, others with three digits that matter, very small or large as powers."""
    size = abs(value)
    if isinstance(value, int) or value == 0 or 999.5 <= size < 1e6:
        text = f"{value:,.0f}"
    elif 0.001 <= size < 1e6:
        text = f"{value:.3g}"
    else:
        digits, power = f"{value:.1e}".split("e")
        text = f"10{str(int(power)).translate(POWERS)}"
        text = text if digits == "1.0" else f"{digits}{SPACE}×{SPACE}{text}"
    return text.replace("-", "\u2212")


def _time(text: str, whole: bool = True) -> str:
    time = datetime.fromisoformat(text)
    day = f"{time.day}\u00a0{time:%b}"
    return f"{day}\u00a0{time.year}, {time:%H:%M}\u00a0UTC" if whole else f"{day},\u00a0{time:%H:%M}"


def _age(hours: float | None) -> str:
    if hours is None:
        return "none yet"
    count, unit = (hours * 60, "minute") if hours < 1 else (hours, "hour") if hours < 48 else (hours / 24, "day")
    text = f"{count:.0f}" if hours < 1 or count >= 10 else f"{count:.1f}".removesuffix(".0")
    return f"{text}\u00a0{unit}{'' if text == '1' else 's'}"
