"""What serves and why: a version is published, validated, watched and moved to, and the ledger says so; or why not."""

import itertools
import json
import math
from typing import Any

import numpy as np

from retrue import artifact, canary, lake
from retrue.artifact import NONE
from retrue.errors import AliasMoved, NotFound, ReleaseRefused, StackError
from retrue.lake import Lake
from retrue.records import LedgerEntry, iso
from retrue.release import Release
from retrue.settings import Release as Settings
from retrue.workflow import run_of

TOLERANCE = 1e-3  # largest difference in a golden score between where it was made and where it is served
LOOK = 60  # seconds between two looks at a canary, which is how often CloudWatch counts
ANSWERS = 3_000  # of both versions together that are compared, the first ones


def model_uri(store: Lake, model: str) -> str:
    """The URI of a model that is in the lake; NotFound where it is not."""
    if not model.isalnum() or next(store.keys(f"{lake.MODELS}{model}/{artifact.MANIFEST}"), None) is None:
        raise NotFound(f"there is no model {model!r} in the lake: `retrue ledger` lists those that served")
    return store.uri(f"{lake.MODELS}{model}/")


def publish(store: Lake, release: Release, model: str, run: str) -> dict[str, Any]:
    """A version of the serving function that carries the model."""
    return {"version": release.publish(model_uri(store, model), f"model {model}, run {run}")}


def validate(store: Lake, release: Release, model: str, version: str) -> dict[str, Any]:
    """Ask the new version the model's golden inputs; ReleaseRefused where it answers otherwise than at training."""
    golden = store.get_json(f"{lake.MODELS}{model}/{artifact.GOLDEN}")
    answer = _probe(release, version, golden)
    if answer["model"] != model:
        raise ReleaseRefused(f"version {version} serves model {answer['model']} where {model} was expected")
    differences = (
        abs(scores[label] - item["scores"][label])
        for item, scores in zip(golden, answer["scores"], strict=True)
        for label in item["scores"]
    )
    # A NaN is above no limit, so it would pass.
    worst = max(math.inf if math.isnan(difference) else difference for difference in differences)
    if worst > TOLERANCE:
        raise ReleaseRefused(f"version {version} differs from its model's golden scores by {worst:.4f}")
    return {"worst": worst}


def share(release: Release, settings: Settings, version: str, now_ms: int) -> dict[str, Any]:
    """Let the new version answer a share of the traffic, where there is a champion to compare it with.

    `live` is the version behind the alias, which has to be the same until the promotion; `wait` is in seconds.
    """
    live = release.live_version()
    on = settings.canary_share > 0 and release.model_of(live) != NONE
    if on:
        release.share(version, settings.canary_share)
    until = now_ms + round(60_000 * settings.canary_minutes)
    return {"on": on, "live": live, "since": now_ms, "until": until, "wait": _wait(until, now_ms)}


def watch(
    store: Lake, release: Release, settings: Settings, model: str, version: str, shared: dict[str, Any], now_ms: int
) -> dict[str, Any]:
    """Look at the canary: `state` is watching, harmless or harmful, and `shared` as `share` gave it, or this did last.

    Failures and durations are looked at each time, answers at the end. AliasMoved where a deployment came between.
    """
    live, since = shared["live"], shared["since"]
    _unmoved(release, live, version)
    bounds = canary.Bounds(
        settings.canary_failures, settings.canary_slowdown, settings.canary_distance, settings.canary_agreement
    )
    ours, theirs = (canary.Calls(*release.calls(settings.environment, v, since, now_ms)) for v in (version, live))
    findings = [canary.conduct(ours, theirs, bounds)]
    over = now_ms >= shared["until"]
    if over:
        findings.append(_answers(store, release, model, live, since, bounds))
        findings.append(_mirrored(store, release, model, version, live, bounds))
    harms = [harm for finding in findings for harm in finding.harms]
    return {
        "state": "harmful" if harms else "harmless" if over else "watching",
        "reason": "; ".join(harms),
        "evidence": {key: value for finding in findings for key, value in finding.evidence.items()},
        "shared": {**shared, "wait": _wait(shared["until"], now_ms)},
    }


