"""What one check of the monitor found: the JSON that is kept and shown, and the metrics in it.

Every key is always there, None where nothing is known. `drift` is what the last window that was judged showed, which is
an earlier one where `drift_reason` says why there was none now. Nothing is claimed of accuracy under the minimum of
labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrue import metrics
from retrue.drift import Drift
from retrue.records import Label, iso
from retrue.telemetry import Metric

Report = dict[str, Any]
LEAST = 20  # labels of a slice that is told
POINT = ("time", "model", "n", "decision", "expected_accuracy", "tolerated_accuracy")


def blank(now_ms: int, mode: str) -> Report:
    """The report of a check that could see nothing, as before the first model."""
    return {
        "time": iso(now_ms),
        "model": None,
        "n": 0,
        "window": {"from": None, "to": None, "n": 0},
        "drift": None,
        "drift_reason": None,
        "expected_accuracy": None,
        "tolerated_accuracy": None,
        "accuracy": None,
        "accuracy_reason": None,
        "f1": None,
        "calibration_error": None,
        "confusion": None,
        "slices": [],
        "estimated_accuracy": None,
        "ages": None,
        "newest": {"text": None, "label": None},
        "mode": mode,
        "decision": "none",
        "trigger": None,
        "reasons": [],
        "requested": False,
        "page": None,
    }


def drifted(found: Drift, stretch: Mapping[str, float], evidence: float | None, limit: float | None) -> dict[str, Any]:
    """The part of a report on drift: what this window shows, and what the checks so far show together, if any did."""
    return {
        **dataclasses.asdict(found),
        "stretch": dict(stretch),
        "evidence": evidence,
        "limit": limit,
        "fired": evidence is not None and limit is not None and evidence >= limit,
    }


def labelled(labels: Sequence[Label], names: Sequence[str], evidence: float, limit: float) -> Report:
    """The parts of a report on labels: accuracy, F1, confusion, calibration and slices, from at least one label."""
    truth, predicted = [label.label for label in labels], [label.predicted for label in labels]
    quality = metrics.quality(truth, predicted, names)
    macro, each = metrics.f1_intervals(quality.confusion, seed=0)
    scores = np.array([[label.scores[name] for name in names] for label in labels])
    right = np.array([a == b for a, b in zip(truth, predicted, strict=True)])
    parts = {
        "label": metrics.groups(truth),
        "length": metrics.terciles([label.tokens for label in labels], "tokens"),
        "source": metrics.groups([label.origin for label in labels]),
    }
    told = {by: {part: mask for part, mask in masks.items() if mask.sum() >= LEAST} for by, masks in parts.items()}
    return {
        "accuracy": {
            "value": quality.accuracy,
            "low": quality.low,
            "high": quality.high,
            "n": quality.n,
            "evidence": evidence,
            "limit": limit,
            "fired": evidence >= limit,
        },
        "f1": {
            "macro": macro.value,
            "low": macro.low,
            "high": macro.high,
            "per_class": {name: dataclasses.asdict(one) for name, one in zip(names, each, strict=True)},
            "n": quality.n,
        },
        "confusion": {"labels": list(names), "counts": quality.confusion},
        "calibration_error": metrics.calibration_error(scores, np.array([list(names).index(one) for one in truth])),
        "slices": [dataclasses.asdict(part) for part in metrics.slices(right, told)],
    }


def sentences(report: Report) -> tuple[str | None, str | None]:
    """What a detector that fired says, of the texts and of the labels; None where it did not."""
    found, accuracy = report["drift"], report["accuracy"]
    texts = labels = None
    if found and found["fired"]:
        texts = (
            f"the texts have drifted, most of all in {found['worst']}: a distance of {found['distance']:.2f} standard "
            f"deviations, statistic {found['statistic']:.2f} where {found['threshold']:.2f} is rare, on {found['n']} "
            f"rows (p = {found['p']:.2g})"
        )
    if accuracy and accuracy["fired"]:
        labels = (
            f"accuracy on {accuracy['n']} labels is {accuracy['value']:.3f} ({accuracy['low']:.3f} to "
            f"{accuracy['high']:.3f}), and the labels so far show that it is under the "
            f"{report['tolerated_accuracy']:.3f} that is tolerated"
        )
    return texts, labels


def lines(report: Report) -> list[tuple[str, str]]:
    """A report in a few lines for a terminal: what is told, and what it says."""
    found, accuracy, ages = report["drift"], report["accuracy"], report["ages"]
    texts, labels = report["drift_reason"], report["accuracy_reason"]
    if found:
        texts = (
            f"distance {found['distance']:.3f} sd on {found['n']} texts, most in {found['worst']}; "
            f"statistic {found['statistic']:.2f} against {found['threshold']:.2f}, p = {found['p']:.2g}"
        )
        if found["limit"] is not None:
            texts += f"; evidence {found['evidence']:.3g} of {found['limit']:,.0f}"
    if accuracy:
        labels = (
            f"accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}) on {accuracy['n']} "
            f"labels, {report['tolerated_accuracy']:.3f} is tolerated; evidence {accuracy['evidence']:.3g} of "
            f"{accuracy['limit']:,.0f}"
        )
    told = [("model", report["model"]), ("drift", texts), ("accuracy", labels)]
    if ages:
        told += [
            (f"newest {name}", "never" if ages[f"{name}_hours"] is None else f"{ages[f'{name}_hours']:.1f} hours ago")
            for name in ("text", "label")
        ]
    if report["model"]:
        told.append(("decision", report["decision"] + (", told" if report["requested"] else "")))
    return [(name, value) for name, value in [*told, *(("", reason) for reason in report["reasons"])] if value]


def point(report: Report) -> dict[str, Any]:
    """What is kept of a check to draw it later beside others."""
    found = (report["drift"] or {}) if report["drift_reason"] is None else {}
    accuracy = report["accuracy"] or {}
    return {
        **{name: report[name] for name in POINT},
        **{name: found.get(name) for name in ("distance", "statistic", "threshold", "p", "evidence", "limit", "worst")},
        "accuracy": accuracy.get("value"),
        "low": accuracy.get("low"),
        "high": accuracy.get("high"),
        "labels": accuracy.get("n"),
        "accuracy_evidence": accuracy.get("evidence"),
        "accuracy_limit": accuracy.get("limit"),
    }


def measured(report: Report) -> dict[Metric, float]:
    """The metrics of a report; what is not known is left out rather than called zero."""
    values: dict[Metric, float | None] = {
        Metric.WINDOW_ROWS: report["n"],
        Metric.RETRAIN_REQUESTED: float(report["requested"] and report["decision"] == "retrain"),
        Metric.LABELS_WANTED: float(report["decision"] == "label"),
        Metric.ESTIMATED_ACCURACY: report["estimated_accuracy"],
        Metric.HEARTBEAT: 1.0,
    }
    if found := report["drift"]:
        values[Metric.DRIFT_DISTANCE] = found["distance"]
        values[Metric.DRIFT_STATISTIC] = found["statistic"]
        values[Metric.DRIFT_P] = found["p"]
        values[Metric.DRIFT_EVIDENCE] = found["evidence"]
        values[Metric.DRIFT_FIRED] = float(found["fired"])
    if accuracy := report["accuracy"]:
        values[Metric.ACCURACY] = accuracy["value"]
        values[Metric.ACCURACY_EVIDENCE] = accuracy["evidence"]
        values[Metric.ACCURACY_FIRED] = float(accuracy["fired"])
        values[Metric.LABELLED_PREDICTIONS] = accuracy["n"]
        values[Metric.F1_MACRO] = report["f1"]["macro"]
    if ages := report["ages"]:
        values[Metric.MODEL_AGE_HOURS] = ages["model_hours"]
        # Where no label ever came, none has come for as long as the model is there.
        values[Metric.LABEL_AGE_HOURS] = ages["model_hours"] if ages["label_hours"] is None else ages["label_hours"]
        values[Metric.TEXT_AGE_HOURS] = ages["text_hours"]
        values[Metric.CHECK_AGE_HOURS] = ages["check_hours"]
    return {metric: value for metric, value in values.items() if value is not None}
