"""Texts as token ids, made once and mapped into memory, so that a large dataset costs no more of it than a small one.

ids.npy       int32, the ids of all texts one after another
starts.npy    int64, where each text begins, and one more for the end
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retrue.classifier import cut

CHUNK = 2_000  # texts that are tokenised at once
IDS, STARTS = "ids.npy", "starts.npy"


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of many texts; `tokens[i]` are those of text i, with the marks at both ends."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


def open(folder: Path) -> Tokens:
    """The tokens that `write` left in a folder, mapped and not read."""
    return Tokens(np.load(folder / IDS, mmap_mode="r"), np.load(folder / STARTS))


def write(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], most: int, kept: str) -> Tokens:
    """Tokenise texts into a folder, each cut to `most` tokens as `kept` says; one that is there already is used."""
    if (folder / STARTS).is_file():
        return open(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        draft = Path(scratch, "tokens")
        draft.mkdir()
        lengths: list[int] = []
        with (draft / "ids.raw").open("wb") as file:
            for start in range(0, len(texts), CHUNK):
                for encoding in tokenizer.encode_batch_fast(list(texts[start : start + CHUNK])):
                    ids = cut(encoding.ids, most, kept)
                    lengths.append(len(ids))
                    file.write(np.array(ids, dtype=np.int32).tobytes())
        flat = np.memmap(draft / "ids.raw", dtype=np.int32, mode="r", shape=(sum(lengths),))
        np.save(draft / IDS, flat)
        del flat
        (draft / "ids.raw").unlink()
        np.save(draft / STARTS, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        draft.rename(folder)
    return open(folder)
