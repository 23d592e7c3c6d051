"""The month's bill, from the template's own sizes."""

from pathlib import Path
from typing import Any

import pytest

from retrue.cost import Usage, bill, hours_between
from retrue.local import localize
from retrue.telemetry import Metric

TEMPLATE: dict[str, Any] = localize.read(Path(__file__).resolve().parents[1] / "template.yaml")
NOTHING = Usage(rps=0, rows=0, retrains=0, milliseconds=30, hours=1, price=1.5)
BUSY = Usage(rps=10, rows=1_000_000, retrains=2, milliseconds=30, hours=1, price=1.5)


def dollars(usage: Usage, **parameters: str) -> dict[str, float]:
    return {line.what: line.dollars for line in bill(TEMPLATE, parameters, usage, len(Metric))}


def test_a_bill_by_hand() -> None:
    found = dollars(BUSY)
    requests = 10 * 3_600 * 730
    assert found["API Gateway"] == pytest.approx(91.98)
    assert found["predictions over HTTP"] == pytest.approx(requests * (0.03 * 1769 / 1024 * 0.0000166667 + 2e-7))
    assert found["rows of CSVs"] == pytest.approx(1.06, abs=0.01)
    assert found["training"] == 3.0
    assert found["logs"] == pytest.approx(7.88, abs=0.01)


def test_what_nobody_asks_costs_what_stands_idle() -> None:
    found = dollars(NOTHING)
    idle = {"checks of the monitor", "alarms, metrics, dashboard", "images"}
    assert {what for what, cost in found.items() if cost} == idle
    assert sum(found.values()) < 20


def test_twice_the_requests_cost_twice_as_much() -> None:
    once, twice = dollars(BUSY), dollars(Usage(**{**vars(BUSY), "rps": 20}))
    for what in ("API Gateway", "predictions over HTTP", "records of requests", "logs"):
        assert twice[what] == pytest.approx(2 * once[what])
    assert twice["training"] == once["training"]


def test_parameters_change_the_bill() -> None:
    usual = dollars(BUSY)
    sampled = dollars(BUSY, CaptureRate="0.1")
    assert sampled["records of requests"] == pytest.approx(usual["records of requests"] / 10)
    assert dollars(BUSY, MonitorSchedule="rate(15 minutes)")["checks of the monitor"] == pytest.approx(
        4 * usual["checks of the monitor"]
    )
    # Half a CPU is half the price for twice the time; what a second one saves is not counted on.
    assert dollars(BUSY, PredictMegabytes="885")["predictions over HTTP"] == pytest.approx(
        usual["predictions over HTTP"], rel=1e-3
    )
    more = dollars(BUSY, PredictMegabytes="3538")["predictions over HTTP"] - usual["predictions over HTTP"]
    assert more == pytest.approx(10 * 3_600 * 730 * 0.03 * 1769 / 1024 * 0.0000166667)
    assert "keys" not in usual
    assert dollars(BUSY, SignModels="true", CustomerKey="true")["keys"] == 2.0


@pytest.mark.parametrize("size", ["0", "511", "10241", "much", "-1769"])
def test_memory_that_lambda_would_not_take_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=f"PredictMegabytes is {size}: give a whole number from 512 to 10240"):
        dollars(BUSY, PredictMegabytes=size)


@pytest.mark.parametrize(
    ("schedule", "hours"), [("rate(1 hour)", 1), ("rate(30 minutes)", 0.5), ("rate(2 days)", 48), ("rate(1 day)", 24)]
)
def test_a_rate_is_read(schedule: str, hours: float) -> None:
    assert hours_between(schedule) == hours


def test_a_schedule_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cron.* is no rate"):
        hours_between("cron(0 * * * ? *)")
