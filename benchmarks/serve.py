"""Serving speed beside every peer: the same weights, the same texts, one thread, CPU time within one interleaved run.

A peer is a process of its own, in its own environment (peers/serving.py), and all are up at once: each round asks them
in another order. The weights are random and of DistilBERT's full size (fullsize.py); texts are real, from the folder
that RETRUE_DATA names. AMX is withheld, since no Lambda host is known to have it, and single texts are timed with it
before that. Tables and picture go into docs/.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import fullsize
import matplotlib as mpl
import numpy as np
import page
import processor
import pyarrow.parquet as pq
import taught
from matplotlib.figure import Figure
from processor import Peak
from tokenizers import Tokenizer
from tqdm import tqdm

from retrue.training.pictures import BLUE, INK, STYLE

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs/serving.svg"
LENGTHS = (16, 32, 128, 256, 512)  # tokens
MOST_REPEATS, REPEATED = 5, 400  # times a single text is asked in a round, and tokens in all of them
PIECES = 3  # in which the many texts are read, so that no peer has them all in a bad minute
SLOW_REVIEWS, SLOW_TWEETS = 96, 256  # that a slow way reads
LETTERED = 20  # reviews whose words the texts of a given length are made of
SENTENCES = 300  # under a quota
FLIPPED = 1_000  # texts of each kind whose labels are compared
LAYERS, WIDTH, HIDDEN = 6, 768, 3072
PIPELINES = (1, 32)  # batch sizes
LINES = 12  # of a peer that failed


class Way(NamedTuple):
    """How a peer is asked: its environment, its script here, its model, and the packages without which it cannot serve.

    `batches` are the sizes that it is given many texts in, 0 where it chooses. A slow one reads a part of the texts.
    """

    key: str
    name: str
    environment: str
    script: str
    how: str
    packages: tuple[str, ...]
    file: str  # of the weights
    batches: tuple[int, ...] = (0,)
    slow: bool = False
    hub: bool = False  # asks for the hub's client when it is imported


OWN = Way("retrue", "retrue", ".venv", "retrue", "", ("numpy", "onnxruntime", "tokenizers"), "weights.bin")
PIPELINE = Way(
    "pipeline", "transformers pipeline, fp32", ".venv", "transformers", "float32", ("torch", "transformers"),
    "model.safetensors", PIPELINES, slow=True, hub=True,
)  # fmt: skip
BF16 = PIPELINE._replace(key="bf16", name="transformers pipeline, bf16", how="bfloat16", batches=(1,))
AS_INTEL = PIPELINE._replace(key="mkl", name="transformers pipeline, fp32, MKL as on Intel", batches=(1,))
OPTIMUM = Way(
    "optimum", "optimum ONNX, fp32", ".venv-bench-optimum", "optimum", "",
    ("torch", "transformers", "optimum-onnx", "onnxruntime"), "model.onnx", (1,), slow=True, hub=True,
)  # fmt: skip
PLAIN = Way("onnxruntime", "onnxruntime, int8", ".venv", "onnxruntime", "", OWN.packages, "model_quantized.onnx")
OPENVINO = Way(
    "openvino", "OpenVINO, int8", ".venv-bench-openvino", "openvino", "", ("numpy", "openvino", "tokenizers"),
    "model.bin",
)  # fmt: skip
CTRANSLATE2 = Way(
    "ctranslate2", "CTranslate2, int8", ".venv-bench-ctranslate2", "ctranslate2", "",
    ("numpy", "ctranslate2", "tokenizers"), "model.bin", slow=True,
)  # fmt: skip
WAYS = (OWN, PIPELINE, AS_INTEL, BF16, OPTIMUM, PLAIN, OPENVINO, CTRANSLATE2)
INT8 = (OWN, PLAIN, OPENVINO, CTRANSLATE2)

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


class Peer:
    """A way of serving that is up; leaving it ends the process."""

    def __init__(self, way: Way, folder: Path, scratch: Path, *, threads: int = 1, group: Path | None = None) -> None:
        self.way = way
        self.began = time.monotonic()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        silent = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        preload = {"LD_PRELOAD": str(processor.as_on_intel(scratch))} if way.key == AS_INTEL.key else {}
        python = HERE.parent / way.environment / "bin/python"
        command = [python, HERE / f"peers/{way.script}_serving.py", "serve", folder, way.how, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **alone, **silent, **preload},
        )  # fmt: skip
        if group:
            group.write_text(str(self.process.pid))

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        """What it answers; where it fails, the benchmark ends with its last lines."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **job}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # and so it says nothing either
        for line in self.process.stdout:
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                return said
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()[-LINES:]
        sys.exit("\n".join([f"{self.way.name} failed with exit status {self.process.returncode}:", *lines]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.errors.close()


def main() -> None:
    """Make what is missing, ask everyone, and write the page."""
    asked = arguments()
    ways = chosen(asked.only)
    source = fullsize.checkpoint()
    folders = fullsize.models(source)
    data = Path(os.environ["RETRUE_DATA"])
    exact = of_length(source, reviews(data, LETTERED))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with_amx: Single = {}
        if "amx_int8" in processor.flags():
            with up(ways, folders, scratch) as peers:
                with_amx = singles(peers, exact, asked.rounds, scratch, bare=False)[0]
            processor.withhold_amx()
        flips = flipped(ways, data, scratch)
        with up(ways, folders, scratch) as peers:
            single, peaks = singles(peers, exact, asked.rounds, scratch, bare=True)
            rates = many(peers, {"reviews": reviews(data, asked.reviews), "tweets": tweets(data, asked.tweets)})
        starts = started(ways, folders, exact[128][0], asked.rounds, scratch)
        sizes = {way.name: sized(way, folders[way.script]) for way in ways}
        quota = under_quota(folders, sentences(data, SENTENCES)[0], scratch)
    found = Found(single, with_amx, peaks, rates, starts, sizes, quota, flips)
    text = report(asked, ways, found)
    sys.stdout.write(text + "\n")
    page.put("serve", f"{text}\n\n{page.made_by()[:-1]}; {', '.join(locked())}.", asked.page)
    if not asked.only:
        draw(ways, found)


def chosen(only: Sequence[str]) -> list[Way]:
    """The ways that are asked for, and ours; MKL as on Intel only where it is not so by itself."""
    forced = not processor.intel()
    return [
        way
        for way in WAYS
        if (not only or way.key in (OWN.key, *only)) and (way is not AS_INTEL or forced or way.key in only)
    ]


@contextmanager
def up(ways: Sequence[Way], folders: Mapping[str, Path], scratch: Path) -> Iterator[list[Peer]]:
    """All ways at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(way, folders[way.script], scratch)) for way in ways]


def singles(
    peers: Sequence[Peer], exact: Mapping[int, tuple[str, list[int]]], rounds: int, scratch: Path, *, bare: bool
) -> tuple[Single, list[Peak]]:
    """CPU seconds of one text by itself, by round: from its letters ("one"), and of int8 models alone ("bare")."""
    found: Single = {}
    peaks = []
    draw = random.Random(0)
    for number in tqdm(range(rounds + 1), desc="single texts", unit="round", disable=None):
        for length, (text, ids) in exact.items():
            times = min(MOST_REPEATS, max(1, REPEATED // length))
            job = {"texts": [text] * times, "ids": [ids] * times}
            for peer in draw.sample(peers, len(peers)):
                for do in ("one", "bare") if bare and peer.way in INT8 else ("one",):
                    spent = peer.ask(do, **job)["cpu"]
                    if number:  # the first round warms up
                        found.setdefault((peer.way.name, do, length), []).append(statistics.median(spent))
        if number and (best := processor.peak(scratch)):
            peaks.append(best)
    return found, peaks


def many(peers: Sequence[Peer], corpora: Mapping[str, list[str]]) -> Rates:
    """Texts per CPU second, by piece of the texts."""
    found: Rates = {}
    draw = random.Random(0)
    asked = [(peer, batch) for peer in peers for batch in peer.way.batches]
    for name, texts in corpora.items():
        few = spread(texts, SLOW_REVIEWS if name == "reviews" else SLOW_TWEETS)
        for piece in tqdm(range(PIECES), desc=name, unit="piece", disable=None):
            for peer, batch in tqdm(draw.sample(asked, len(asked)), unit="peer", leave=False, disable=None):
                read = (few if peer.way.slow else texts)[piece::PIECES]
                spent = peer.ask("many", texts=read, batch=batch)["cpu"][0]
                found.setdefault((peer.way.name, batch, name), []).append(len(read) / spent)
    return found


def started(ways: Sequence[Way], folders: Mapping[str, Path], text: str, rounds: int, scratch: Path) -> Starts:
    """CPU and wall milliseconds from the start of a process to its first answer, and the MB that it then has had."""
    found: Starts = {way.name: [] for way in ways}
    draw = random.Random(0)
    for _ in tqdm(range(rounds), desc="process starts", unit="round", disable=None):
        for way in draw.sample(ways, len(ways)):
            with Peer(way, folders[way.script], scratch) as peer:
                said = peer.ask("one", texts=[text])
                wall = time.monotonic() - peer.began
            found[way.name].append({"cpu": 1000 * said["process"], "wall": 1000 * wall, "megabytes": said["megabytes"]})
    return found


def sized(way: Way, folder: Path) -> tuple[float, float]:
    """MB of the weights as they are served, and of the packages with all that they ask for."""
    python = HERE.parent / way.environment / "bin/python"
    command = [python, HERE / "peers/installed.py", *way.packages]
    if not way.hub:
        command += ["--without", "huggingface_hub"]  # which tokenizers asks for, and needs for fetching alone
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    files = [file for file in folder.iterdir() if file.name.startswith(way.file)]
    return sum(file.stat().st_size for file in files) / 1e6, float(done.stdout)


def under_quota(folders: Mapping[str, Path], texts: Sequence[str], scratch: Path) -> dict[str, list[float]]:
    """Wall seconds of each sentence where all cores are seen and one is granted; empty without the right to grant."""
    found = {}
    with processor.one_cpu() as group:
        for way, threads in ((OWN, 1), (PLAIN, 1), (PLAIN, 0)) if group else ():
            name = f"{way.name}, {f'{threads} thread' if threads else 'threads of its own choice'}"
            with Peer(way, folders[way.script], scratch, threads=threads, group=group) as peer:
                peer.ask("one", texts=texts[:10])
                found[name] = peer.ask("one", texts=texts)["wall"]
    return found


def flipped(ways: Sequence[Way], data: Path, scratch: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """How many labels int8 changes, and the accuracy, on a checkpoint that has learned reviews and sentences."""
    folders = taught.models(data)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    rows = {"reviews": labelled(data / "imdb_test.parquet", FLIPPED), "sentences": sentences(data, FLIPPED)}
    with up([PIPELINE, *(way for way in ways if way in INT8)], folders, scratch) as peers:
        for name, (texts, truth) in rows.items():
            full: list[int] = []
            for peer in tqdm(peers, desc=f"labels of {name}", unit="peer", disable=None):
                said = peer.ask("one", texts=texts)["labels"]
                full = full or said
                found.setdefault(name, {})[peer.way.name] = (unlike(said, full), 1 - unlike(said, truth))
    return found


def unlike(some: Sequence[int], others: Sequence[int]) -> float:
    return sum(a != b for a, b in zip(some, others, strict=True)) / len(some)


def floor(tokens: int, peak: Peak) -> float:
    """CPU seconds in which a text could be classified at the processor's peak, all matrices of weights at int8.

    Only the first token's last state is read: of the last layer all tokens need keys and values, and that one the rest.
    """
    layer, last = 4 * WIDTH**2 + 2 * WIDTH * HIDDEN, 2 * WIDTH**2
    weights = 2 * (tokens * ((LAYERS - 1) * layer + last) + layer - last)
    attention = 4 * WIDTH * ((LAYERS - 1) * tokens**2 + tokens)
    return weights / (1e9 * peak.int8) + attention / (1e9 * peak.fp32)


def of_length(source: Path, texts: Sequence[str]) -> dict[int, tuple[str, list[int]]]:
    """A text of each of LENGTHS, of words that are one token each, and its token ids."""
    tokenizer = Tokenizer.from_file(str(source / fullsize.TOKENIZER))
    known = tokenizer.get_vocab()
    words = [word for word in re.findall(r"[a-z]+", " ".join(texts).lower()) if word in known]
    found = {}
    for length in LENGTHS:
        text = " ".join(words[: length - 2])
        ids = tokenizer.encode(text).ids
        assert len(ids) == length
        found[length] = (text, ids)
    return found


def spread(texts: Sequence[str], count: int) -> list[str]:
    """So many texts that are as long and as short as all of them are, in random order."""
    if count >= len(texts):
        return list(texts)
    order = sorted(texts, key=len)
    few = [order[int((i + 0.5) * len(order) / count)] for i in range(count)]
    return random.Random(0).sample(few, count)


def labelled(file: Path, count: int, kept: Any = None) -> tuple[list[str], list[int]]:
    table = pq.read_table(file, columns=["text", "label"], filters=kept)
    rows = table.take(np.random.default_rng(0).permutation(len(table))[:count]).to_pylist()
    return [row["text"] for row in rows], [row["label"] for row in rows]


def reviews(data: Path, count: int) -> list[str]:
    return labelled(data / "imdb_test.parquet", count)[0]


def tweets(data: Path, count: int) -> list[str]:
    return labelled(data / "drift/airline_tweets.parquet", count)[0]


def sentences(data: Path, count: int) -> tuple[list[str], list[int]]:
    return labelled(data / "drift/sst2.parquet", count, [("split", "!=", "train")])


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
        f"{asked.rounds}:",
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


def locked() -> list[str]:
    """The peers' own versions, as the lock files have them."""
    found = []
    for name in ("optimum", "openvino", "ctranslate2"):
        text = (HERE.parent / f"locks/bench-{name}.txt").read_text()
        wanted = r"^(optimum-onnx|openvino|nncf|ctranslate2|transformers)==([\w.]+)"
        found += [f"{' '.join(each)} for {name}" for each in re.findall(wanted, text, re.MULTILINE)]
    return found


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reviews", type=int, default=500)
    parser.add_argument("--tweets", type=int, default=5_000)
    keys = [way.key for way in WAYS if way is not OWN]
    parser.add_argument("--only", nargs="+", default=[], choices=keys, metavar="NAME", help=", ".join(keys))
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
