"""Two files of texts on this machine: whether the second still looks like the first, with no stack and no account."""

import gzip
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrue import drift, report, rows
from retrue.classifier import Classifier
from retrue.errors import BadInput
from retrue.report import Report
from retrue.rows import Row

LONGEST = 50_000  # characters of a text


@dataclass(frozen=True)
class Texts:
    """The texts of one file, a group for each where one was asked for, and how many rows were refused or not drawn."""

    texts: list[str]
    groups: list[str] | None
    rejected: int
    skipped: int


def read(path: Path, group: str = "", most: int = 5_000, seed: int = 0) -> Texts:
    """The texts of a .csv or .csv.gz, at most `most` drawn by lot; `group` names a column of what belongs together.

    BadInput where the file has no column of that name, or too few texts to compare.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        header, table = rows.read(stream)
        place, of = rows.text_column(header), rows.column(header, group.lower()) if group else None
        if group and of is None:
            raise BadInput(f"{path.name} has no column `{group}`: name one that it has")
        judged = [rows.check_text(row, place, LONGEST) if isinstance(row, Row) else row for row in table]
    good = [row for row in judged if isinstance(row, Row)]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(good))[:most])
    kept = [good[place] for place in chosen]
    if len(kept) < 2 * drift.SIZES[0]:
        raise BadInput(f"{path.name} has {len(kept)} texts that can be read: give at least {2 * drift.SIZES[0]}")
    groups = None if of is None else [row.cells[of] for row in kept]
    return Texts([row.cells[place] for row in kept], groups, len(judged) - len(good), len(good) - len(kept))


def compare(
    reference: Texts,
    current: Texts,
    classifier: Classifier,
    now_ms: int,
    *,
    alpha: float = 0.01,
    trained: bool = True,
    told: Callable[[], object] = lambda: None,
) -> Report:
    """The report of one comparison, which calls it drift where p < `alpha`; `told` is called after every text.

    With a classifier that was not `trained`, what it answers is no matter, and the margin is left out.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = [_columns(pool, classifier, file.texts, trained, told) for file in (reference, current)]
    sketch = drift.register(tables[0], groups=reference.groups)
    seen = drift.check(sketch, tables[1], alpha)
    found = report.blank(now_ms, "offline") | {"n": seen.n}
    found["drift"] = report.drifted(seen, {}, evidence=None, limit=None) | {"fired": seen.p < alpha}
    if not trained:
        for name in ("distances", "quantiles"):
            found["drift"][name].pop("margin")
    found["reasons"] = [report.sentences(found)[0] or f"no drift was found (p = {seen.p:.2g}, not under {alpha:g})"]
    return found


def _columns(
    pool: ThreadPoolExecutor, classifier: Classifier, texts: Sequence[str], trained: bool, told: Callable[[], object]
) -> NDArray[Any]:
    answers = []
    for answer in pool.map(classifier.score, texts):
        answers.append(answer)
        told()
    return drift.columns(
        np.array([one.projection for one in answers]),
        np.array([one.tokens for one in answers]),
        np.array([one.pieces for one in answers]),
        np.array([one.symbols for one in answers]),
        np.array([list(one.scores.values()) if trained else [0.5, 0.5] for one in answers]),
    )
