"""Which rows are trained on together: steps of as many rows, in passes of like length under a budget of tokens.

Padding is work for nothing. A pass is as wide as its longest text, so texts of like length go together: rows are
shuffled, blocks of many steps are sorted by length, cut into steps, and the steps shuffled again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from retrue.training.tokens import Tokens

GROUP = 50  # so many steps are sorted by length together: little padding, and still well shuffled
Rows = NDArray[np.int64]


def steps(rows: Rows, lengths: NDArray[np.int64], size: int, shuffle: np.random.Generator) -> list[Rows]:
    """The rows of an epoch as steps of `size` rows of like length, in random order."""
    order = shuffle.permutation(rows)
    found: list[Rows] = []
    for start in range(0, len(order), size * GROUP):
        block = order[start : start + size * GROUP]
        block = block[np.argsort(lengths[block], kind="stable")]
        found += [block[i : i + size] for i in range(0, len(block), size)]
    return [found[i] for i in shuffle.permutation(len(found))]


def passes(rows: Rows, lengths: NDArray[np.int64], budget: int) -> list[Rows]:
    """The rows of a step as passes, each with at most `budget` tokens once padded, or with one row."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    found: list[Rows] = []
    end = len(ordered)
    while end > 0:
        # From the longest down: its length is the width of the pass.
        start = max(0, end - max(1, budget // int(lengths[ordered[end - 1]])))
        found.append(ordered[start:end])
        end = start
    return found


def padded(
    tokens: Tokens, rows: Sequence[int] | Rows, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ids (rows, width) and their mask, which is None where nothing is padded: attention is faster without one."""
    texts = [tokens[int(row)] for row in rows]
    width = max(len(text) for text in texts)
    ids = np.full((len(texts), width), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    whole = bool(mask.all())
    return torch.from_numpy(ids).to(device), None if whole else torch.from_numpy(mask).to(device)
