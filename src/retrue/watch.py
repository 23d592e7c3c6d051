"""The monitor: what the newest texts and labels say about the serving model, and whether it should be retrained.

A check judges what is new since the last one, so that no text and no label is evidence twice. Too few new texts are
left for the next check and are no evidence. What the checks found together is kept in one state document, which begins
anew with every model.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from retrue import artifact, detector, drift, health, metrics, page, report
from retrue.artifact import Card
from retrue.drift import Drift, Reference
from retrue.errors import Busy
from retrue.health import Ages, Decision, Policy, Signs
from retrue.intake import Intake
from retrue.lake import LATEST_PAGE, LATEST_REPORT, MODELS, REPORTS, Lake, stamp
from retrue.records import Label, Prediction, Record, from_iso
from retrue.report import Report
from retrue.settings import Monitor
from retrue.telemetry import publish
from retrue.workflow import LABELS_WANTED, REQUESTED, SUGGESTED

STATE, TOLD = f"{REPORTS}state.json", f"{REPORTS}told.json"
HOUR = 3_600_000
POINTS = 1_000  # checks that the report's pictures show
ACCEPTED = 100  # windows after a promotion that show how clustered usual traffic is; later ones may be drifting
FULL = 5_000  # records that are batched, whoever answered them
BATCHES = 8  # intakes that a check has time for
LOWEST = 0.01  # accuracy that can be tolerated, and as much under 1
TELLS = {"retrain": REQUESTED, "suggest": SUGGESTED, "label": LABELS_WANTED}

R = TypeVar("R", Prediction, Label)
Tell = Callable[[str, dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class State(Record):
    """What the checks of one model found so far.

    `drift` and `accuracy` are the totals of the two detectors, `seen` is what the last window that was judged showed,
    `past` the accepted windows' sizes and distances, `labels` how many came; `newest` and `points` outlive the model.
    """

    model: str
    time: str | None = None
    drift: float = 0.0
    accuracy: list[float] | None = None
    labels: int = 0
    seen: dict[str, Any] | None = None
    past: list[dict[str, Any]] = field(default_factory=list)
    newest: dict[str, str | None] = field(default_factory=lambda: {"text": None, "label": None})
    points: list[dict[str, Any]] = field(default_factory=list)


def run(lake: Lake, model_uri: str, settings: Monitor, now_ms: int, tell: Tell | None) -> Report:
    """Check the serving model, say what is due, and publish and keep the report.

    `tell` sends an event of one of TELLS with its detail; with None nobody is told and the rest is done all the same.
    The heartbeat is published last: where it is missing, something above it failed.
    """
    key = f"{REPORTS}{stamp(now_ms)}"
    found, points = report.blank(now_ms, settings.mode), list[dict[str, Any]]()
    found["page"] = lake.uri(f"{key}.html")
    if model_uri == artifact.NONE:
        found["reasons"] = ["no model is serving yet: run `retrue retrain`"]
    else:
        told, _ = lake.get_versioned(TOLD)
        told = told or {}
        state = _check(lake, model_uri.rstrip("/").rpartition("/")[2], settings, now_ms, told, found)
        points, action = state.points, found["decision"]
        if tell is not None and action in TELLS:
            evidence = {
                name: found[name] for name in ("model", "window", "drift", "accuracy", "f1", "expected_accuracy")
            }
            detail = {"reason": "; ".join(found["reasons"]), "trigger": found["trigger"], "evidence": evidence}
            tell(TELLS[action], {**detail, "report": lake.uri(f"{key}.json"), "page": found["page"]})
            read = {"read": {"model": state.model, "labels": state.labels}} if action == "retrain" else {}
            lake.put_json(TOLD, {**told, action: found["time"], **read})
            found["requested"] = True
    html = page.render(found, points).encode()
    for name in (f"{key}.html", LATEST_PAGE):
        lake.put(name, html, "text/html; charset=utf-8")
    for name in (f"{key}.json", LATEST_REPORT):
        lake.put_json(name, found)
    publish(settings.environment, report.measured(found), now_ms)
    return found


def _check(lake: Lake, model: str, settings: Monitor, now_ms: int, told: dict[str, Any], found: Report) -> State:
    """Write one check of a model into its blank report; what is known after it."""
    card, reference = _model(lake, model)
    kept, etag = lake.get_versioned(STATE)
    state = State.of(kept) if kept is not None else State(model)
    if state.model != model:
        state = State(model, time=state.time, newest=state.newest, points=state.points)
    expected = float(card.metrics["test"]["accuracy"])
    tolerated = min(max(expected - settings.tolerated_drop, LOWEST), 1 - LOWEST)
    found |= {"model": model, "expected_accuracy": expected, "tolerated_accuracy": tolerated}

    least = max(settings.minimum_rows, drift.SIZES[0])
    texts = Sample(model, settings.window_rows, seed=now_ms)
    for batch in _batches(lake, Prediction):
        texts.take(batch)
        if batch.left or texts.own >= least or texts.total >= FULL:
            batch.commit()
    labels: list[Label] = []
    for answers in _batches(lake, Label):
        labels += (replace(one, text=None) for one in answers)
        answers.commit()
    # What is taken before the state is written may be lost as evidence, but never counts twice.
    window = texts.window()
    state = replace(state, newest=_newer(state.newest, texts.newest, max((one.time for one in labels), default=None)))
    found |= {"n": len(window), "window": _span(window), "newest": state.newest}
    if len(window) >= least:
        state = _judge_texts(found, state, card, reference, window, settings)
    else:
        found["drift_reason"] = f"{len(window)} new rows are too few to judge: {least} are needed"
    found["drift"] = state.seen
    state = _judge_labels(found, state, card, [one for one in labels if one.model == model], lake, settings, now_ms)
    found["ages"] = vars(_ages(card, state, now_ms))
    decision = _decide(found, state, told, settings, now_ms)
    found |= {"decision": decision.action, "trigger": decision.trigger, "reasons": decision.reasons}
    state = replace(state, time=found["time"], points=[*state.points, report.point(found)][-POINTS:])
    if not lake.put_json_if(STATE, json.loads(state.to_json()), etag):
        raise Busy("another check of this model ran at the same time: look at its report, or check again")
    return state


def _model(lake: Lake, model: str) -> tuple[Card, Reference]:
    """The card and the drift reference of a model; ModelRefused where another graph made the reference."""
    folder = f"{MODELS}{model}/"
    card = Card.from_json(lake.get(folder + artifact.CARD))
    files = lake.get_json(folder + artifact.MANIFEST)["files"]
    maker = artifact.bound(files, card.max_tokens, card.cut)
    return card, Reference.from_bytes(lake.get(folder + artifact.REFERENCE), maker)


class Sample:
    """A model's predictions, at most `most` of them chosen by lot, in one pass that holds no more (Vitter 1985, R).

    `own` counts those of the model, `total` those of all models; `newest` is the time of the newest of them.
    """

    def __init__(self, model: str, most: int, seed: int) -> None:
        self.model, self.most = model, most
        self.draw = np.random.default_rng(seed)
        self.kept: list[Prediction] = []
        self.own = self.total = 0
        self.newest: str | None = None

    def take(self, records: Iterable[Prediction]) -> None:
        for record in records:
            self.total += 1
            self.newest = max(self.newest or record.time, record.time)
            if record.model != self.model:
                continue
            self.own += 1
            if len(self.kept) < self.most:
                self.kept.append(record)
            elif (place := int(self.draw.integers(self.own))) < self.most:
                self.kept[place] = record

    def window(self) -> list[Prediction]:
        """Those that were chosen, in the order of time."""
        return sorted(self.kept, key=lambda one: one.id)


def _batches(lake: Lake, kind: type[R]) -> Iterator[Intake[R]]:
    """Intakes until the queue is empty, or as many as a check has time for; one is open until the next is asked for."""
    for _ in range(BATCHES):
        with Intake(lake, kind) as batch:
            yield batch
            if not batch.left:
                return


def _judge_texts(
    found: Report, state: State, card: Card, reference: Reference, window: Sequence[Prediction], settings: Monitor
) -> State:
    """Write what a window of texts shows into the report, and what it adds into the state."""
    scores = np.array([[one.scores[label] for label in card.labels] for one in window])
    table = drift.columns(
        np.array([one.projection for one in window]),
        np.array([one.tokens for one in window]),
        np.array([one.pieces for one in window]),
        np.array([one.symbols for one in window]),
        scores,
    )
    stretch = drift.stretch(reference, state.past)
    seen: Drift = drift.check(reference, table, stretch=stretch)
    evidence = detector.add(state.drift, detector.evidence(seen.p))
    told = report.drifted(seen, stretch, evidence, settings.run_length)
    found["estimated_accuracy"] = metrics.estimated_accuracy(scores)
    quiet = len(state.past) < ACCEPTED and not told["fired"]
    past = [*state.past, {"n": seen.n, "distances": seen.distances}] if quiet else state.past
    return replace(state, drift=evidence, seen=told, past=past)


def _judge_labels(
    found: Report, state: State, card: Card, new: Sequence[Label], lake: Lake, settings: Monitor, now_ms: int
) -> State:
    """Write what the labels show into the report, and what the new ones add into the state.

    A prediction is evidence once: a label that corrects an earlier one counts in the window alone.
    """
    window, times = _labels(lake, found["model"], settings.label_days, now_ms)
    arrived = Counter(one.id for one in new)
    first = [one for one in {one.id: one for one in new}.values() if times[one.id] <= arrived[one.id]]
    right = sum(one.label == one.predicted for one in first)
    totals = detector.count(state.accuracy, right, len(first) - right, found["tolerated_accuracy"])
    least = settings.minimum_labels
    if len(window) >= least:
        level = detector.level(totals)
        found |= report.labelled(window, card.labels, level, settings.label_run_length)
    else:
        found["accuracy_reason"] = f"{len(window)} labels are too few to judge: {least} are needed"
    return replace(state, accuracy=totals, labels=state.labels + len(first))


def _labels(lake: Lake, model: str, days: int, now_ms: int) -> tuple[list[Label], Counter[str]]:
    """The newest label of each of a model's predictions that came in the last days, and how often each was labelled."""
    since = now_ms - days * 24 * HOUR
    found: dict[str, Label] = {}
    times: Counter[str] = Counter()
    for label in lake.newest_labels(now_ms, days * 24):
        if from_iso(label.time) < since:
            break
        if label.model == model:
            found.setdefault(label.id, label)
            times[label.id] += 1
    return list(found.values()), times


