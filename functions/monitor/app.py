"""The monitor: the schedule's event in, one check of the serving model, its report out.

The check is as of the event's own time, or of now where it has none. With {"request": false} nobody is told anything.
"""

import os
import time
from functools import cache, partial
from typing import Any

from aws_lambda_powertools import Logger

from retrue import settings, watch
from retrue.lake import Lake
from retrue.records import from_iso
from retrue.release import serving_model
from retrue.workflow import tell

FACTS = ("model", "n", "decision", "trigger", "reasons", "requested")
logger = Logger(service="monitor")


@cache
def deployment() -> tuple[settings.Monitor, Lake]:
    read = settings.read(settings.Monitor, os.environ)
    return read, Lake(read.bucket)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    read, lake = deployment()
    now_ms = from_iso(event["time"]) if "time" in event else round(time.time() * 1000)
    told = None if event.get("request") is False else partial(tell, read.event_bus, read.environment)
    report = watch.run(lake, serving_model(read.model_parameter), read, now_ms, told)
    logger.info("checked", extra={"report": {name: report[name] for name in FACTS}})
    return report
