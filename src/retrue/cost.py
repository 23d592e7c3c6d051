"""What a deployment costs in a month: the template's own sizes times what is asked of it times list prices.

Prices are those that AWS listed for us-east-1 in 2025, in US dollars, without free tiers and discounts; storage is
what has gathered when the oldest records expire. Data that leaves AWS, support and taxes are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retrue.settings import MEGABYTES_OF_ONE_CPU

HOURS = 730  # in a month
SECONDS = 3_600 * HOURS

# dollars
REQUEST, GB_SECOND = 0.20e-6, 0.0000166667  # Lambda on x86
API_REQUEST = 3.50e-6  # of a REST API
WRITE, READ, GB_MONTH = 5e-6, 0.4e-6, 0.023  # S3: PUT and LIST, GET, standard storage
TRANSITION = 25e-6  # of a Step Functions workflow
METRIC, ALARM, DASHBOARD, LOG_GB = 0.30, 0.10, 3.00, 0.50  # CloudWatch
KEY = 1.00  # KMS, a month
IMAGE_GB_MONTH = 0.10  # ECR

# What a deployment does. A record was measured on film reviews; the others are guesses, rather too high.
RECORD = 330  # bytes of a prediction's record, compressed and batched
LOGGED = 600  # bytes of log lines a request
IMAGES_GB = 2.0  # of the functions' images as they are here; a registry compresses them
CHECK_SECONDS = 10  # of the monitor
STEP_SECONDS, TRANSITIONS = 600, 40  # of the data steps of one retraining, and its states
KEPT_DAYS = 400


@dataclass(frozen=True)
class Usage:
    """What is asked of a deployment: `rps` requests a second on average, `rows` of CSVs and `retrains` in a month.

    `milliseconds` is what a text takes on one vCPU, `hours` what one training takes, at `price` dollars an hour.
    """

    rps: float
    rows: float
    retrains: float
    milliseconds: float
    hours: float
    price: float


@dataclass(frozen=True)
class Line:
    """One part of the bill: `quantity` of `unit` in a month."""

    what: str
    quantity: float
    unit: str
    dollars: float


def bill(template: Mapping[str, Any], parameters: Mapping[str, str], usage: Usage, metrics: int) -> list[Line]:
    """The bill of a template (as `localize.read` gives it) with these parameters and its own defaults for the others.

    `metrics` is how many custom metrics are published. ValueError where the monitor's schedule is no rate, or memory is
    not what the template takes.
    """
    resources = template["Resources"]
    defaults = {name: str(item.get("Default", "")) for name, item in template["Parameters"].items()}
    values = {**defaults, **parameters}
    memory = {
        name: _megabytes(item["Properties"]["MemorySize"], values, template["Parameters"])
        for name, item in resources.items()
        if item["Type"] == "AWS::Serverless::Function"
    }
    requests = usage.rps * SECONDS
    kept = float(values["CaptureRate"])
    checks = HOURS / hours_between(values["MonitorSchedule"])
    alarms = sum(item["Type"] == "AWS::CloudWatch::Alarm" for item in resources.values())
    keys = sum(values[name] == "true" for name in ("CustomerKey", "SignModels"))
    records = (requests + usage.rows) * kept
    stored = records * RECORD * KEPT_DAYS / 30.4 / 1e9

    def seconds(function: str, each: float, times: float) -> tuple[float, float]:
        """GB-seconds, and what they and the calls cost.

        Less than a whole CPU takes longer. A second one is not counted on, so beyond 3,537 MB it may be less.
        """
        share = min(1.0, memory[function] / MEGABYTES_OF_ONE_CPU)
        used = each / share * times * memory[function] / 1024
        return used, used * GB_SECOND + times * REQUEST

    predicted, predict = seconds("PredictFunction", usage.milliseconds / 1000, requests)
    batched, batch = seconds("BatchFunction", usage.milliseconds / 1000, usage.rows)
    watched, watch = seconds("MonitorFunction", CHECK_SECONDS, checks)
    stepped, step = seconds("StepsFunction", STEP_SECONDS, usage.retrains)
    lines = [
        Line("API Gateway", requests, "requests", requests * API_REQUEST),
        Line("predictions over HTTP", predicted, "GB-seconds", predict),
        Line("rows of CSVs", batched, "GB-seconds", batch),
        Line("checks of the monitor", watched, "GB-seconds", watch),
        Line("steps of retrainings", stepped, "GB-seconds", step + usage.retrains * TRANSITIONS * TRANSITION),
        Line("training", usage.retrains * usage.hours, "hours", usage.retrains * usage.hours * usage.price),
        # Each request's record is written, read by the monitor, and batched.
        Line("records of requests", requests * kept, "objects", requests * kept * (WRITE + READ)),
        Line("data in the bucket", stored, "GB", stored * GB_MONTH),
        Line("logs", requests * LOGGED / 1e9, "GB", requests * LOGGED / 1e9 * LOG_GB),
        Line("alarms, metrics, dashboard", alarms + metrics, "of them", alarms * ALARM + metrics * METRIC + DASHBOARD),
        Line("images", IMAGES_GB, "GB", IMAGES_GB * IMAGE_GB_MONTH),
    ]
    return lines + ([Line("keys", keys, "of them", keys * KEY)] if keys else [])


def _megabytes(size: int | dict[str, str], values: Mapping[str, str], parameters: Mapping[str, Any]) -> float:
    if isinstance(size, int):
        return float(size)
    name = size["Ref"]
    least, most = parameters[name]["MinValue"], parameters[name]["MaxValue"]
    if not values[name].isdecimal() or not least <= int(values[name]) <= most:
        raise ValueError(f"{name} is {values[name]}: give a whole number from {least} to {most}")
    return float(values[name])


def hours_between(schedule: str) -> float:
    """The hours between two runs of a schedule such as rate(1 hour)."""
    found = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", schedule)
    if not found:
        raise ValueError(f"the schedule {schedule} is no rate: say how often it runs as rate(1 hour)")
    return int(found[1]) * {"minute": 1 / 60, "hour": 1, "day": 24}[found[2]]
