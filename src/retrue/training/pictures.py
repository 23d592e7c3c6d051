"""The pictures of a model card, as SVG: readable on white and on dark, and byte for byte the same for the same card."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from retrue import artifact, metrics
from retrue.artifact import Card
from retrue.training.page import NARROW

# Each has a contrast of 3.6 to 1 or more against white and against a page as dark as #0d1117.
INK, BLUE, ORANGE, FAINT = "#75808f", "#3b7fd1", "#c9701d", "#75808f40"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "retrue",
    # Letters stay letters: the reader's own fonts know more scripts than the one that comes with matplotlib.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
}


def draw(card: Card, folder: Path) -> None:
    """Write the four pictures that the page names into a folder."""
    found, run = card.metrics, card.run
    with mpl.rc_context(STYLE), _any_script():
        figures = {
            artifact.CURVES: curves(run["losses"], run["history"]),
            artifact.CONFUSION: confusion(card.labels, found["test"]["confusion"]),
            artifact.RELIABILITY: reliability(found["reliability_before"], found["reliability"]),
            artifact.SLICES: slices(found["slices"], found["test"]),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name, transparent=True, bbox_inches="tight", metadata={"Date": None})


def curves(losses: list[list[float]], history: list[dict[str, float]]) -> Figure:
    """The loss of the training steps, and what the validation rows said at each evaluation."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("Training loss")
    left.plot([step for step, _ in losses], [loss for _, loss in losses], color=BLUE, linewidth=0.8, alpha=0.5)
    steps = [entry["step"] for entry in history]
    left.plot(steps, [entry["loss"] for entry in history], color=BLUE, marker="o", markersize=4, linewidth=1.6)
    left.set_ylim(bottom=0)
    right.set_title("Validation rows")
    for name, label, color in (("accuracy", "accuracy", BLUE), ("f1_macro", "macro F1", ORANGE)):
        values = [entry[name] for entry in history]
        right.plot(steps, values, color=color, marker="o", markersize=4, linewidth=1.6, label=label)
    right.legend(loc="lower right")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def confusion(labels: list[str], counts: list[list[int]]) -> Figure:
    """Each row is shaded by the share of the rows with that label, so that rare labels are seen too."""
    side = 1.6 + 0.55 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", ["#dfe9f6", "#1d5ba6"]), vmin=0, vmax=1)
    for i, row in enumerate(counts if len(labels) <= NARROW else ()):
        for j, count in enumerate(row):
            color = "white" if shares[i][j] > 0.5 else "#1b3556"
            axes.text(j, i, f"{count:,}", ha="center", va="center", color=color)
    places = range(len(labels))
    turned = len(labels) > 3
    axes.set_xticks(places, labels, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(places, labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("answer")
    axes.set_ylabel("true label")
    axes.set_title("Confusion on the test rows")
    return figure


def reliability(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Figure:
    """How often the model is right against how sure it is, and how many rows are that sure."""
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    least = min(bin["low"] for bin in [*before, *after])
    above.plot([least, 1], [least, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for bins, color, label in ((before, ORANGE, "before calibration"), (after, BLUE, "calibrated")):
        ends = [metrics.interval(round(bin["accuracy"] * bin["count"]), bin["count"]) for bin in bins]
        x, y = [bin["confidence"] for bin in bins], [bin["accuracy"] for bin in bins]
        if bins is after:
            reach = [[here - low for here, (low, _) in zip(y, ends, strict=True)]]
            reach += [[high - here for here, (_, high) in zip(y, ends, strict=True)]]
            above.errorbar(x, y, reach, fmt="none", ecolor=color, elinewidth=1, alpha=0.6)
        above.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6, label=label)
    above.set_ylabel("share that is right")
    above.set_ylim(0, 1.02)
    above.legend(loc="lower right")
    above.set_title("Reliability on the test rows")
    below.bar([(bin["low"] + bin["high"]) / 2 for bin in after], [bin["count"] for bin in after], 0.85 / 15, color=BLUE)
    below.set_ylabel("rows")
    below.set_xlabel("confidence")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set_xlim(least, 1.01)
    for axis in (above.yaxis, below.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure


def slices(parts: list[dict[str, Any]], test: dict[str, Any]) -> Figure:
    """The accuracy on each part of the test rows with its interval, against that on all of them."""
    rows = [{"by": "", "part": "all test rows", **test}, *parts]
    figure = Figure(figsize=(8, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(test["accuracy"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    place, places, by = 0.0, [], ""
    for row in rows:
        place += 1.5 if row["by"] != by else 1
        by = row["by"]
        places.append(place)
        color = BLUE if by else INK
        axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
        axes.plot([row["accuracy"]], [place], color=color, marker="o", markersize=5)
    axes.set_yticks(places, [f"{row['part']}  ({row['n']:,})" for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_title("Accuracy on parts of the test rows, with 95 % intervals")
    return figure


@contextmanager
def _any_script() -> Iterator[None]:
    """Labels may be in a script that the font for measuring lacks; whoever shows the picture has another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield
