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
    """A version of the serving function that carries the model, and the version that serves until then."""
    previous = release.live_version()
    return {"version": release.publish(model_uri(store, model), f"model {model}, run {run}"), "previous": previous}


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
    live: str,
    now_ms: int,
) -> LedgerEntry:
    """Move the alias and the pointer to the candidate's version, and write it down.

    `live` served before. Done again after the alias has moved, it ends in the same state.
    """
    uri = model_uri(store, candidate["model"])
    before = release.move(version, uri)
    previous = before if before != version else live
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


def fail(store: Lake, release: Release, execution: str, state: dict[str, Any], now_ms: int) -> dict[str, str]:
    """Write down that a run ended with the error in its state; {"action", "reason"} of what it ended as.

    What serves decides, not the error: a run whose version is behind the alias has promoted it, and what its promotion
    left undone is done here.
    """
    error = state["error"]
    told = f"{error.get('Error', 'error')}: {_cause(error)}"
    live = release.live_version()
    if state.get("release", {}).get("version") == live:
        if "promoted" not in state:
            before = state["release"]["previous"]
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
    """Move the alias back to the version that served before, or to the one named, and write it down."""
    live = release.live_version()
    if version is None:
        version = _before(store.ledger(), live)
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


def _before(entries: list[LedgerEntry], live: str) -> str:
    """The version that served before the live one, leaving out those that were rolled away from since."""
    path: list[str] = []
    for entry in entries:
        if entry.version is None:
            continue  # nothing moved
        before = entry.previous_version
        path = _below(path, before)
        if entry.action == "promoted" and before and entry.previous_model:
            path.append(before)
        path = [*_below(path, entry.version), entry.version]
    path = _below(path, live)
    if not path:
        raise StackError("the ledger knows no version with a model that served before this one")
    return path[-1]


def _below(path: list[str], version: str | None) -> list[str]:
    return path[: path.index(version)] if version in path else path[:]


def _model(uri: str) -> str | None:
    return None if uri == NONE else uri.rstrip("/").rsplit("/", 1)[-1]


def _cause(error: dict[str, Any]) -> str:
    """The message of a Lambda error, which Step Functions hands on as JSON inside a text."""
    cause = str(error.get("Cause", ""))
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return cause[-2_000:]
