"""What serves and why: a version is published, validated and moved to, and the ledger says so; or why not."""

import json
import math
from typing import Any

from retrue import artifact, lake
from retrue.artifact import NONE
from retrue.errors import NotFound, ReleaseRefused, StackError
from retrue.lake import Lake
from retrue.records import LedgerEntry, iso
from retrue.release import Release
from retrue.workflow import run_of

TOLERANCE = 1e-3  # largest difference in a golden score between where it was made and where it is served


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
    answer = release.ask(version, {"probe": [item["text"] for item in golden]})
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


def promote(
    store: Lake,
    release: Release,
    run: str,
    request: dict[str, Any],
    candidate: dict[str, Any],
    version: str,
    now_ms: int,
) -> LedgerEntry:
    """Move the alias and the pointer to the candidate's version, and write it down."""
    uri = model_uri(store, candidate["model"])
    previous = release.move(version, uri)
    entry = LedgerEntry(
        time=iso(now_ms),
        action="promoted",
        model=candidate["model"],
        version=version,
        previous_model=_model(release.model_of(previous)),
        previous_version=previous,
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


def fail(store: Lake, release: Release, execution: str, error: dict[str, Any], now_ms: int) -> LedgerEntry:
    """Write down that a run ended with an error; nothing moves."""
    entry = LedgerEntry(
        time=iso(now_ms),
        action="failed",
        model=None,
        reason=f"{error.get('Error', 'error')}: {_cause(error)}",
        previous_version=release.live_version(),
        run=run_of(execution),
    )
    store.append_ledger(entry)
    return entry


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


def _model(uri: str) -> str | None:
    return None if uri == NONE else uri.rstrip("/").rsplit("/", 1)[-1]


def _cause(error: dict[str, Any]) -> str:
    """The message of a Lambda error, which Step Functions hands on as JSON inside a text."""
    cause = str(error.get("Cause", ""))
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return cause[-2_000:]
