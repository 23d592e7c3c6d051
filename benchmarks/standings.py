"""What was measured of each way of serving: the project's bars, tables and a picture."""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import fullsize
import matplotlib as mpl
import numpy as np
import page
import processor
from matplotlib.figure import Figure
from processor import Peak
from ways import AS_INTEL, INT8, OPENVINO, OPTIMUM, OWN, PIPELINE, PLAIN, Way

from retrue.training.pictures import BLUE, INK, STYLE

PICTURE = Path(__file__).resolve().parents[1] / "docs/serving.svg"
STARTED = 5  # times each way is started
LENGTHS = (16, 32, 128, 256, 512)  # tokens
SLOW_REVIEWS, SLOW_TWEETS = 96, 256  # that a slow way reads
SENTENCES = 300  # under a quota
FLIPPED = 1_000  # texts of each kind whose labels are compared
LAYERS, WIDTH, HIDDEN = 6, 768, 3072

Single = dict[tuple[str, str, int], list[float]]  # way, "one" or "bare", tokens → CPU seconds by round
Rates = dict[tuple[str, int, str], list[float]]  # way, batch, texts → texts per CPU second, by piece
Starts = dict[str, list[dict[str, float]]]


class Found(NamedTuple):
    """All that was measured."""

    single: Single
    with_amx: Single
    peaks: list[Peak]
    rates: Rates
    starts: Starts
    sizes: dict[str, tuple[float, float]]  # MB of weights, of packages
    quota: dict[str, list[float]]  # wall seconds of each sentence
    flips: dict[str, dict[str, tuple[float, float]]]  # texts → way → share that fp32 labels otherwise, accuracy


def floor(tokens: int, peak: Peak) -> float:
    """CPU seconds in which a text could be classified at the processor's peak, all matrices of weights at int8.

    Only the first token's last state is read: of the last layer all tokens need keys and values, and that one the rest.
    """
    layer, last = 4 * WIDTH**2 + 2 * WIDTH * HIDDEN, 2 * WIDTH**2
    weights = 2 * (tokens * ((LAYERS - 1) * layer + last) + layer - last)
    attention = 4 * WIDTH * ((LAYERS - 1) * tokens**2 + tokens)
    return weights / (1e9 * peak.int8) + attention / (1e9 * peak.fp32)


