"""Serving speed beside every peer: the same weights, the same texts, one thread, CPU time within one interleaved run.

A peer is a process of its own, in its own environment (peers/serving.py), and all are up at once: each round asks them
in another order. The weights are random and of DistilBERT's full size (fullsize.py); texts are real, from the folder
that RETRUE_DATA names. AMX is withheld, since no Lambda host is known to have it, and single texts are timed with it
before that. Tables and picture go into docs/.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fullsize
import numpy as np
import page
import processor
import pyarrow.parquet as pq
import standings
import taught
from processor import Peak
from standings import FLIPPED, LENGTHS, SENTENCES, SLOW_REVIEWS, SLOW_TWEETS, STARTED, Found, Rates, Single, Starts
from tokenizers import Tokenizer
from tqdm import tqdm
from ways import AS_INTEL, INT8, OWN, PIPELINE, PLAIN, WAYS, Peer, Way, up

HERE = Path(__file__).resolve().parent
MOST_REPEATS, REPEATED = 5, 400  # times a single text is asked in a round, and tokens in all of them
PIECES = 3  # in which the many texts are read, so that no peer has them all in a bad minute
LETTERED = 20  # reviews whose words the texts of a given length are made of


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
        starts = started(ways, folders, exact[128][0], scratch)
        sizes = {way.name: sized(way, folders[way.script]) for way in ways}
        quota = under_quota(folders, sentences(data, SENTENCES)[0], scratch)
    found = Found(single, with_amx, peaks, rates, starts, sizes, quota, flips)
    text = standings.report(asked, ways, found)
    sys.stdout.write(text + "\n")
    page.put("serve", f"{text}\n\n{page.made_by()[:-1]}; {', '.join(locked())}.", asked.page)
    if not asked.only:
        standings.draw(ways, found)


def chosen(only: Sequence[str]) -> list[Way]:
    """The ways that are asked for, and ours; MKL as on Intel only where it is not so by itself."""
    forced = not processor.intel()
    return [
        way
        for way in WAYS
        if (not only or way.key in (OWN.key, *only)) and (way is not AS_INTEL or forced or way.key in only)
    ]


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


def started(ways: Sequence[Way], folders: Mapping[str, Path], text: str, scratch: Path) -> Starts:
    """CPU and wall milliseconds from the start of a process to its first answer, and the MB that it then has had."""
    found: Starts = {way.name: [] for way in ways}
    draw = random.Random(0)
    for _ in tqdm(range(STARTED), desc="process starts", unit="round", disable=None):
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


def locked() -> list[str]:
    """The peers' own versions, as the lock files have them."""
    found = []
    for name in ("optimum", "openvino", "ctranslate2"):
        text = (HERE.parent / f"locks/bench-{name}.txt").read_text()
        wanted = r"^(optimum-onnx|openvino|nncf|ctranslate2|transformers)==([\w.]+)"
        found += [f"{' '.join(each)} for {name}" for each in re.findall(wanted, text, re.MULTILINE)]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--reviews", type=int, default=500)
    parser.add_argument("--tweets", type=int, default=5_000)
    keys = [way.key for way in WAYS if way is not OWN]
    parser.add_argument("--only", nargs="+", default=[], choices=keys, metavar="NAME", help=", ".join(keys))
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
