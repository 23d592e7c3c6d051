"""The monitor: the schedule's event in, one check of the serving model, its report out.

Invoked by hand with {"request": false} it does the same but asks for no retraining.
"""

import os
import time
from functools import cache, partial
from typing import Any

from aws_lambda_powertools import Logger

from retrue import settings, watch
from retrue.lake import Lake
from retrue.release import serving_model
from retrue.workflow import request_retraining

FACTS = ("model", "n", "decision", "reasons", "requested")
logger = Logger(service="monitor")


@cache
def deployment() -> tuple[settings.Monitor, Lake]:
    read = settings.read(settings.Monitor, os.environ)
    return read, Lake(read.bucket)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    read, lake = deployment()
    request = partial(request_retraining, read.event_bus, read.environment)
    wanted = event.get("request") is not False
    serving = serving_model(read.model_parameter)
    report = watch.run(lake, serving, read, round(time.time() * 1000), request if wanted else None)
    logger.info("checked", extra={"report": {name: report[name] for name in FACTS}})
    return report
