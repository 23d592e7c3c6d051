"""The monitor: what the newest texts and labels say about the serving model, and whether it should be retrained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from retrue import artifact, drift, health, metrics
from retrue.artifact import Card
from retrue.drift import Drift, Reference
from retrue.errors import NotFound
from retrue.health import Ages, Decision, Policy, Signs
from retrue.lake import LATEST_REPORT, MODELS, REPORTS, Lake, stamp
from retrue.metrics import Quality
from retrue.records import Label, Prediction, from_iso, id_ms, iso
from retrue.settings import Monitor
from retrue.telemetry import Metric, publish

LAST_REQUEST = f"{REPORTS}last-request.json"
HOUR = 3_600_000

Report = dict[str, Any]
Request = Callable[[dict[str, Any]], object]


def run(lake: Lake, model_uri: str, settings: Monitor, now_ms: int, request: Request | None) -> Report:
    """Check the serving model, ask for a retraining where it is due, and publish and keep the report.

    `request` sends the detail of retrain.requested; with None nothing is asked for and the rest is done all the same.
    The heartbeat is published last: where it is missing, something above it failed.
    """
    key = f"{REPORTS}{stamp(now_ms)}.json"
    if model_uri == artifact.NONE:
        report: Report = {"time": iso(now_ms), "model": None, "n": 0, "decision": "none", "requested": False}
        report["reasons"] = ["no model is serving yet: run `retrue retrain`"]
    else:
        model = model_uri.rstrip("/").rpartition("/")[2]
        card = Card.from_json(lake.get(f"{MODELS}{model}/{artifact.CARD}"))
        reference = Reference.from_bytes(lake.get(f"{MODELS}{model}/{artifact.REFERENCE}"))
        report = check(lake, card, model, reference, settings, now_ms, _read(lake, LATEST_REPORT))
    if report["decision"] == "retrain" and request is not None:
        evidence = {name: report[name] for name in ("model", "window", "drift", "accuracy", "f1", "expected_accuracy")}
        reason = "; ".join(report["reasons"])
        request({"reason": reason, "trigger": report["trigger"], "evidence": evidence, "report": lake.uri(key)})
        lake.put_json(LAST_REQUEST, {"time": iso(now_ms), "report": lake.uri(key)})
        report["requested"] = True
    lake.put_json(key, report)
    lake.put_json(LATEST_REPORT, report)
    publish(settings.environment, measured(report), now_ms)
    return report


def check(
    lake: Lake, card: Card, model: str, reference: Reference, settings: Monitor, now_ms: int, last_report: Report | None
) -> Report:
    """Everything that is known about one model now; nothing is written and nothing asked for."""
    born = from_iso(card.created)
    window, text_time = _window(lake, model, settings, max(now_ms - settings.window_hours * HOUR, born), now_ms)
    labels, label_time = _labels(lake, model, max(now_ms - settings.label_days * 24 * HOUR, born), now_ms)
    last = last_report or {}
    newest = last.get("newest", {}) | {k: v for k, v in (("text", text_time), ("label", label_time)) if v}
    ages = Ages(
        model_hours=_hours(card.created, now_ms) or 0.0,
        label_hours=_hours(newest.get("label"), now_ms),
        text_hours=_hours(newest.get("text"), now_ms),
        check_hours=_hours(last.get("time"), now_ms),
    )
    least = max(settings.minimum_rows, drift.SIZES[0])
    drifted = _drift(card, reference, window, settings.false_alarm_rate) if len(window) >= least else None
    quality = (
        metrics.quality([label.label for label in labels], [label.predicted for label in labels], card.labels)
        if labels
        else None
    )
    expected = float(card.metrics["test"]["accuracy"])
    lowest = expected - settings.tolerated_drop
    fired = quality is not None and quality.n >= settings.minimum_labels and quality.high < lowest
    signs = Signs(
        drift=f"the texts have drifted, most of all in {drifted.worst}" if drifted and drifted.fired else None,
        accuracy=f"accuracy on {quality.n} labels is {quality.accuracy:.3f}" if quality and fired else None,
        model_hours=ages.model_hours,
        hours_since_request=_hours((_read(lake, LAST_REQUEST) or {}).get("time"), now_ms),
        new_labels=len(labels),
    )
    policy = Policy(cooldown_hours=settings.cooldown_hours, backstop_days=0, drift_retrains_at_once=True)
    decision = health.decide(signs, policy)
    return _report(model, expected, window, least, drifted, quality, fired, ages, newest, decision, now_ms)


def measured(report: Report) -> dict[Metric, float]:
    """The metrics of a report; what is not known is left out rather than called zero."""
    values: dict[Metric, float | None] = {
        Metric.WINDOW_ROWS: report["n"],
        Metric.RETRAIN_REQUESTED: float(report["requested"]),
        Metric.HEARTBEAT: 1.0,
    }
    if found := report.get("drift"):
        values[Metric.DRIFT_DISTANCE] = found["distance"]
        values[Metric.DRIFT_STATISTIC] = found["statistic"]
        values[Metric.DRIFT_P] = found["p"]
        values[Metric.DRIFT_FIRED] = float(found["fired"])
    if accuracy := report.get("accuracy"):
        values[Metric.ACCURACY] = accuracy["value"]
        values[Metric.ACCURACY_FIRED] = float(accuracy["fired"])
        values[Metric.LABELLED_PREDICTIONS] = accuracy["n"]
        values[Metric.F1_MACRO] = report["f1"]["macro"]
    if ages := report.get("ages"):
        values[Metric.MODEL_AGE_HOURS] = ages["model_hours"]
        values[Metric.LABEL_AGE_HOURS] = ages["label_hours"]
        values[Metric.TEXT_AGE_HOURS] = ages["text_hours"]
        values[Metric.CHECK_AGE_HOURS] = ages["check_hours"]
    return {metric: value for metric, value in values.items() if value is not None}


def _window(lake: Lake, model: str, settings: Monitor, since: int, now_ms: int) -> tuple[list[Prediction], str | None]:
    """The model's newest predictions, newest first, and the time of the newest by any model."""
    found: list[Prediction] = []
    newest: str | None = None
    for batch in lake.newest_predictions(now_ms, settings.window_hours):
        if (id_ms(batch[0].id) or 0) < since:
            break
        newest = newest or batch[0].time
        found += [prediction for prediction in reversed(batch) if prediction.model == model]
        if len(found) >= settings.window_rows:
            break
    return found[: settings.window_rows], newest


