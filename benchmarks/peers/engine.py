"""The request around an engine that takes token ids only: what its user would write, and written well.

Many texts go in order of length, padded to the longest of a pass of few tokens: on a CPU this beats any fixed number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serving import Served
from tokenizers import Tokenizer

MOST = 512  # tokens of a text
BUDGET = 512  # padded tokens of a pass; 256 to 1,024 are within a tenth of each other

Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]  # ids, mask → logits


def served(folder: Path, run: Run) -> Served:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MOST)

    def bare(ids: list[int]) -> NDArray[Any]:
        fed = np.array([ids], np.int64)
        return run(fed, np.ones_like(fed))

    def one(text: str) -> int:
        return best(bare(tokenizer.encode(text).ids))[0]

    def many(texts: list[str], _: int) -> list[int]:
        ids = [found.ids for found in tokenizer.encode_batch_fast(texts)]
        labels = [0] * len(ids)
        rows: list[int] = []
        for row in sorted(range(len(ids)), key=lambda row: len(ids[row])):
            if rows and len(ids[row]) * (len(rows) + 1) > BUDGET:
                several(rows, ids, labels)
                rows = []
            rows.append(row)
        if rows:
            several(rows, ids, labels)
        return labels

    def several(rows: list[int], ids: list[list[int]], labels: list[int]) -> None:
        fed = np.zeros((len(rows), len(ids[rows[-1]])), np.int64)
        mask = np.zeros_like(fed)
        for place, row in enumerate(rows):
            fed[place, : len(ids[row])] = ids[row]
            mask[place, : len(ids[row])] = 1
        for row, label in zip(rows, best(run(fed, mask)), strict=True):
            labels[row] = label

    return Served(one, bare, many)


def best(logits: NDArray[Any]) -> list[int]:
    """The column of the highest score, by way of the scores that a caller would be answered."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    found: list[int] = scores.argmax(axis=1).tolist()
    return found
