"""Lines over time: what is kept of many checks, and where it lies."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrue import charts
from retrue.charts import DRAWN, HOUR, Chart, Line, Point, ticks
from retrue.records import from_iso, iso

BEGAN = from_iso("2026-11-02T00:00:00.000Z")


def point(hour: float, statistic: float | None = 1.0, **changes: Any) -> Point:
    """What is kept of a check that many hours after BEGAN."""
    usual = {
        "time": iso(BEGAN + round(hour * HOUR)),
        "model": "first",
        "decision": "none",
        "statistic": statistic,
        "threshold": 3.0,
        "evidence": 1.0,
        "limit": 1000.0,
        "accuracy": 0.92,
        "low": 0.9,
        "high": 0.94,
        "expected_accuracy": 0.93,
        "tolerated_accuracy": 0.9,
    }
    return usual | changes


def drawn(found: Chart | None) -> Chart:
    assert found is not None
    return found


def line(chart: Chart, kind: str) -> Line:
    (found,) = [line for line in chart.lines if line.kind == kind]
    return found


def places(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"[ML](-?\d+) (-?\d+)", path)]


def test_nothing_is_drawn_of_fewer_than_two_values() -> None:
    history = [point(0, None), point(1, 2.0), point(2, None)]
    assert charts.drift([]) is None
    assert charts.drift(history) is None
    assert charts.evidence(history, "accuracy_") is None
    assert drawn(charts.accuracy(history)).checks == 3


def test_a_line_goes_over_checks_that_had_too_few_texts() -> None:
    chart = drawn(charts.drift([point(0, 0.0), point(1, None), point(2, 4.0)]))
    assert places(line(chart, "main").path) == [(0, 1000), (1000, 0)]
    assert (chart.checks, chart.first, chart.lowest, chart.highest, chart.over) == (2, 0.0, 0.0, 4.0, 1)
    assert [value for _, value in chart.rows] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [top for top, _ in chart.rows] == [100.0, 75.0, 50.0, 25.0, 0.0]


def test_a_line_ends_where_another_model_begins() -> None:
    chart = drawn(charts.drift([point(0), point(1), point(3, model="second"), point(4, model="second")]))
    assert line(chart, "main").path.count("M") == 2
    assert chart.changes == [75.0]


def test_a_value_known_once_for_a_model_is_a_dot() -> None:
    chart = drawn(charts.drift([point(0), point(1), point(2, model="second")]))
    assert line(chart, "main").path.endswith("M1000 667L1000 667")


def test_of_many_checks_the_worst_and_the_last_are_drawn() -> None:
    history = [point(hour, 50.0 if hour == 777 else hour % 3 / 2) for hour in range(1000)]
    chart = drawn(charts.drift(history))
    found = places(line(chart, "main").path)
    assert chart.every == 4
    assert len(found) <= DRAWN
    assert [place for place in found if place[1] == 0] == [(778, 0)]
    assert found[-1] == (1000, 1000)
    assert line(chart, "over").path == "M778 0L778 0"


def test_the_worst_accuracy_is_the_lowest() -> None:
    history = [point(hour, accuracy=0.6 if hour == 500 else 0.95) for hour in range(1000)]
    chart = drawn(charts.accuracy(history))
    assert (chart.lowest, chart.highest, chart.over) == (0.6, 0.95, 1)
    assert max(y for _, y in places(line(chart, "main").path)) == places(line(chart, "over").path)[0][1]


def test_the_band_goes_there_above_and_back_below() -> None:
    chart = drawn(charts.accuracy([point(0), point(1), point(2, model="second")]))
    first, second, end = line(chart, "band").path.split("Z")
    (_, high), _, _, (_, low) = places(first)
    assert [x for x, _ in places(first)] == [0, 500, 500, 0]
    assert high < low
    assert len(places(second)) == 2
    assert end == ""


def test_evidence_is_drawn_in_powers_of_ten_and_held_at_the_edges() -> None:
    history = [point(0, evidence=1e-30), point(1, evidence=10.0), point(2, evidence=1e300)]
    chart = drawn(charts.evidence(history))
    assert [round(value, 6) for _, value in chart.rows] == [0.01, 1.0, 100.0, 1e4, 1e6, 1e8, 1e10]
    assert places(line(chart, "main").path) == [(0, 917), (500, 750), (1000, 83)]
    assert line(chart, "limit").top == pytest.approx(58.3)
    assert line(chart, "main").last == 1e300


def test_requests_and_suggestions_are_marked() -> None:
    history = [point(hour, decision=one) for hour, one in enumerate(["none", "label", "suggest", "wait", "retrain"])]
    assert drawn(charts.drift(history)).asked == [50.0, 100.0]


@pytest.mark.parametrize(
    ("hours", "texts"),
    [
        (5, ["2 Nov", "01:00", "02:00", "03:00", "04:00", "05:00"]),
        (30, ["2 Nov", "06:00", "12:00", "18:00", "3 Nov", "06:00"]),
        (42 * 24, ["5 Nov", "19 Nov", "3 Dec"]),
        (0.2, ["2 Nov", "00:12"]),
        (900 * 24, ["Jan 2027", "Aug 2027", "Apr 2028", "Nov 2028"]),
    ],
)
def test_the_times_below_are_round(hours: float, texts: list[str]) -> None:
    chart = drawn(charts.drift([point(0), point(hours)]))
    assert [text for _, text in chart.columns] == texts


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_are_few_and_lie_around_both_ends(one: float, other: float) -> None:
    low, high = sorted((one, other))
    marks = ticks(low, high)
    slack = 1e-6 * (marks[1] - marks[0]) + 1e-12 * max(abs(low), abs(high))
    assert 2 <= len(marks) <= 7
    assert marks[0] - slack <= low
    assert high <= marks[-1] + slack


def test_ticks_are_round_numbers() -> None:
    assert ticks(0.862, 0.955) == pytest.approx([0.86, 0.88, 0.9, 0.92, 0.94, 0.96])
    assert ticks(3.0, 3.0) == pytest.approx([3.0, 3.2])
    assert ticks(0.3, 0.9, 1.0) == [0.0, 1.0]