def _decide(found: Report, state: State, told: dict[str, Any], settings: Monitor, now_ms: int) -> Decision:
    texts, labels = report.sentences(found)
    asked = max((told[action] for action in ("retrain", "suggest") if action in told), default=None)
    read = told.get("read")
    signs = Signs(
        drift=texts,
        accuracy=labels,
        model_hours=found["ages"]["model_hours"],
        hours_since_request=_hours(asked, now_ms),
        new_labels=state.labels - (read["labels"] if read and read["model"] == state.model else 0),
        hours_since_labels_asked=_hours(told.get("label"), now_ms),
    )
    policy = Policy(
        mode=settings.mode,
        cooldown_hours=settings.cooldown_hours,
        backstop_days=settings.backstop_days,
        labels_wanted=settings.labels_wanted,
        drift_retrains_at_once=settings.drift_retrains_at_once,
    )
    return health.decide(signs, policy)


def _ages(card: Card, state: State, now_ms: int) -> Ages:
    return Ages(
        model_hours=_hours(card.created, now_ms) or 0.0,
        label_hours=_hours(state.newest["label"], now_ms),
        text_hours=_hours(state.newest["text"], now_ms),
        check_hours=_hours(state.time, now_ms),
    )


def _newer(known: dict[str, str | None], text: str | None, label: str | None) -> dict[str, str | None]:
    times = {"text": (known["text"], text), "label": (known["label"], label)}
    return {name: max((time for time in both if time), default=None) for name, both in times.items()}


def _span(window: Sequence[Prediction]) -> dict[str, Any]:
    return {"from": window[0].time if window else None, "to": window[-1].time if window else None, "n": len(window)}


def _hours(time: str | None, now_ms: int) -> float | None:
    return None if time is None else max(0.0, (now_ms - from_iso(time)) / HOUR)
