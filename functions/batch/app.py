"""CSV jobs: S3's "Object Created" event from EventBridge in, one job done, its facts in one log line out."""

import dataclasses
import os
import tempfile
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from retrue import answers, artifact, jobs, labelling, scoring, settings
from retrue.classifier import Classifier
from retrue.errors import ModelRefused, NoModel
from retrue.lake import MODELS, Lake
from retrue.records import Job, from_iso
from retrue.release import serving_model
from retrue.telemetry import Metric, publish

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

    def remaining() -> float:
        return float(context.get_remaining_time_in_millis()) / 1000

    if kind == "label":
        job = labelling.label_file(lake, job, read, time.time, remaining)
    else:
        try:
            # A job that was begun before goes on with the model it began with.
            found = classifier(lake.uri(f"{MODELS}{job.model}/") if job.model else artifact.NONE)
        except (NoModel, ModelRefused) as error:
            jobs.fail(lake, job, str(error))
            raise  # Lambda tries again, and then keeps the event in the dead letters
        job = scoring.score_file(lake, found, job, read, time.time, remaining)
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