def withdraw(
    store: Lake, release: Release, run: str, request: dict[str, Any], model: str, watched: dict[str, Any], now_ms: int
) -> LedgerEntry:
    """Take the traffic away from a version that did harm, and write it down."""
    release.settle()
    entry = LedgerEntry(
        time=iso(now_ms),
        action="withdrawn",
        model=model,
        reason=f"{request['reason']}: {watched['reason']}",
        previous_version=release.live_version(),
        run=run,
        evidence=watched["evidence"],
    )
    store.append_ledger(entry)
    return entry


def promote(
    store: Lake,
    release: Release,
    run: str,
    request: dict[str, Any],
    candidate: dict[str, Any],
    version: str,
    live: str,
    now_ms: int,
) -> LedgerEntry:
    """Move the alias and the pointer to the candidate's version, and write it down.

    AliasMoved where the alias is no longer at `live`: a deployment has brought other code. Done again after the alias
    has moved, it ends in the same state.
    """
    uri = model_uri(store, candidate["model"])
    _unmoved(release, live, version)
    release.move(version, uri)
    entry = LedgerEntry(
        time=iso(now_ms),
        action="promoted",
        model=candidate["model"],
        version=version,
        previous_model=_model(release.model_of(live)),
        previous_version=live,
        reason=f"{request['reason']}: {candidate['reason']}",
        run=run,
        evidence=candidate.get("evidence"),
    )
    store.append_ledger(entry)
    return entry


def reject(
    store: Lake, release: Release, run: str, request: dict[str, Any], candidate: dict[str, Any], now_ms: int
) -> LedgerEntry:
    """Write down that the candidate was not good enough; nothing moves."""
    entry = LedgerEntry(
        time=iso(now_ms),
        action="rejected",
        model=candidate["model"],
        reason=f"{request['reason']}: {candidate['reason']}",
        previous_version=release.live_version(),
        run=run,
        evidence=candidate.get("evidence"),
    )
    store.append_ledger(entry)
    return entry


def fail(store: Lake, release: Release, execution: str, state: dict[str, Any], now_ms: int) -> dict[str, str]:
    """Write down that a run ended with the error in its state; {"action", "reason"} of what it ended as.

    One version answers everything after that. What serves decides, not the error: a run whose version is behind the
    alias has promoted it, and what its promotion left undone is done here.
    """
    release.settle()
    error = state["error"]
    told = f"{error.get('Error', 'error')}: {_cause(error)}"
    live = release.live_version()
    if state.get("release", {}).get("version") == live:
        if "promoted" not in state:
            before = state["watched"]["shared"]["live"]
            promote(store, release, state["run"], state["request"], state["candidate"], live, before, now_ms)
        return {"action": "promoted", "reason": f"version {live} serves, and after that came {told}"}
    entry = LedgerEntry(
        time=iso(now_ms),
        action="failed",
        model=None,
        reason=told,
        previous_version=live,
        run=run_of(execution),
    )
    store.append_ledger(entry)
    return {"action": entry.action, "reason": entry.reason}


def roll_back(store: Lake, release: Release, reason: str, now_ms: int, version: str | None = None) -> LedgerEntry:
    """Serve the model that served before, with the code and settings of today, or the version named, as it was.

    A version that has both is moved to at once; where a deployment has come since, one is published first.
    """
    live = release.live_version()
    if version is None:
        entries = store.ledger()
        model = _before(entries, _model(release.model_of(live)))
        version = _carrier(store, release, entries, model, live)
    if version == live:
        raise StackError(f"version {version} serves already")
    uri = release.model_of(version)
    if uri == NONE:
        raise StackError(f"version {version} carries no model: `retrue ledger` lists those that do")
    release.move(version, uri)
    entry = LedgerEntry(
        time=iso(now_ms),
        action="rolled-back",
        model=_model(uri),
        version=version,
        previous_model=_model(release.model_of(live)),
        previous_version=live,
        reason=reason,
    )
    store.append_ledger(entry)
    return entry


