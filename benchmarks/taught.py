"""A model that has learned its task, since with one that has not, labels at int8 and fp32 differ by chance alone.

The default encoder on film reviews and single sentences; kept under RETRUE_HOME. Ours is what the export makes of it
with its training texts, as for everyone, and the peers' are made of the same checkpoint.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import fullsize
import numpy as np
import pyarrow.parquet as pq
from recipe import recipe

from retrue import artifact, dataset
from retrue.dataset import Example
from retrue.records import iso
from retrue.training import encoder, export, finetune
from retrue.training.settings import Settings

LABELS = ("negative", "positive")
REVIEWS, SENTENCES = 2_000, 1_700  # rows of each kind, of which some choose the epoch
HELD, TESTED = 150, 50
SETTINGS = Settings(epochs=2, max_tokens=256)


def models(data: Path) -> dict[str, Path]:
    """The folder that each way of serving loads, by its name; what is not there yet is made."""
    folder = fullsize.home() / f"taught-{recipe(Path(__file__))}"
    if not folder.is_dir():
        _make(data, folder)
    return {**fullsize.models(folder / "checkpoint"), "retrue": folder / "model"}


def _make(data: Path, folder: Path) -> None:
    start = encoder.resolve(SETTINGS.encoder_name, fullsize.home().parent / "encoders")
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
        made = Path(scratch, "taught")
        checkpoint, model = made / "checkpoint", made / "model"
        result = finetune.finetune(start, prepared, SETTINGS, checkpoint)
        for name in (fullsize.TOKENIZER, "tokenizer_config.json"):
            shutil.copyfile(start / name, checkpoint / name)
        export.export(checkpoint, prepared, result, model, created=iso(0))
        card = replace(artifact.read_card(model), max_tokens=fullsize.MOST, cut="head")  # as far as the peers read
        assert card.precision == "int8"
        (model / artifact.CARD).write_text(card.to_json())
        artifact.seal(model)
        made.rename(folder)


def rows(file: Path, count: int, kept: list[tuple[str, str, object]]) -> list[Example]:
    """So many rows of a file, at random."""
    table = pq.read_table(file, columns=["text", "label"], filters=kept)
    taken = table.take(np.random.default_rng(1).permutation(len(table))[:count]).to_pylist()
    return [Example(row["text"], LABELS[row["label"]]) for row in taken]
