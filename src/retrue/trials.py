"""The trainings of one run: a single one, or the trials of a search, rung by rung until one becomes the candidate.

runs/<run>/search.json                     the plan, the rung that runs, and what became of each trial so far
runs/<run>/trials/<trial>/checkpoints/     where a trial goes on from in its next rung
"""

import dataclasses
import json
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any

from retrue import lake, search
from retrue.artifact import CARD, TRIAL
from retrue.errors import BadInput, NotFound, TrainingFailed, WrongSetting
from retrue.lake import Lake
from retrue.search import Search, Trial
from retrue.settings import Steps

LEAST_SECONDS = 300  # a job needs them to start, to load, and to leave what it made
REASON = 500  # characters of a trial's failure


def plan(
    store: Lake, settings: Steps, run: str, request: dict[str, Any], job: dict[str, Any], known: Mapping[str, type]
) -> dict[str, Any]:
    """The training jobs to begin with: the snapshot's own, or where the request holds a search its first rung.

    `known` are the types of the settings that may be searched. Answers {"jobs", "at_once", "rung", "artifacts"}, of
    which the last stays None until the training is over, and "search", which tells the plan in a sentence.
    """
    asked = request.get("search")
    if not asked:
        return {**_answer([job], 0, settings), "search": ""}
    trials = asked.get("trials", settings.search_trials)
    if trials > settings.search_trials:
        raise BadInput(f"{trials} trials are asked for, and this deployment allows {settings.search_trials}")
    hours = settings.search_hours
    if settings.search_cost:
        if not settings.price_per_hour:
            raise WrongSetting(
                "SEARCH_COST bounds nothing without a price: set PRICE_PER_HOUR, or leave the bound to SEARCH_HOURS"
            )
        hours = min(hours, settings.search_cost / settings.price_per_hour)
    drawn = search.draw(asked.get("kind"), search.space(asked.get("space"), known), trials, asked.get("seed", 0))
    longest = settings.train_seconds
    made = search.plan(drawn, hours * 3600, LEAST_SECONDS, longest, settings.price_per_hour)
    began = Search.begin(made)
    _write(store, run, began)
    return {**_answer(_jobs(store, run, job, began), 0, settings), "search": made.told()}


def choose(
    store: Lake,
    settings: Steps,
    run: str,
    request: dict[str, Any],
    job: dict[str, Any],
    rung: int,
    results: list[dict[str, Any]],
) -> dict[str, Any]:
    """What follows the jobs of a rung: the next rung's jobs, or the artifacts of the training that is the candidate.

    `results` holds {"job", "artifacts"} or {"job", "error"} of each job. Answers as `plan` does. TrainingFailed where
    no training is left that could become the candidate.
    """
    if not request.get("search"):
        (result,) = results
        if "error" in result:
            raise TrainingFailed(_reason(result["error"]))
        return _answer([], rung, settings, result["artifacts"])
    before = read(store, run)
    if before is None:
        raise NotFound(f"there is no {_key(run)}: begin the run again")
    # The rung of the state, not of the document: this step may be tried again after it has written the next one.
    found = Search(before.plan, rung, before.trials)
    by_job = {job_name(run, rung, trial): trial for trial in before.trials}
    for result in results:
        found = found.replaced(_tried(store, by_job[result["job"]], rung, result))
    after = search.halve(found)
    _write(store, run, after)
    if after.running:
        return _answer(_jobs(store, run, job, after), after.rung, settings)
    return _answer([], after.rung, settings, search.winner(after).artifacts)


def curves(store: Lake, run: str) -> list[dict[str, Any]]:
    """The trials of a run's search as the registry takes them; none where nothing was searched."""
    found = read(store, run)
    return search.curves(found) if found else []


def read(store: Lake, run: str) -> Search | None:
    """The search of a run, or None where nothing is searched."""
    try:
        return Search.from_json(store.get(_key(run)))
    except NotFound:
        return None


def job_name(run: str, rung: int, trial: Trial) -> str:
    """The name of a trial's training job in a rung, at most 63 characters of [a-z0-9-] as SageMaker wants it."""
    return f"{run}-{rung}-{trial.name}"


def _write(store: Lake, run: str, found: Search) -> None:
    store.put(_key(run), found.to_json().encode())


def _key(run: str) -> str:
    return f"{lake.RUNS}{run}/search.json"


def _answer(jobs: list[dict[str, Any]], rung: int, settings: Steps, artifacts: str | None = None) -> dict[str, Any]:
    return {"jobs": jobs, "at_once": settings.search_at_once, "rung": rung, "artifacts": artifacts}


def _jobs(store: Lake, run: str, job: dict[str, Any], found: Search) -> list[dict[str, Any]]:
    """The snapshot's job for each trial of the rung, which trains on to the rung's share within the rung's time."""
    seconds = found.plan.seconds[found.rung]
    spare = job["StoppingCondition"]["MaxRuntimeInSeconds"] - seconds
    until = f"{found.plan.shares[found.rung]:.6f}"
    return [
        job
        | {
            "TrainingJobName": job_name(run, found.rung, trial),
            "HyperParameters": {
                **job["HyperParameters"],
                **trial.settings,
                "until": until,
                # The training counts its minutes since its very beginning.
                "minutes": f"{(trial.seconds + seconds * search.TRAINING_SHARE) / 60:.2f}",
            },
            "StoppingCondition": {name: limit - spare for name, limit in job["StoppingCondition"].items()},
            "CheckpointConfig": {
                **job["CheckpointConfig"],
                "S3Uri": store.uri(f"{lake.RUNS}{run}/trials/{trial.name}/checkpoints/"),
            },
        }
        for trial in found.running
    ]


def _tried(store: Lake, trial: Trial, rung: int, result: dict[str, Any]) -> Trial:
    """A trial with what its job left: trial.json of one that paused, or the card of a model."""
    if "error" in result:
        return dataclasses.replace(trial, state="failed", error=_reason(result["error"])[-REASON:])
    try:
        left = _left(store, result["artifacts"])
    except (tarfile.TarError, zlib.error, EOFError, NotFound) as error:
        return dataclasses.replace(trial, state="failed", error=f"its archive cannot be read: {error}"[:REASON])
    if left is None:
        return dataclasses.replace(trial, state="failed", error=f"its archive holds neither {TRIAL} nor {CARD}")
    return dataclasses.replace(
        trial,
        state="running",
        rungs=rung + 1,
        metric=left["metric"],
        seconds=left.get("seconds", left.get("train_seconds", 0.0)),
        history=left["history"],
        losses=left["losses"],
        artifacts=result["artifacts"],
    )


def _left(store: Lake, artifacts: str) -> dict[str, Any] | None:
    """The facts in a job's model.tar.gz, read as a stream that ends where they are found."""
    _, key = lake.split_uri(artifacts)
    with store.open(key) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            file = archive.extractfile(member) if name in (TRIAL, CARD) else None
            if file is not None:
                found: dict[str, Any] = json.load(file)
                return found if name == TRIAL else found["run"]
    return None


def _reason(error: dict[str, str]) -> str:
    """Why a job failed, out of what each backend says: a worker a text, SageMaker and Batch their job as JSON."""
    cause = error.get("Cause", "")
    try:
        job = json.loads(cause)
    except ValueError:
        job = {}
    found = job.get("FailureReason") or job.get("StatusReason") if isinstance(job, dict) else None
    reason = str(found or cause or "no reason given")
    kind = error.get("Error", "error")
    return reason if kind == TrainingFailed.__name__ else f"{kind}: {reason}"
