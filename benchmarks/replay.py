"""What a retraining forgets: accuracy on old and on new rows, by the share of base rows that each epoch replays.

Old rows are IMDB reviews, new ones Amazon kitchen reviews and airline tweets, as many of each, all from the folder that
RETRUE_DATA names. As in a retraining, each training starts from the base encoder and keeps the epoch that is best on
old validation rows. The table goes into docs/benchmarks.md.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import page
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from retrue import dataset, metrics, replay
from retrue.dataset import Example
from retrue.training import encoder, finetune
from retrue.training.settings import Settings

LABELS = ("negative", "positive")
NEVER = "never retrained"
SHARES = {NEVER: -1.0, "0 %": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "as they come": -1.0}
VALIDATION = 0.1  # of the old rows, beside them
BATCH = 64


def main() -> None:
    """Train, score, and write the page."""
    asked = arguments()
    home = Path(os.environ.get("RETRUE_HOME", Path(__file__).resolve().parents[1] / ".retrue"))
    start = encoder.resolve(asked.encoder, home / "encoders")
    old, new, validation, tests = reviews(Path(os.environ["RETRUE_DATA"]), asked)
    judged = [row for rows in tests.values() for row in rows]
    truth = np.array([LABELS.index(row.label) for row in judged])
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in SHARES}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = {
            kind: dataset.write(
                root, {"train": train, "validation": validation, "test": judged}, name=kind, source="benchmark"
            )
            for kind, train in (("old", old), ("mixed", new + old))
        }
        for seed in tqdm(range(asked.seeds), unit="seed", disable=None):
            for name, share in SHARES.items():
                settings = Settings(
                    epochs=asked.epochs, max_tokens=asked.max_tokens, seed=seed, replay_share=share, cut="head"
                )
                out = root / "checkpoint"
                finetune.finetune(start, folders["old" if name == NEVER else "mixed"], settings, out)
                right[name].append(predict(out, [row.text for row in judged], asked.max_tokens) == truth)
                tqdm.write(f"seed {seed}, {name}: {right[name][-1].mean():.1%} of all test rows are right")
        counts = dataset.read_manifest(folders["mixed"]).counts
        train = dataset.read(folders["mixed"], "train")
    recent = sum(row.source == "feedback" for row in train)
    page.put("replay", report(asked, right, tests, (len(train) - recent, recent), counts["validation"]), page.PAGE)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old-rows", type=int, default=2_000)
    parser.add_argument("--new-rows", type=int, default=700)
    parser.add_argument("--test-rows", type=int, default=1_000, help="of old rows, and as many new ones")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--encoder", default=encoder.DEFAULT)
    return parser.parse_args()


def reviews(
    data: Path, asked: argparse.Namespace
) -> tuple[list[Example], list[Example], list[Example], dict[str, list[Example]]]:
    """Old and new training rows, validation rows, and test rows by kind; as many of each label, always the same."""
    films = pool(data / "imdb_train.parquet", suggested_split="train", dup_in_test=False)
    kitchen = pool(data / "drift/amazon_multidomain.parquet", "feedback", domain="kitchen")
    tweets = pool(data / "drift/airline_tweets.parquet", "feedback")
    half = asked.test_rows // 2
    tests = {
        "films": take(pool(data / "imdb_test.parquet"), asked.test_rows),
        "kitchen": take(kitchen, half),
        "tweets": take(tweets, half),
    }
    new = take(kitchen, asked.new_rows // 2) + take(tweets, asked.new_rows // 2)
    held = pool(data / "imdb_train.parquet", suggested_split="val", dup_in_test=False)
    return take(films, asked.old_rows), new, take(held, max(20, round(VALIDATION * asked.old_rows))), tests


def pool(path: Path, source: str = "base", **wanted: Any) -> list[Example]:
    """The rows of a file that have the wanted values, settled, in an order that is random and always the same."""
    table = pq.read_table(path, filters=[(column, "=", value) for column, value in wanted.items()] or None)
    rows = [
        Example(row["text"], LABELS[row["label"]], row.get("title_id"), source, str(row["id"]))
        for row in table.to_pylist()
    ]
    settled = list(dataset.settle(rows)[0].values())
    return [settled[i] for i in np.random.default_rng(0).permutation(len(settled))]


def take(rows: list[Example], count: int) -> list[Example]:
    """The first rows of each label, which leave the list; fewer where there are not enough."""
    taken = [row for label in LABELS for row in [row for row in rows if row.label == label][: count // 2]]
    gone = {row.id for row in taken}
    rows[:] = [row for row in rows if row.id not in gone]
    return taken


def predict(checkpoint: Path, texts: Sequence[str], max_tokens: int) -> NDArray[np.int64]:
    """The label's number for each text, by the model that the training left, in fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).to(device).eval()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=model.config.pad_token_id)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.zeros(len(texts), dtype=np.int64)
    with torch.inference_mode():
        for i in range(0, len(order), BATCH):
            numbers = order[i : i + BATCH]
            encoded = tokenizer.encode_batch([texts[n] for n in numbers])
            ids, mask = (
                torch.tensor([getattr(e, part) for e in encoded], device=device) for part in ("ids", "attention_mask")
            )
            found[numbers] = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).cpu().numpy()
    return found


def report(
    asked: argparse.Namespace,
    right: dict[str, list[NDArray[np.bool_]]],
    tests: dict[str, list[Example]],
    rows: tuple[int, int],
    validation: dict[str, int],
) -> str:
    """The table, what it was made of, and what made it."""
    kinds = np.repeat(list(tests), [len(part) for part in tests.values()])
    columns = {
        "old: films": ["films"],
        "new: kitchen": ["kitchen"],
        "new: tweets": ["tweets"],
        "new: both": ["kitchen", "tweets"],
    }
    lines, spread = [], 0.0
    for name, seeds in right.items():
        cells = [name, "no new rows"]
        if name != NEVER:
            old, new = replay.draws(*rows, SHARES[name])
            cells[1] = f"{100 * old / (old + new):.0f} %"
        for wanted in columns.values():
            hits = [int(one[np.isin(kinds, wanted)].sum()) for one in seeds]
            n = int(np.isin(kinds, wanted).sum())
            low, high = metrics.interval(round(sum(hits) / len(hits)), n)
            cells.append(f"{100 * sum(hits) / len(hits) / n:.1f} ({100 * low:.1f} to {100 * high:.1f})")
            spread = max(spread, (max(hits) - min(hits)) / n)
        lines.append(cells)
    sizes = ", ".join(f"{len(part):,} {kind}" for kind, part in tests.items())
    return "\n\n".join(
        [
            page.table(["replay share", "base rows in an epoch", *columns], lines),
            f"Accuracy in %, mean of {asked.seeds} seeds, with the exact 95 % interval for one model on so many rows. "
            f"Between the seeds a cell differs by at most {100 * spread:.1f} points. {rows[0]:,} old and {rows[1]:,} "
            f"new rows to train on, {sum(validation.values()):,} old ones to choose the epoch by; tested on {sizes}, "
            "half of each label everywhere.",
            page.made_by(),
        ]
    )


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
