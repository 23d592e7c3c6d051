"""CSV jobs: S3's "Object Created" event from EventBridge in, one job done, its facts in one log line out.

A file beyond one run goes through the workflow infra/scoring.asl.yaml, whose steps are done here too.
"""

import dataclasses
import os
import tempfile
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from retrue import answers, artifact, jobs, labelling, parts, scoring, settings
from retrue.classifier import Classifier
from retrue.errors import ModelRefused, NoModel
from retrue.lake import MODELS, Lake
from retrue.records import Job, from_iso
from retrue.release import serving_model
from retrue.telemetry import Metric, publish
from retrue.workflow import Workflow

FACTS = ("id", "kind", "state", "model", "rows", "accepted", "rejected", "seconds")
logger = Logger(service="batch")


@cache
def deployment() -> tuple[settings.Batch, Lake]:
    read = settings.read(settings.Batch, os.environ)
    return read, Lake(read.bucket)


@lru_cache(maxsize=1)
def classifier(model_uri: str) -> Classifier:
    read, lake = deployment()
    return answers.fetch_model(lake, model_uri, Path(tempfile.gettempdir()) / "models", read.signing_key)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    def remaining() -> float:
        return float(context.get_remaining_time_in_millis()) / 1000

    return step(event, remaining) if "step" in event else dropped(event, remaining)


def dropped(event: dict[str, Any], remaining: jobs.Clock) -> dict[str, Any]:
    """Do the job of a file, or begin it where it takes more than one run."""
    read, lake = deployment()
    detail = event["detail"]
    key = detail["object"]["key"]
    kind = jobs.kind_of(key)
    if kind is None:
        logger.info("ignored: no CSV file under incoming/ or labels/", extra={"event": event["id"]})
        return {"ignored": True}

    serving = serving_model(read.model_parameter) if kind == "predict" else artifact.NONE
    model = None if serving == artifact.NONE else serving.rstrip("/").rpartition("/")[2]
    job = jobs.start(lake, kind, key, identity(detail["object"]), from_iso(event["time"]), model)
    if job.state == "done":
        logger.info("job was done before", extra={"job": facts(job)})
        return facts(job)

    if kind == "label":
        job = labelling.label_file(lake, job, read, time.time, remaining)
    else:
        try:
            found = model_of(job)
        except (NoModel, ModelRefused) as error:
            jobs.fail(lake, job, str(error))
            raise  # Lambda tries again, and then keeps the event in the dead letters
        if parts.are_needed(key, detail["object"]["size"], read.file_megabytes):
            Workflow(read.scoring_arn).start(job.id, {"job": job.id, "size": detail["object"]["size"]})
            logger.info("job takes more than one run", extra={"job": facts(job)})
            return facts(job)
        job = scoring.score_file(lake, found, job, read, time.time, remaining)
    return ended(job)


def step(event: dict[str, Any], remaining: jobs.Clock) -> dict[str, Any]:
    """A step of the workflow for a file that takes more than one run."""
    read, lake = deployment()
    job = lake.read_job(event["job"])
    match event["step"]:
        case "cut":
            plan = parts.cut(lake, job, event["size"], read, time.time, remaining)
            if plan["parts"] == 0:
                ended(lake.read_job(job.id))
            return plan
        case "score":
            numbers = [parts.number_of(item["Key"]) for item in event["items"]]
            for number in numbers:
                parts.score(lake, model_of(job), job, number, read, remaining)
            return {"parts": numbers}
        case "join":
            return ended(parts.join(lake, job, read, time.time))
        case "fail":
            if job.state != "running":  # it was the very end of the last step that failed
                return facts(job)
            reason = f"{event['error']['Error']}: see the log of the function batch, and drop the file again"
            return ended(jobs.fail(lake, job, reason))
        case unknown:
            raise ValueError(f"no step is named {unknown!r}")


def model_of(job: Job) -> Classifier:
    """The model that a job began with, whatever serves meanwhile."""
    _, lake = deployment()
    return classifier(lake.uri(f"{MODELS}{job.model}/") if job.model else artifact.NONE)


def ended(job: Job) -> dict[str, Any]:
    """Tell of a job that has ended; its facts."""
    read, _ = deployment()
    logger.info("job ended", extra={"job": facts(job)})
    publish(read.environment, {Metric.JOB_ROWS: job.rows, Metric.JOB_REJECTED: job.rejected}, round(time.time() * 1000))
    return facts(job)


def identity(dropped: dict[str, Any]) -> str:
    """What tells this file from another one under the same key, and is the same when the event comes twice."""
    return dropped.get("version-id") or f"{dropped.get('etag', '')} {dropped.get('sequencer', '')}"


def facts(job: Job) -> dict[str, Any]:
    """What a log line may hold: the error of a job and the name of its file may be somebody's words."""
    values = dataclasses.asdict(job)
    return {name: values[name] for name in FACTS}
