"""The page of a check: what it says, that it is whole, and that it asks for nothing outside."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from retrue import page
from retrue.page import SPACE
from retrue.records import from_iso, iso

NOW = from_iso("2026-11-22T09:30:00.000Z")
HOUR = 3_600_000
ODD = """<b>"good" & 'bad'</b>"""
AA = 4.5  # the least contrast of text, WCAG 2.2, criterion 1.4.3

Report = dict[str, Any]


def blank(**changes: Any) -> Report:
    """The report before the first model."""
    keys = "model drift drift_reason expected_accuracy tolerated_accuracy accuracy accuracy_reason f1 calibration_error"
    keys += " confusion estimated_accuracy ages trigger page"
    return {
        **dict.fromkeys(keys.split()),
        "time": iso(NOW),
        "n": 0,
        "window": {"from": None, "to": None, "n": 0},
        "newest": {"text": None, "label": None},
        "slices": [],
        "mode": "automatic",
        "decision": "none",
        "reasons": [],
        "requested": False,
        **changes,
    }


def drifted(fired: bool = False, **changes: Any) -> Report:
    names = ("length", "pieces", "symbols", "margin")
    return {
        "n": 487,
        "distance": 0.0432,
        "statistic": 9.31 if fired else 1.21,
        "threshold": 3.37,
        "p": 1.23e-7 if fired else 0.271,
        "worst": "residual",
        "distances": dict(
            zip(("embedding", "residual", *names), (0.0431, 0.187, 0.097, 0.121, 0.039, 0.064), strict=True)
        ),
        "quantiles": {
            "length": {"before": [61.0, 128.0, 176.0, 283.0, 621.0], "after": [58.0, 119.0, 168.0, 271.0, 598.0]},
            "pieces": {"before": [0.031, 0.058, 0.081, 0.107, 0.163], "after": [0.038, 0.071, 0.103, 0.142, 0.221]},
            "symbols": {"before": [0.019, 0.028, 0.035, 0.044, 0.072], "after": [0.018, 0.029, 0.036, 0.045, 0.074]},
            "margin": {"before": [0.012, 0.041, 0.613, 0.968, 0.991], "after": [0.021, 0.088, 0.57, 0.951, 0.988]},
        },
        "stretch": dict(zip(("embedding", "residual", *names), (1.01, 1.18, 1.34, 1.07, 1.12, 1.03), strict=True)),
        "evidence": 2.34e9 if fired else 11.7,
        "limit": 8760.0,
        "fired": fired,
        **changes,
    }


def labelled(fired: bool = False, labels: tuple[str, ...] = ("negative", "positive")) -> Report:
    """The parts of a report that come from labels."""
    return {
        "accuracy": {
            "value": 0.9161,
            "low": 0.8867,
            "high": 0.9393,
            "n": 429,
            "evidence": 55_660.0 if fired else 0.345,
            "limit": 8761.0,
            "fired": fired,
        },
        "f1": {
            "macro": 0.9144,
            "low": 0.8892,
            "high": 0.9361,
            "per_class": {label: {"value": 0.9213, "low": 0.8951, "high": 0.9442} for label in labels},
            "n": 428,
        },
        "calibration_error": 0.0657,
        "confusion": {
            "labels": list(labels),
            "counts": [[211 if a == b else 14 for b in range(len(labels))] for a in range(len(labels))],
        },
        "slices": [
            *(
                {"by": "label", "part": label, "n": 225, "accuracy": 0.938, "low": 0.898, "high": 0.966}
                for label in labels
            ),
            {"by": "length", "part": "up to 132 tokens", "n": 143, "accuracy": 0.93, "low": 0.875, "high": 0.967},
            {"by": "source", "part": "csv", "n": 38, "accuracy": 0.894, "low": 0.752, "high": 0.971},
        ],
        "estimated_accuracy": 0.9087,
    }


def report(**changes: Any) -> Report:
    """A healthy model's report with all that can be known, and the given changes."""
    window = {"from": iso(NOW - HOUR), "to": iso(NOW - HOUR // 30), "n": 488}
    return (
        blank(
            model="8be1047ac2f9",
            n=488,
            window=window,
            drift=drifted(),
            expected_accuracy=0.9201,
            tolerated_accuracy=0.8902,
            ages={"model_hours": 412.3, "label_hours": 3.2, "text_hours": 0.04, "check_hours": 1.0},
            newest={"text": iso(NOW - HOUR // 30), "label": iso(NOW - 3 * HOUR)},
            page="s3://lake/reports/a.html",
            **labelled(),
        )
        | changes
    )


def history(checks: int, **changes: Any) -> list[dict[str, Any]]:
    usual = {
        "model": "8be1047ac2f9",
        "n": 487,
        "distance": 0.04,
        "threshold": 3.37,
        "p": 0.271,
        "limit": 8760.0,
        "worst": "length",
        "low": 0.88,
        "high": 0.94,
        "labels": 429,
        "decision": "none",
        "expected_accuracy": 0.92,
        "tolerated_accuracy": 0.89,
        "accuracy_limit": 8760.0,
    }
    return [
        usual
        | {
            "time": iso(NOW - (checks - 1 - k) * HOUR),
            "statistic": k * 37 % 101 / 40,
            "evidence": 1.0 + k * 61 % 103,
            "accuracy": 0.9 + k * 43 % 107 / 10_000,
            "accuracy_evidence": 0.5 + k * 29 % 97,
        }
        | changes
        for k in range(checks)
    ]


KINDS = {
    "healthy": (report(), history(50)),
    "drifted": (report(drift=drifted(fired=True), decision="label", reasons=["the texts have drifted"]), history(50)),
    "several models": (report(), [*history(30, model="older"), *history(20)]),
    "first check": (report(), history(1)),
    "odd labels": (report(**labelled(labels=(ODD, "ok"))), history(9)),
    "many labels": (report(**labelled(labels=tuple(f"{ODD} {k}" for k in range(20)))), history(9)),
    "nothing known": (blank(reasons=["no model is serving yet: run `retrue retrain`"]), []),
    "too few": (report(drift=None, drift_reason="12 rows", **(dict.fromkeys(labelled()) | {"slices": []})), history(3)),
    "two files": (blank(n=487, drift=drifted()), []),
    "two files, drifted": (blank(n=487, drift=drifted(fired=True)), []),
}


@pytest.fixture(scope="module", params=KINDS)
def html(request: pytest.FixtureRequest) -> str:
    return page.render(*KINDS[request.param])


def tree(html: str) -> Element:
    begin, whole = html.lstrip().split("\n", 1)
    assert begin == "<!DOCTYPE html>"
    return ElementTree.fromstring(whole)  # noqa: S314 - written by this very test run


def told(html: str) -> str:
    """All that is read on a page, with plain spaces."""
    body = tree(html).find("body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).replace(SPACE, " ").replace("\u00a0", " ").split())


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every figure of a report with where it stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, f"{path}.{key}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def test_a_page_is_well_formed_and_holds_together(html: str) -> None:
    root = tree(html)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        assert set((element.get("aria-labelledby") or "").split()) <= set(ids)
        if element.get("role") == "img":
            assert [part.tag for part in element][:2] == ["title", "desc"]
            assert all(part.text and part.text.strip() for part in element[:2])
        elif element.tag == "table":
            assert "".join(element[0].itertext()).strip()
            assert element[0].tag == "caption"
    for rows in root.iter("tbody"):
        assert len({sum(int(cell.get("colspan", "1")) for cell in row) for row in rows}) == 1


def test_a_page_asks_for_nothing_and_runs_nothing(html: str) -> None:
    assert not re.search(r"https?://|@import|url\(", html)
    root = tree(html)
    assert {"script", "img", "iframe", "object", "form", "base"} & {element.tag for element in root.iter()} == set()
    assert [link.get("href") for link in root.iter("link")] == ["data:,"]
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or name == "src"]
    assert "default-src 'none'" in html


def test_a_page_has_no_empty_values(html: str) -> None:
    assert not re.search(r"\b(None|nan|inf|undefined|Infinity)\b", told(html))


@pytest.mark.parametrize("fired", [False, True])
def test_every_figure_of_a_report_is_on_its_page(fired: bool) -> None:
    whole = report(drift=drifted(fired), **labelled(fired))
    words = told(page.render(whole, history(2)))
    for where, value in leaves({name: part for name, part in whole.items() if name != "ages"}):
        shapes = {page._number(value), page._percent(value)}
        either = "|".join(re.escape(shape.replace(SPACE, " ")) for shape in shapes)
        assert re.search(rf"(?<![\d.,])({either})(?!\d)", words), (where, shapes)
    for age in ("17 days", "3.2 hours", "2 minutes", "1 hour"):
        assert age in words


def test_text_from_outside_is_shown_as_it_is_and_not_acted_on() -> None:
    found = report(**labelled(labels=(ODD, "ok")), reasons=[f"label {ODD}"])
    html = page.render(found, history(9, worst=ODD, model=ODD))
    assert not [element for element in tree(html).iter("b") if "good" in "".join(element.itertext())]
    assert {ODD, "ok"} <= {"".join(cell.itertext()).strip() for cell in tree(html).iter("th")}
    assert f"Label {ODD}." in told(html)


def test_a_page_stays_small() -> None:
    many = tuple(f"label {k}" for k in range(20))
    html = page.render(report(**labelled(labels=many)), history(1000))
    assert len(html.encode()) < 150_000
    assert len(page.render(*KINDS["nothing known"]).encode()) < 20_000


@pytest.mark.parametrize(
    ("found", "tone", "title"),
    [
        (report(), "good", "Healthy"),
        (report(drift=drifted(fired=True)), "look", "The texts have drifted"),
        (report(**labelled(fired=True)), "bad", "Accuracy has fallen"),
        (
            report(drift=drifted(fired=True), **labelled(fired=True)),
            "bad",
            "Accuracy has fallen, and the texts have drifted",
        ),
        (report(trigger="schedule", decision="retrain"), "look", "The model is due for a retraining"),
        (report(drift=None), "good", "Accuracy holds; too few new texts to judge drift"),
        (report(accuracy=None), "good", "No drift is seen; accuracy is not known yet"),
        (report(accuracy=None, drift=None), "open", "Not enough to judge yet"),
        (blank(), "open", "No model is serving yet"),
        (blank(n=487, drift=drifted()), "good", "No drift is seen"),
        (blank(n=487, drift=drifted(fired=True)), "look", "The texts have drifted"),
        (blank(n=5, drift_reason="5 rows are too few to judge: 10 are needed"), "open", "Not enough to judge yet"),
    ],
)
def test_the_first_line_says_it_all(found: Report, tone: str, title: str) -> None:
    said = page.verdict(found)
    assert (said.tone, said.title) == (tone, title)
    heading = tree(page.render(found, [])).find(".//h1")
    assert heading is not None
    assert heading.text == title


@pytest.mark.parametrize(
    ("decision", "requested", "command"),
    [
        ("retrain", True, ["retrue", "ledger"]),
        ("retrain", False, ["retrue", "retrain", "--reason", "the texts have drifted"]),
        ("suggest", True, ["retrue", "retrain", "--reason", "the texts have drifted"]),
        ("wait", False, ["retrue", "retrain", "--reason", "the texts have drifted"]),
        ("label", True, ["retrue", "feedback", "--file", "labels.csv"]),
    ],
)
def test_what_to_do_is_a_command_to_paste(decision: str, requested: bool, command: list[str]) -> None:
    found = report(drift=drifted(fired=True), decision=decision, requested=requested)
    said = page.verdict(found)
    assert said.advice.endswith(":")
    assert said.command
    assert shlex.split(said.command) == command
    assert said.command in told(page.render(found, history(3)))


def test_where_nothing_is_due_no_command_is_given_unless_labels_are_wanting() -> None:
    assert page.verdict(report()).command is None
    assert page.verdict(report(accuracy=None)).command == page.LABEL
    assert page.verdict(blank()).command == "retrue retrain"
    assert page.verdict(blank(n=487, drift=drifted(fired=True))).command is None


def test_reasons_and_what_is_not_known_are_told_below() -> None:
    found = report(reasons=["a cool-down."], drift=None, drift_reason="12 new rows are too few")
    assert page.verdict(found).notes == ["A cool-down.", "12 new rows are too few."]
    words = told(page.render(blank(reasons=["run `retrue retrain`"]), []))
    assert "Run retrue retrain ." in words


def test_an_unusual_window_that_is_no_alarm_is_told_apart() -> None:
    assert "evidence and no alarm yet" in page.verdict(report(drift=drifted(statistic=3.5))).notes[0]
    assert page.verdict(report(drift=drifted(statistic=3.3))).notes == []


def test_groups_are_in_the_order_of_their_distance_and_the_worst_is_marked() -> None:
    html = page.render(report(), [])
    rows = [row for row in tree(html).iter("tr") if row[0].find("small") is not None]
    names = [(row[0].text or "").strip() for row in rows]
    assert names == ["residual", "pieces", "length", "margin", "embedding", "symbols"]
    assert ["moved most" in "".join(row.itertext()) for row in rows] == [True, *[False] * 5]
    assert [h3.text for h3 in tree(html).iter("h3") if h3.text in ("Pieces", "Length", "Margin", "Symbols")] == [
        "Pieces",
        "Length",
        "Margin",
        "Symbols",
    ]


def test_a_margin_of_more_than_two_labels_is_told_in_its_own_units() -> None:
    margin = {"before": [-3.1, -0.5, 0.2, 1.4, 6.2], "after": [-2.9, -0.4, 0.3, 1.5, 7.1]}
    words = told(page.render(report(drift=drifted(quantiles={"margin": margin})), []))
    assert "−3.1 −0.5 0.2 1.4 6.2" in words


def test_many_labels_get_their_largest_mistakes_instead_of_a_matrix() -> None:
    labels = tuple(f"label {k}" for k in range(page.NARROW + 1))
    found = report(**labelled(labels=labels))
    found["confusion"]["counts"][3][5] = 77
    html = page.render(found, [])
    (table,) = [table for table in tree(html).iter("table") if "Most frequent mistakes" in "".join(table[0].itertext())]
    rows = [[cell.text for cell in row] for row in table.iter("tr")][1:]
    assert rows[0] == ["label 3", "label 5", "77"]
    assert len(rows) == page.NARROW
    narrow = page.render(report(**labelled(labels=labels[:-1])), [])
    assert "Most frequent mistakes" not in narrow
    assert "Confusion matrix" in narrow


def test_alike_decisions_are_told_together_the_newest_first() -> None:
    decisions = ["none"] * 5 + ["label"] * 3 + ["none"]
    points = [point | {"decision": one} for point, one in zip(history(9), decisions, strict=True)]
    points[1] |= {"statistic": 8.5, "worst": "residual"}
    points[8] |= {"statistic": None, "worst": None, "accuracy": None}
    found = page.runs(points)
    assert [(run.decision, run.checks) for run in found] == [("none", 1), ("label", 3), ("none", 5)]
    assert (found[2].first, found[2].last) == (points[0]["time"], points[4]["time"])
    assert (found[2].statistic, found[2].worst, found[2].accuracy) == (8.5, "residual", points[4]["accuracy"])
    assert (found[0].statistic, found[0].accuracy) == (None, None)
    turns = [point | {"decision": ("none", "wait")[k % 2]} for k, point in enumerate(history(90))]
    assert len(page.runs(turns)) == page.RUNS
    assert page.runs(turns)[0].last == turns[-1]["time"]


def test_nothing_is_drawn_over_time_without_a_history() -> None:
    assert "Over time" not in told(page.render(report(), []))
    assert "Lines are drawn from the second check on" in told(page.render(report(), history(1)))
    whole = tree(page.render(report(), history(2)))
    assert len([svg for svg in whole.iter("svg") if svg.get("class") == "plot"]) == 4


def test_a_history_without_the_evidence_of_lost_accuracy_is_drawn_without_it() -> None:
    names = ("accuracy_evidence", "accuracy_limit")
    older = [{name: value for name, value in point.items() if name not in names} for point in history(9)]
    whole = tree(page.render(report(), older))
    assert [svg[0].text for svg in whole.iter("svg") if svg.get("class") == "plot"] == [
        "Accuracy",
        "Drift of the texts",
        "Evidence of drift",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (1_234_567, "1,234,567"),
        (8760.0, "8,760"),
        (999.7, "1,000"),
        (11.74, "11.7"),
        (-0.5, "−0.5"),
        (0.000123, "1.2 × 10⁻⁴"),
        (1e9, "10⁹"),
        (2.5e300, "2.5 × 10³⁰⁰"),
    ],
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert page._number(value).replace(SPACE, " ") == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (None, "none yet"),
        (0.0, "0 minutes"),
        (1 / 60, "1 minute"),
        (1.0, "1 hour"),
        (47.0, "47 hours"),
        (60.0, "2.5 days"),
    ],
)
def test_ages_are_written_for_people(hours: float | None, text: str) -> None:
    assert page._age(hours).replace("\u00a0", " ") == text


def light(color: tuple[float, float, float]) -> float:
    """The relative luminance of a colour (WCAG 2.2)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_all_text_has_contrast_enough(mode: int) -> None:
    html = page.render(*KINDS["healthy"])
    found = dict(re.findall(r"--(\w+): ([^;]+);", re.findall(r":root \{(.*?)\}", html, re.DOTALL)[mode]))
    heat: Any = tuple(int(part) for part in found.pop("heat").split())
    colors: dict[str, Any] = {}
    for name, text in found.items():
        digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
        colors[name] = tuple(bytes.fromhex(digits))
    strongest: Any = tuple(0.85 * h + 0.15 * p for h, p in zip(heat, colors["paper"], strict=True))
    assert "calc(var(--s) * .85)" in html
    for name in ("ink", "soft", "main", "good", "look", "bad", "open"):
        assert contrast(colors[name], colors["paper"]) >= AA, name
    for back in (colors["well"], strongest):
        assert contrast(colors["ink"], back) >= AA


def test_both_modes_name_the_same_colours() -> None:
    blocks = re.findall(r":root \{(.*?)\}", page.render(*KINDS["healthy"]), re.DOTALL)
    first, *others = [set(re.findall(r"--(\w+):", block)) for block in blocks]
    assert others == [first, first]


def test_the_same_report_is_the_same_page() -> None:
    found, points = json.loads(json.dumps(KINDS["healthy"]))
    assert page.render(found, points) == page.render(*KINDS["healthy"])
    assert len({page.render(*kind) for kind in KINDS.values()}) == len(KINDS)