def _labels(lake: Lake, model: str, since: int, now_ms: int) -> tuple[list[Label], str | None]:
    """The newest label of each of the model's predictions, and the time of the newest label for any model."""
    found: dict[str, Label] = {}
    newest: str | None = None
    for label in lake.newest_labels(now_ms, -(-(now_ms - since) // HOUR)):
        if from_iso(label.time) < since:
            break
        newest = newest or label.time
        if label.model == model:
            found.setdefault(label.id, label)
    return list(found.values()), newest


def _drift(card: Card, reference: Reference, window: list[Prediction], false_alarm_rate: float) -> Drift:
    columns = drift.columns(
        np.array([prediction.projection for prediction in window]),
        np.array([prediction.tokens for prediction in window]),
        np.array([prediction.pieces for prediction in window]),
        np.array([prediction.symbols for prediction in window]),
        np.array([[prediction.scores[label] for label in card.labels] for prediction in window]),
    )
    return drift.check(reference, columns, false_alarm_rate)


def _report(
    model: str,
    expected: float,
    window: list[Prediction],
    least: int,
    drifted: Drift | None,
    quality: Quality | None,
    fired: bool,
    ages: Ages,
    newest: dict[str, str],
    decision: Decision,
    now_ms: int,
) -> Report:
    n = len(window)
    return {
        "time": iso(now_ms),
        "model": model,
        "n": n,
        "window": {"from": window[-1].time if n else None, "to": window[0].time if n else None, "n": n},
        "drift": dataclasses.asdict(drifted) | {"fired": drifted.statistic > drifted.threshold} if drifted else None,
        "drift_reason": None if drifted else f"{n} rows are too few to judge: {least} are needed",
        "expected_accuracy": expected,
        "accuracy": {
            "value": quality.accuracy,
            "low": quality.low,
            "high": quality.high,
            "n": quality.n,
            "fired": fired,
        }
        if quality
        else None,
        "f1": {"macro": quality.f1_macro, "per_class": quality.f1, "n": quality.n} if quality else None,
        "ages": dataclasses.asdict(ages),
        "newest": newest,
        "decision": decision.action,
        "trigger": decision.trigger,
        "reasons": decision.reasons,
        "requested": False,
    }


def _read(lake: Lake, key: str) -> Report | None:
    try:
        report: Report = lake.get_json(key)
    except NotFound:
        return None
    return report


def _hours(time: str | None, now_ms: int) -> float | None:
    return None if time is None else max(0.0, (now_ms - from_iso(time)) / HOUR)
