"""What the checks saw over time, as lines to be drawn: places in a picture, and not yet a picture.

Paths are in thousandths of the picture's width and height, all other places in % of them, from the upper left corner.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from retrue.records import from_iso

DRAWN = 300  # points of a line; of more checks the worst of every few are drawn
FLOOR, CEILING = 0.1, 1e9  # evidence outside is drawn at the edge
HOUR = 3_600_000
STEPS = [hours * HOUR for hours in (1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 672, 1_344, 2_688, 5_376, 10_752, 21_504)]

Point = Mapping[str, Any]
Parts = list[list[Point]]  # a list for each model that served


@dataclass(frozen=True)
class Line:
    """One path; its newest value is `last`, drawn at `left` and `top`."""

    kind: str
    path: str
    last: float
    left: float
    top: float


@dataclass(frozen=True)
class Chart:
    """Lines, the values beside them (`rows`) and the times under them (`columns`).

    `changes` are the places where another model began, `asked` those where a retraining was asked for or suggested.
    Each point is the worst of `every` checks. `checks`, `first`, `lowest`, `highest` and `over`, the number of values
    on the wrong side of their limit, are of all checks that knew the value.
    """

    lines: list[Line]
    rows: list[tuple[float, float]]
    columns: list[tuple[float, str]]
    changes: list[float]
    asked: list[float]
    every: int
    checks: int
    first: float
    lowest: float
    highest: float
    over: int


def accuracy(history: Sequence[Point]) -> Chart | None:
    """Accuracy with its interval, and what was expected and tolerated; None where fewer than two checks knew it."""
    lines = {"aim": "expected_accuracy", "limit": "tolerated_accuracy", "main": "accuracy"}
    return _chart(history, lines, band=("low", "high"), falling=True)


def drift(history: Sequence[Point]) -> Chart | None:
    """The drift statistic of each window, and where it begins to be rare; None where fewer than two checks knew it."""
    return _chart(history, {"limit": "threshold", "main": "statistic"}, base=(0.0,))


def evidence(history: Sequence[Point], of: str = "") -> Chart | None:
    """A detector's evidence and where it raises the alarm, in powers of ten; its names in a point begin with `of`."""
    return _chart(history, {"limit": f"{of}limit", "main": f"{of}evidence"}, logarithmic=True)


def _chart(
    history: Sequence[Point],
    lines: Mapping[str, str],
    *,
    band: Sequence[str] = (),
    base: Sequence[float] = (),
    falling: bool = False,
    logarithmic: bool = False,
) -> Chart | None:
    """A chart of the value of the line "main" against that of "limit"; `falling` says that less is worse."""
    main, limit = lines["main"], lines["limit"]
    known = [point for point in history if point.get(main) is not None]
    if len(known) < 2:
        return None
    every = -(-len(known) // DRAWN)
    parts = _thin(known, main, every, falling)
    values = [point[name] for part in parts for point in part for name in (*lines.values(), *band)]
    scaled = [_log(value) if logarithmic else float(value) for value in [*values, *base]]
    marks = ticks(min(scaled), max(scaled), 1.0 if logarithmic else 0.0)
    start = from_iso(history[0]["time"])
    end = max(from_iso(history[-1]["time"]), start + 1)

    def x(point: Point) -> int:
        return _share(from_iso(point["time"]), start, end)

    def y(value: float) -> int:
        return 1000 - _share(_log(value) if logarithmic else value, marks[0], marks[-1])

    def line(kind: str, name: str, drawn: Parts) -> Line:
        newest = drawn[-1][-1]
        path = "".join(_path([(x(point), y(point[name])) for point in part]) for part in drawn)
        return Line(kind, path, newest[name], x(newest) / 10, y(newest[name]) / 10)

    drawn = [line(kind, name, parts) for kind, name in lines.items()]
    if band:
        low, high = band
        around = [[*((p, p[high]) for p in part), *((p, p[low]) for p in reversed(part))] for part in parts]
        path = "".join(_path([(x(p), y(value)) for p, value in part]) + "Z" for part in around)
        drawn.insert(0, Line("band", path, known[-1][high], 100.0, y(known[-1][high]) / 10))
    if over := [[point] for part in parts for point in part if _is_over(point, main, limit, falling)]:
        drawn.append(line("over", main, over))
    firsts = [next(own) for _, own in itertools.groupby(history, lambda point: point["model"])]
    return Chart(
        lines=drawn,
        rows=[((1000 - _share(mark, marks[0], marks[-1])) / 10, 10.0**mark if logarithmic else mark) for mark in marks],
        columns=_times(start, end),
        changes=[x(point) / 10 for point in firsts[1:]],
        asked=[x(point) / 10 for point in history if point["decision"] in ("retrain", "suggest")],
        every=every,
        checks=len(known),
        first=known[0][main],
        lowest=min(point[main] for point in known),
        highest=max(point[main] for point in known),
        over=sum(_is_over(point, main, limit, falling) for point in known),
    )


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round values around both ends, in about five steps of 1, 2 or 5 times a power of ten, none under `least`."""
    reach = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(reach / 5))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if reach / (factor * power) <= 5 + 1e-9))
    first, last = math.floor(round(low / step, 9)), math.ceil(round(high / step, 9))
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _thin(known: Sequence[Point], name: str, every: int, falling: bool) -> Parts:
    """The worst of every few points of each model, and its last one."""
    worst = min if falling else max
    parts = []
    for _, group in itertools.groupby(known, lambda point: point["model"]):
        own = list(group)
        body = [own[k : min(k + every, len(own) - 1)] for k in range(0, len(own) - 1, every)]
        parts.append([*(worst(few, key=lambda point: float(point[name])) for few in body), own[-1]])
    return parts


def _is_over(point: Point, name: str, limit: str, falling: bool) -> bool:
    return bool(point[name] < point[limit] if falling else point[name] >= point[limit])


def _times(start: int, end: int) -> list[tuple[float, str]]:
    """Round times in UTC, six at the most; both ends where the checks lie too close together for any."""
    step = next((step for step in STEPS if end - start <= 5 * step), STEPS[-1])
    places = range(-(-start // step) * step, end + 1, step)
    found = []
    for ms in places if len(places) > 1 else (start, end):
        time = datetime.fromtimestamp(ms / 1000, UTC)
        # Among times of the day, midnight says which day begins.
        is_day = ms % (24 * HOUR) == 0
        text = f"{time:%b %Y}" if step >= 2_688 * HOUR else f"{time.day} {time:%b}" if is_day else f"{time:%H:%M}"
        found.append((_share(ms, start, end) / 10, text))
    return found


def _path(places: Sequence[tuple[int, int]]) -> str:
    """A line through places; a single one gets a line of no length, which round ends make a dot."""
    (left, top), *others = places
    return f"M{left} {top}" + "".join(f"L{x} {y}" for x, y in others or [(left, top)])


def _log(value: float) -> float:
    return math.log10(min(max(value, FLOOR), CEILING))


def _share(value: float, low: float, high: float) -> int:
    return round(1000 * (value - low) / (high - low))
