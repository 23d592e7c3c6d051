"""Our test of drift beside Evidently, NannyML and scipy on the same windows of real text: false alarms, power, cost.

Windows are drawn from the pools of texts that pools.py makes from the folder that RETRUE_DATA names. Home rows are cut
at random into a reference and a rest, several times: windows without drift come from the rest, and in the others some
rows are replaced by drifted ones. Peers judge the middle layer's whole embedding, in which drift shows best (layer.py);
scipy, which knows no threshold, is given the one that alarms in 1 % of the windows without drift. Tables and picture go
into docs/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import page
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from pools import FILMS, HOME, Pool, pools
from tqdm import tqdm
from windows import SIZES, Kind, Rows, Split, cut, whole

from retrue import artifact, detector, drift
from retrue.training.pictures import BLUE, INK, ORANGE, STYLE

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs/drift.svg"
ALPHA = 0.01
SHARES, PEERED = (0.05, 0.1, 0.2, 0.5), (0.1, 0.5)
YEAR = detector.CHECKS  # windows, if hourly; and the run length that the detector is asked to keep
PATIENCE = 200  # windows of drift after which nobody waits any longer
GROUPED = 3  # cuts of the home films into those of the reference and others
RUNS = 5  # of waiting for the alarm, a split
# Texts of other subjects or languages; the others are the same reviews with errors, cut short, or of one label.
CROSS = ("airline tweets", "Yelp", "Amazon electronics", "Amazon kitchen", "Amazon books", "French, German")
OURS = "retrue"


class Way(NamedTuple):
    """How a peer is asked: the environment that it lives in, its script here, and the way that it shall judge."""

    name: str
    environment: str
    script: str
    how: str = ""


OWN = Way(OURS, ".venv", "retrue_drift.py")
SCIPY = Way("scipy, flattened Wasserstein", ".venv", "scipy_drift.py")
WAYS = (
    Way("Evidently, domain classifier", ".venv-bench-evidently", "evidently_drift.py", "model"),
    Way("Evidently, share of components", ".venv-bench-evidently", "evidently_drift.py", "ratio"),
    Way("Evidently, distance of means", ".venv-bench-evidently", "evidently_drift.py", "distance"),
    Way("NannyML, reconstruction error", ".venv-bench-nannyml", "nannyml_drift.py", "reconstruction"),
    Way("NannyML, Jensen-Shannon", ".venv-bench-nannyml", "nannyml_drift.py", "jensen_shannon"),
    Way("NannyML, Wasserstein", ".venv-bench-nannyml", "nannyml_drift.py", "wasserstein"),
    SCIPY,
)

Found = dict[Kind, list[list[float]]]  # what was said of the windows of a kind, by split


@dataclass(frozen=True, eq=False)
class Monitor:
    """Our test with the reference of one split."""

    split: Split
    columns: NDArray[np.float32]
    reference: drift.Reference

    def check(self, rows: Rows, stretch: dict[str, float] | None = None) -> drift.Drift:
        return drift.check(self.reference, self.columns[rows], ALPHA, stretch)


def main() -> None:
    """Draw windows, ask everyone, and write the page."""
    asked = arguments()
    folder, texts = pools()
    columns = np.vstack([pool.columns() for pool in texts.values()])
    layer = artifact.read_card(folder).layer
    embeddings = np.vstack([pool.layers[:, layer] for pool in texts.values()]).astype(np.float32)
    splits = [cut(texts, seed) for seed in range(asked.splits)]
    monitors = [
        Monitor(split, columns, drift.register(columns[split.reference]))
        for split in tqdm(splits, desc="references", disable=None)
    ]
    found = {OURS: ours(monitors, asked.nulls, asked.windows)}
    found |= peers(embeddings, splits[: asked.peer_splits], asked.peer_nulls, asked.peer_windows)
    costs = {way.name: cost(way, monitors[0], embeddings, asked.repeats) for way in (OWN, *WAYS)}
    sequential = years(monitors[: asked.years])
    waits = delays(monitors)
    quiet = clustered(monitors, texts)
    text = report(asked, texts, found, costs, sequential, waits, quiet)
    sys.stdout.write(text + "\n")
    page.put("drift", f"{text}\n\n{page.made_by()}", asked.page)
    draw(found)


def ours(monitors: Sequence[Monitor], nulls: int, windows: int) -> Found:
    """The p of each window."""
    found: Found = {}
    for monitor in tqdm(monitors, desc=OURS, disable=None):
        for kind in monitor.split.kinds(SIZES, SHARES):
            drawn = monitor.split.windows(kind, windows if kind.name else nulls)
            found.setdefault(kind, []).append([monitor.check(window).p for window in drawn])
    return {kind: [[float(p < ALPHA) for p in split] for split in said] for kind, said in found.items()}


def peers(rows: NDArray[np.float32], splits: Sequence[Split], nulls: int, windows: int) -> dict[str, Found]:
    """What each says of the first windows of each kind: 1 for an alarm and 0 for none."""
    found: dict[str, Found] = {way.name: {} for way in WAYS}
    for split in splits:
        drawn = {kind: split.windows(kind, windows if kind.name else nulls) for kind in split.kinds(SIZES, PEERED)}
        for way in tqdm(WAYS, desc="peers", disable=None):
            said = asked_alone(way, rows, rows[split.reference], drawn)["said"]
            for kind, answers in zip(drawn, said, strict=True):
                found[way.name].setdefault(kind, []).append(answers)
    distances = found[SCIPY.name]
    limits = {n: np.quantile(distances[Kind("", n, 0.0)], 1 - ALPHA, method="higher") for n in SIZES}
    for kind, said in distances.items():
        distances[kind] = [[float(value > limits[kind.n]) for value in split] for split in said]
    return found


def cost(way: Way, monitor: Monitor, embeddings: NDArray[np.float32], repeats: int) -> dict[str, Any]:
    """CPU seconds of a check by the window's size, and the resident size of a process that does nothing else."""
    window = monitor.split.windows(Kind("", SIZES[-1], 0.0), 1)[0]
    drawn = {Kind("", n, 0.0): np.tile(np.arange(n), (repeats, 1)) for n in SIZES}
    if way is OWN:
        sketch = np.frombuffer(monitor.reference.to_bytes(), np.uint8)
        return asked_alone(way, monitor.columns[window], sketch, drawn)
    return asked_alone(way, embeddings[window], embeddings[monitor.split.reference], drawn)