def _before(entries: list[LedgerEntry], live: str | None) -> str:
    """The model that served before the live one, leaving out those that were rolled away from since."""
    path: list[str] = []
    for entry in entries:
        if entry.version is None or entry.model is None:
            continue  # nothing moved
        path = _below(path, entry.previous_model)
        if entry.action == "promoted" and entry.previous_model:
            path.append(entry.previous_model)
        path = [*_below(path, entry.model), entry.model]
    path = _below(path, live)
    if not path:
        raise StackError("the ledger knows no model that served before this one")
    return path[-1]


def _below(path: list[str], model: str | None) -> list[str]:
    return path[: path.index(model)] if model in path else path[:]


def _carrier(store: Lake, release: Release, entries: list[LedgerEntry], model: str, live: str) -> str:
    """A version that serves a model just as the live version serves its own."""
    for entry in reversed(entries):
        if entry.version and entry.model == model and release.alike(entry.version, live):
            return entry.version
    return release.publish(model_uri(store, model), f"model {model}, rolled back")


def _unmoved(release: Release, live: str, version: str) -> None:
    """AliasMoved where the alias is at neither of two versions any more; ReleaseRefused where another model serves."""
    now = release.live_version()
    if now in (live, version):
        return
    release.settle()
    if release.model_of(now) != release.model_of(live):
        raise ReleaseRefused(f"version {now} serves another model since this release began: ask for a retraining anew")
    raise AliasMoved(f"a deployment moved the alias from version {live} to {now}: the model needs its code")


def _wait(until: int, now_ms: int) -> int:
    """Seconds to the next look."""
    return max(1, min(LOOK, math.ceil((until - now_ms) / 1_000)))


def _probe(release: Release, version: str, golden: list[dict[str, Any]]) -> Any:
    return release.ask(version, {"probe": [item["text"] for item in golden]})


def _mirrored(
    store: Lake, release: Release, model: str, version: str, live: str, bounds: canary.Bounds
) -> canary.Finding:
    """What both versions say of the candidate's golden inputs."""
    golden = store.get_json(f"{lake.MODELS}{model}/{artifact.GOLDEN}")
    said = (_probe(release, v, golden)["scores"] for v in (version, live))
    ours, theirs = ([max(scores, key=lambda label: scores[label]) for scores in each] for each in said)
    return canary.mirrored(ours, theirs, bounds)


def _answers(store: Lake, release: Release, model: str, live: str, since: int, bounds: canary.Bounds) -> canary.Finding:
    """What both models said to callers since a time; a CSV job asks neither version."""
    champion = _model(release.model_of(live))
    scores: dict[str, list[dict[str, float]]] = {model: [], str(champion): []}
    for prediction in itertools.islice(store.predictions_since(since), ANSWERS):
        if prediction.source == "http" and prediction.model in scores:
            scores[prediction.model].append(prediction.scores)
    labels = sorted({label for each in scores.values() for one in each for label in one})
    if len(scores) == 1 or not labels:
        return canary.Finding([], {"answers": 0})  # the same model again, or nobody asked
    ours, theirs = (
        np.array([[one.get(label, 0.0) for label in labels] for one in each]).reshape(-1, len(labels))
        for each in scores.values()
    )
    return canary.answers(ours, theirs, labels, bounds)


def _model(uri: str) -> str | None:
    return None if uri == NONE else uri.rstrip("/").rsplit("/", 1)[-1]


def _cause(error: dict[str, Any]) -> str:
    """The message of a Lambda error, which Step Functions hands on as JSON inside a text."""
    cause = str(error.get("Cause", ""))
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return cause[-2_000:]
