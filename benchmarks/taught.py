"""A checkpoint that has learned its task, since on one that has not, labels at int8 and fp32 differ by chance alone.

The default encoder on film reviews and single sentences, as the export and the peers read it; kept under RETRUE_HOME.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fullsize import TOKENIZER, home
from recipe import recipe

from retrue import dataset
from retrue.dataset import Example
from retrue.training import encoder, finetune
from retrue.training.settings import Settings

LABELS = ("negative", "positive")
REVIEWS, SENTENCES = 2_000, 1_700  # rows of each kind, of which some choose the epoch
HELD, TESTED = 150, 50
SETTINGS = Settings(epochs=2, max_tokens=256)


def checkpoint(data: Path) -> Path:
    """A folder as transformers saves it; another one for other code that makes it."""
    folder = home() / f"taught-{recipe(Path(__file__))}"
    if folder.is_dir():
        return folder
    start = encoder.resolve(SETTINGS.encoder_name, home().parent / "encoders")
    kinds = (
        rows(data / "imdb_train.parquet", REVIEWS, [("dup_in_test", "=", False)]),
        rows(data / "drift/sst2.parquet", SENTENCES, [("split", "=", "train")]),
    )
    splits = {
        "validation": [row for kind in kinds for row in kind[:HELD]],
        "test": [row for kind in kinds for row in kind[HELD : HELD + TESTED]],
        "train": [row for kind in kinds for row in kind[HELD + TESTED :]],
    }
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        prepared = dataset.write(Path(scratch, "data"), splits, name="taught", source="benchmark")
        made = Path(scratch, "checkpoint")
        finetune.finetune(start, prepared, SETTINGS, made)
        for name in (TOKENIZER, "tokenizer_config.json"):
            shutil.copyfile(start / name, made / name)
        made.rename(folder)
    return folder


def rows(file: Path, count: int, kept: list[tuple[str, str, object]]) -> list[Example]:
    """So many rows of a file, at random."""
    table = pq.read_table(file, columns=["text", "label"], filters=kept)
    taken = table.take(np.random.default_rng(1).permutation(len(table))[:count]).to_pylist()
    return [Example(row["text"], LABELS[row["label"]]) for row in taken]
