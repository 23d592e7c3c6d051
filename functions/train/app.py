"""The steps of the retraining workflow: an event names its step and gets one call into retrue.

Two functions are made of this file: `steps` reads data and judges, `release` alone may touch what serves.
"""

import dataclasses
import os
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from retrue import artifact, evaluation, promotion, registry, search, settings, snapshot, trials, turn
from retrue.lake import MLFLOW, MODELS, Lake
from retrue.records import LedgerEntry
from retrue.release import Release, serving_model
from retrue.training.settings import Settings as Training
from retrue.workflow import Workflow, begin

logger = Logger(service="train")


@cache
def _steps() -> tuple[settings.Steps, Lake]:
    read = settings.read(settings.Steps, os.environ)
    return read, Lake(read.bucket)


@cache
def _release() -> tuple[settings.Release, Lake, Release]:
    read = settings.read(settings.Release, os.environ)
    return read, Lake(read.bucket), Release(read.function, read.alias, read.model_parameter)


@logger.inject_lambda_context
def steps(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Begin, snapshot, plan, choose, evaluate, register, crown."""
    config, store = _steps()
    match event["step"]:
        case "begin":
            asked, now = event["input"], _now()
            alone = turn.take(store, Workflow(config.state_machine_arn), event["execution"], asked.get("id"), now)
            answer = begin(event["execution"], alone, asked["detail"])
        case "snapshot":
            answer = snapshot.snapshot(store, config, event["run"], event["request"], _now())
        case "plan":
            wish = (event["run"], event["request"], event["job"])
            answer = trials.plan(store, config, *wish, search.kinds(Training))
        case "choose":
            wish = (event["run"], event["request"], event["job"])
            answer = trials.choose(store, config, *wish, event["rung"], event["results"])
        case "evaluate":
            champion = serving_model(config.model_parameter)
            trigger = event["request"]["trigger"]
            what = (event["artifacts"], event["dataset"], trigger, event["feedback"])
            answer = evaluation.evaluate(store, config, champion, *what)
        case "register":
            model = event["candidate"]["model"]
            with tempfile.TemporaryDirectory() as folder:
                store.download_folder(f"{MODELS}{model}/", Path(folder), (artifact.CARD, *artifact.REPORT))
                uri = registry.register(
                    config.mlflow_tracking_uri, config.environment, model, store.uri(f"{MODELS}{model}/"),
                    artifact.read_card(Path(folder)), event["candidate"],
                    artifacts=sorted(Path(folder).iterdir()), location=store.uri(MLFLOW),
                    trials=trials.curves(store, event["run"]),
                )  # fmt: skip
            answer = {"uri": uri}
        case "crown":
            answer = {"version": registry.crown(config.mlflow_tracking_uri, config.environment, event["model"])}
        case unknown:
            raise ValueError(f"no step is named {unknown!r}")
    logger.info("step", extra={"step": event["step"], **{k: v for k, v in answer.items() if isinstance(v, str | bool)}})
    return answer


@logger.inject_lambda_context
def release(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Publish, validate, share, watch, promote; or write down why not."""
    config, store, target = _release()
    answer: dict[str, Any] | LedgerEntry
    what: tuple[Any, ...]
    match event["step"]:
        case "publish":
            answer = promotion.publish(store, target, event["model"], event["run"])
        case "validate":
            answer = promotion.validate(store, target, event["model"], event["version"])
        case "share":
            answer = promotion.share(target, config, event["version"], _now())
        case "watch":
            what = (event["model"], event["version"], event["shared"])
            answer = promotion.watch(store, target, config, *what, _now())
        case "withdraw":
            what = (event["run"], event["request"], event["model"], event["watched"])
            answer = promotion.withdraw(store, target, *what, _now())
        case "promote":
            what = (event["run"], event["request"], event["candidate"], event["version"], event["live"])
            answer = promotion.promote(store, target, *what, _now())
        case "reject":
            answer = promotion.reject(store, target, event["run"], event["request"], event["candidate"], _now())
        case "fail":
            answer = promotion.fail(store, target, event["execution"], event["state"], _now())
        case unknown:
            raise ValueError(f"no step is named {unknown!r}")
    told = dataclasses.asdict(answer) if isinstance(answer, LedgerEntry) else answer
    logger.info("step", extra={"step": event["step"], **{k: v for k, v in told.items() if isinstance(v, str | float)}})
    return told


def _now() -> int:
    return time.time_ns() // 1_000_000