def asked_alone(way: Way, rows: NDArray[Any], reference: NDArray[Any], drawn: dict[Kind, Rows]) -> dict[str, Any]:
    """What a way says of windows, in a process of its own (peers/protocol.py)."""
    silent = {
        "NML_DISABLE_USAGE_LOGGING": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "windows.npz")
        cells = {str(number): windows for number, windows in enumerate(drawn.values())}
        np.savez(file, rows=rows, reference=reference, **cells)
        python = HERE.parent / way.environment / "bin/python"
        command = [str(python), str(HERE / "peers" / way.script), str(file), way.how]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **silent})
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def years(monitors: Sequence[Monitor]) -> dict[int, list[int]]:
    """How often the sequential detector cried wolf in a year of hourly windows without drift, by size and split."""
    cries: dict[int, list[int]] = {}
    for n in SIZES[:2]:
        for monitor in tqdm(monitors, desc=f"years at n = {n}", disable=None):
            total, fired = 0.0, 0
            for window in monitor.split.windows(Kind("", n, 0.0), YEAR):
                total = detector.add(total, detector.evidence(monitor.check(window).p))
                if total >= YEAR:
                    total, fired = 0.0, fired + 1
            cries.setdefault(n, []).append(fired)
    return cries


def delays(monitors: Sequence[Monitor]) -> dict[Kind, float]:
    """The median number of drifted windows until the sequential detector, at rest before, fires."""
    waits: dict[Kind, list[int]] = {}
    for monitor in tqdm(monitors, desc="delays", disable=None):
        for kind in monitor.split.kinds(SIZES, SHARES):
            if kind.name and kind.n == SIZES[0]:
                for run in range(RUNS):
                    waits.setdefault(kind, []).append(wait(monitor, kind, run))
    return {kind: statistics.median(each) for kind, each in waits.items()}