def ratios(some: Sequence[float], others: Sequence[float]) -> float:
    """The median of what one is to another, round by round."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


class Bar(NamedTuple):
    """What is wanted, and what was found; `least` tells a lower bound from an upper one."""

    what: str
    wanted: float
    found: float
    form: str
    least: bool = True

    def row(self) -> list[str]:
        reached = self.found >= self.wanted if self.least else self.found <= self.wanted
        bound = "at least" if self.least else "at most"
        said = (f"{bound} {self.form.format(self.wanted)}", self.form.format(self.found))
        return [self.what, *said, "reached" if reached else "missed"]


def bars(ways: Sequence[Way], found: Found) -> list[Bar]:
    """The bars of the project, as far as they were measured."""
    single, rates = found.single, found.rates
    own = {length: single[OWN.name, "one", length] for length in LENGTHS}
    made = []
    multiples = (
        (PIPELINE, 128, 4.0 if processor.intel() else 7.0), (AS_INTEL, 128, 4.0), (OPTIMUM, 128, 3.4),
        (PLAIN, 128, 1.3), (OPENVINO, 128, 1.0), (OPENVINO, 512, 1.05),
    )  # fmt: skip
    for way, length, wanted in multiples:
        if way in ways:
            times = ratios(single[way.name, "one", length], own[length])
            made.append(Bar(f"one text of {length} tokens, against {way.name}", wanted, times, "{:.2f}×"))
    if PIPELINE in ways:
        for texts, batch, wanted in (("reviews", 1, 7.0), ("reviews", 32, 14.0), ("tweets", 1, 13.0)):
            times = ratios(rates[OWN.name, 0, texts], rates[PIPELINE.name, batch, texts])
            made.append(Bar(f"{texts}, against {PIPELINE.name} in batches of {batch}", wanted, times, "{:.1f}×"))
    start = {name: statistics.median(each[name] for each in found.starts[OWN.name]) for name in ("cpu", "megabytes")}
    made.append(Bar("process start to first answer, CPU", 150, start["cpu"], "{:.0f} ms", least=False))
    made.append(Bar("resident at most by then", 120, start["megabytes"], "{:.0f} MB", least=False))
    for length, wanted in ((128, 0.65), (512, 0.70)) if found.peaks else ():
        best = [floor(length, peak) for peak in found.peaks]
        share = ratios(best, single[OWN.name, "bare", length])
        made.append(Bar(f"share of the int8 peak at {length} tokens, last layer pruned", wanted, share, "{:.0%}"))
    for texts, by_way in found.flips.items():
        changed = by_way[OWN.name][0]
        made.append(Bar(f"labels of {texts} that int8 changes", 0.007, changed, "{:.1%}", least=False))
    if found.quota:
        late = tail(found.quota[f"{OWN.name}, 1 thread"])
        made.append(Bar("sentences under a quota of one CPU, p95 over p50", 1.6, late, "{:.1f}", least=False))
    return made


def report(asked: argparse.Namespace, ways: Sequence[Way], found: Found) -> str:
    """All tables, with what was counted."""
    amx = ", with AMX withheld" if found.with_amx else ""
    parts = [
        f"CPU time of one thread, medians of {asked.rounds} rounds in which everyone takes turns{amx}; × is how many "
        "times ours is faster, round by round.",
        page.table(["", "wanted", "found", ""], [bar.row() for bar in bars(ways, found)]),
        "![CPU time of one text, and texts per CPU second, of each way](serving.svg)",
        "One text, from its letters to its label, CPU ms by its tokens:",
        page.table(*timings(ways, found.single, "one")),
        "int8 models alone, from token ids to logits:",
        page.table(*timings([way for way in ways if way in INT8], found.single, "bare")),
        f"{asked.reviews:,} film reviews of at most {fullsize.MOST} tokens and {asked.tweets:,} tweets, texts per CPU "
        f"second. fp32, bf16 and CTranslate2 read {min(SLOW_REVIEWS, asked.reviews)} and "
        f"{min(SLOW_TWEETS, asked.tweets)} of them, as long and as short as all are. onnxruntime, OpenVINO and "
        "CTranslate2 get the texts in order of length, in passes of at most 512 padded tokens:",
        page.table(*throughput(ways, found.rates)),
        f"A process from its start to the first answer, a text of 128 tokens, and the image that it takes; medians of "
        f"{STARTED}:",
        page.table(*footprints(ways, found)),
    ]
    if found.peaks:
        peak = Peak(*(statistics.median(each) for each in zip(*found.peaks, strict=True)))
        parts.append(
            f"In the same rounds `peak.c` reached {peak.int8:.0f} billion int8 and {peak.fp32:.0f} billion fp32 "
            f"operations per CPU second, without AMX. At this peak a text whose last layer is computed for the first "
            f"token alone takes {1000 * floor(128, peak):.1f} ms at 128 tokens and {1000 * floor(512, peak):.1f} ms at "
            "512."
        )
    else:
        parts.append("Without a C compiler for x86 the processor's peak was not measured.")
    if found.with_amx:
        parts += ["With AMX, one text from its letters to its label:"]
        parts += [page.table(*timings(ways, found.with_amx, "one"))]
    if found.quota:
        rows = [
            [name, *(f"{1000 * np.percentile(each, at):.1f}" for at in (50, 95, 99)), f"{tail(each):.1f}"]
            for name, each in found.quota.items()
        ]
        parts += [f"{SENTENCES} sentences under a quota of one CPU of {os.cpu_count()}, wall ms:"]
        parts += [page.table(["", "p50", "p95", "p99", "p95 / p50"], rows)]
    else:
        parts.append("Latency under a quota of one CPU was not measured: this machine grants no control group.")
    rows = [
        [name, *(f"{value:.1%}" for texts in found.flips.values() for value in texts[name])]
        for name in next(iter(found.flips.values()))
    ]
    head = [f"{texts}, {what}" for texts in found.flips for what in ("other labels", "accuracy")]
    told = f"Labels that differ from fp32's, of {FLIPPED:,} each, on a MiniLM that learned reviews and sentences:"
    parts += [told, page.table(["", *head], rows)]
    return "\n\n".join(parts)


def timings(ways: Sequence[Way], found: Single, do: str) -> tuple[list[str], list[list[str]]]:
    rows = []
    for way in ways:
        each = [found[way.name, do, length] for length in LENGTHS]
        times = [ratios(mine, found[OWN.name, do, length]) for mine, length in zip(each, LENGTHS, strict=True)]
        cells = [
            f"{1000 * statistics.median(one):.1f}" + (f" ({ratio:.2f}×)" if way is not OWN else "")
            for one, ratio in zip(each, times, strict=True)
        ]
        rows.append([way.name, *cells])
    return ["tokens", *map(str, LENGTHS)], rows


def throughput(ways: Sequence[Way], rates: Rates) -> tuple[list[str], list[list[str]]]:
    rows = []
    for way in ways:
        for batch in way.batches:
            cells = []
            for texts in ("reviews", "tweets"):
                each = rates[way.name, batch, texts]
                times = ratios(rates[OWN.name, 0, texts], each)
                cells.append(f"{statistics.median(each):.1f}" + (f" ({times:.1f}×)" if way is not OWN else ""))
            rows.append([f"{way.name}, batches of {batch}" if batch else way.name, *cells])
    return ["", "reviews", "tweets"], rows


def footprints(ways: Sequence[Way], found: Found) -> tuple[list[str], list[list[str]]]:
    rows = []
    for way in ways:
        each = found.starts[way.name]
        cells = [statistics.median(one[name] for one in each) for name in ("cpu", "wall", "megabytes")]
        rows.append([way.name, *(f"{value:.0f}" for value in (*cells, *found.sizes[way.name]))])
    return ["", "CPU ms", "wall ms", "MB resident at most", "MB of weights", "MB of packages"], rows


def tail(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 95) / np.percentile(seconds, 50))


def draw(ways: Sequence[Way], found: Found) -> None:
    """Bars of each way: CPU time of one text, and texts per CPU second."""
    names = [way.name for way in ways]
    panels = {
        "One text of 128 tokens, CPU ms": [1000 * statistics.median(found.single[name, "one", 128]) for name in names],
        "Reviews per CPU second": [best(found.rates, way, "reviews") for way in ways],
        "Tweets per CPU second": [best(found.rates, way, "tweets") for way in ways],
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.9 + 0.36 * len(ways)), layout="constrained")
        for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            drawn = axes.barh(names, values, color=[BLUE if way is OWN else INK for way in ways], height=0.62)
            axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, color=INK)
            axes.set_title(title)
            axes.set_xlim(0, 1.22 * max(values))
            axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        figure.savefig(PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None})


def best(rates: Rates, way: Way, texts: str) -> float:
    """A way's texts per CPU second, at the batch size that suits it best."""
    return max(statistics.median(rates[way.name, batch, texts]) for batch in way.batches)