def wait(monitor: Monitor, kind: Kind, run: int) -> int:
    """Windows until the alarm; PATIENCE + 1 where it does not come."""
    total = 0.0
    for number in range(1, PATIENCE + 1):
        window = monitor.split.windows(kind, 1, turn=run * PATIENCE + number)[0]
        total = detector.add(total, detector.evidence(monitor.check(window).p))
        if total >= YEAR:
            return number
    return PATIENCE + 1


def clustered(monitors: Sequence[Monitor], texts: dict[str, Pool]) -> dict[int, dict[str, float]]:
    """The share of false alarms among windows of whole films that the reference does not hold, by size.

    "at first" is the share before anything is known of earlier windows, and "after burn-in" that of as many later ones.
    For "grouped" the reference is of whole home films too and knows so; nothing else is known.
    """
    said: dict[int, dict[str, list[bool]]] = {n: {"at first": [], "after burn-in": [], "grouped": []} for n in SIZES}
    names = list(texts)
    start = sum(len(texts[name].tokens) for name in names[: names.index(FILMS)])
    for monitor in tqdm(monitors, desc="films", disable=None):
        for n in SIZES:
            past: list[dict[str, Any]] = []
            for number, window in enumerate(whole(texts[FILMS].films, n, 2 * drift.BURN_IN, monitor.split.seed)):
                found = monitor.check(start + window, drift.stretch(monitor.reference, past))
                burnt = number >= drift.BURN_IN
                said[n]["after burn-in" if burnt else "at first"].append(found.p < ALPHA)
                if not burnt or found.p >= ALPHA:
                    past.append({"n": found.n, "distances": found.distances})
    columns, titles = texts[HOME].columns(), texts[HOME].films
    for seed in range(GROUPED):
        films = np.random.default_rng(seed).permutation(np.unique(titles))
        held = np.isin(titles, films[: len(films) // 2])
        reference = drift.register(columns[held], groups=titles[held].tolist())
        for n in SIZES:
            for window in whole(titles[~held], n, 2 * drift.BURN_IN, seed):
                said[n]["grouped"].append(drift.check(reference, columns[~held][window], ALPHA).p < ALPHA)
    return {n: {when: float(np.mean(alarms)) for when, alarms in each.items()} for n, each in said.items()}


def report(
    asked: argparse.Namespace,
    texts: dict[str, Pool],
    found: dict[str, Found],
    costs: dict[str, dict[str, Any]],
    cries: dict[int, list[int]],
    waits: dict[Kind, float],
    films: dict[int, dict[str, float]],
) -> str:
    """All tables, with what was counted."""
    names = list(dict.fromkeys(kind.name for kind in found[OURS] if kind.name))
    sizes = " / ".join(map(str, SIZES))

    def cells(values: Iterable[float], form: str = ".0%") -> str:
        return " / ".join(format(value, form).removesuffix("%") for value in values)

    def after(windows: float) -> str:
        return f"{windows:g}" if windows <= PATIENCE else f"> {PATIENCE}"

    def power(way: str, n: int, share: float, kinds: Sequence[str] = names) -> float:
        return float(np.mean([found[way][Kind(name, n, share)] for name in kinds]))

    def false(way: str) -> list[float]:
        return [float(np.mean(found[way][Kind("", n, 0.0)])) for n in SIZES]

    everyone = [
        [
            name,
            cells(false(name), ".1%"),
            *(cells(power(name, n, share) for n in SIZES) for share in PEERED),
            cells((1000 * costs[name]["seconds"][str(n)] for n in SIZES), ".3g"),
            f"{costs[name]['megabytes']:.0f}",
        ]
        for name in found
    ]
    own = [[name, *(cells(power(OURS, n, share, [name]) for n in SIZES) for share in SHARES)] for name in names]
    late = [
        [
            name,
            *(
                f"{value:g}" if (value := waits[Kind(name, SIZES[0], share)]) <= PATIENCE else f"> {PATIENCE}"
                for share in SHARES
            ),
        ]
        for name in names
    ]
    at = [[name, *(cells([power(way, 200, 0.1, [name])]) for way in found)] for name in names]
    each = [[float(np.mean(one)) for one in found[OURS][Kind("", n, 0.0)]] for n in SIZES]
    error = [1.96 * statistics.stdev(one) / len(one) ** 0.5 for one in each]
    quiet = [[f"{n}", *(f"{100 * value:.1f}" for value in films[n].values())] for n in SIZES]
    lost = [f"{sum(each)} in {len(each)} years of {YEAR:,} windows of {n} without drift" for n, each in cries.items()]
    shares = [f"{share:.0%}" for share in SHARES]
    cross = power(OURS, 200, 0.1, CROSS)
    peered = f"{asked.peer_splits * asked.peer_nulls} and {asked.peer_splits * asked.peer_windows}"
    return "\n\n".join(
        [
            f"Alarms in % of the windows, for windows of {sizes} texts; the mean of {len(names)} kinds of drift. Ours "
            f"is asked for {ALPHA:.0%} of false alarms, and judges {asked.splits * asked.nulls:,} windows of each size "
            f"without drift and {asked.splits * asked.windows} of each kind with drift, in {asked.splits} cuts of "
            f"{len(texts[HOME].tokens):,} reviews. The peers have the defaults that they come with, and judge {peered} "
            "of the same windows.",
            page.table(["", "false alarms", "10 % drifted", "50 % drifted", "CPU ms a check", "MB"], everyone),
            f"The 95 % intervals of our false alarms, over the cuts, reach {cells(error, '.1%')} points to each side. "
            f"Where 10 % of the texts are of other subjects or languages ({', '.join(CROSS)}), ours finds it in "
            f"{cross:.1%} of the windows of 200.",
            "![False alarms and alarms under drift of each way](drift.svg)",
            "Windows of 200 of which 10 % have drifted; alarms in %:",
            page.table(["", *found], at),
            f"Ours by share of drifted texts, for windows of {sizes}; alarms in %:",
            page.table(["", *shares], own),
            f"Check after check, the sequential detector that is asked for one false alarm in {YEAR:,} raised "
            f"{' and '.join(lost)}. Windows of {SIZES[0]} until it fires, median of {asked.splits * RUNS}:",
            page.table(["", *shares], late),
            f"Clustered traffic: each window is of whole films that the reference does not hold. False alarms in % "
            f"before and after {drift.BURN_IN} accepted windows, and at once where the reference is of whole films and "
            "knows which:",
            page.table(["texts", *films[SIZES[0]]], quiet),
        ]
    )


def draw(found: dict[str, Found]) -> None:
    """False alarms beside what is found, a row a way and a mark a size."""
    marks = dict(zip(SIZES, ((BLUE, "o"), (ORANGE, "s"), (INK, "D")), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.42 * len(found)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, share, title in ((left, 0.0, "False alarms"), (right, 0.1, "Found: 10 % of the texts have drifted")):
            for n, (color, mark) in marks.items():
                said = [
                    [np.mean(each) for kind, each in one.items() if kind.n == n and kind.share == share]
                    for one in found.values()
                ]
                axes.plot(
                    [np.mean(each) for each in said],
                    range(len(found)),
                    mark,
                    color=color,
                    markersize=6,
                    label=f"{n} texts",
                )
            axes.set_title(title)
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        left.axvline(ALPHA, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        left.set_yticks(range(len(found)), [*found])
        left.invert_yaxis()
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower right", ncols=len(SIZES))
        figure.savefig(PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--splits", type=int, default=20, help="cuts of the home rows")
    parser.add_argument("--nulls", type=int, default=100, help="windows of each size without drift, a cut")
    parser.add_argument("--windows", type=int, default=10, help="windows of each kind with drift, a cut")
    parser.add_argument("--peer-splits", type=int, default=2)
    parser.add_argument("--peer-nulls", type=int, default=50)
    parser.add_argument("--peer-windows", type=int, default=2)
    parser.add_argument("--years", type=int, default=4, help="cuts that are watched for a year")
    parser.add_argument("--repeats", type=int, default=5, help="checks whose CPU time is taken")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
