"""Training beside a plain transformers.Trainer: accuracy, and tokens of real text per second.

Both train on the same IMDB rows from the folder that RETRUE_DATA names, from the same encoder, for as many epochs with
the same batch size and learning rate, one after the other in each round. Each runs in a process of its own. The table
goes into docs/benchmarks.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import page
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm

from retrue import dataset, metrics
from retrue.dataset import Example
from retrue.training import batches, encoder, finetune, tokens

HERE = Path(__file__).resolve().parent
LABELS = ("negative", "positive")
OURS, PEER = "retrue", "transformers.Trainer"
VALIDATION = 100
CPU = torch.device("cpu")
HEAD = "head"  # of a long text, as tokenizers cut by themselves


def main() -> None:
    """Train in rounds, score, and write the page."""
    asked = arguments()
    if asked.one:
        one(*map(Path, asked.one[:3]), json.loads(asked.one[3]))
        return
    home = Path(os.environ.get("RETRUE_HOME", HERE.parent / ".retrue"))
    start = encoder.resolve(asked.encoder, home / "encoders")
    found: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = reviews(Path(os.environ["RETRUE_DATA"]), root, asked)
        test = dataset.read(folder, "test")
        truth = [row.label for row in test]
        total, padding = counted(folder, start, asked)
        for number in tqdm(range(asked.rounds), unit="round", disable=None):
            for name in (OURS, PEER) if number % 2 == 0 else (PEER, OURS):
                out = root / f"{number}-{name}"
                run = trained(name, start, folder, out, asked, seed=number)
                predicted = predict(out, start, [row.text for row in test], asked.max_tokens)
                run["quality"] = metrics.quality(truth, predicted, LABELS)
                found[name].append({"padding": padding, **run})
                speed = total / run["cpu"]
                tqdm.write(f"round {number + 1}, {name}: {run['quality'].accuracy:.1%}, {speed:.0f} tokens/CPU second")
    text = report(found, asked, total)
    sys.stdout.write(text + "\n")
    page.put("train", f"{page.made_by()}\n\n{text}", asked.page)


def trained(name: str, start: Path, folder: Path, out: Path, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train in a process of its own; its seconds and CPU seconds."""
    rows = sum(dataset.read_manifest(folder).counts["train"].values())
    settings = {
        "epochs": asked.epochs, "max_tokens": asked.max_tokens, "batch_size": asked.batch_size,
        "learning_rate": asked.learning_rate, "weight_decay": 0.01, "seed": seed,
    }  # fmt: skip
    words = [str(start), str(folder), str(out)]
    if name == OURS:
        command = [sys.executable, __file__, "--one", *words, json.dumps(settings)]
    else:
        steps = -(-rows // asked.batch_size) * asked.epochs
        python = HERE.parent / ".venv-bench/bin/python"
        command = [str(python), str(HERE / "peers/trainer.py"), *words, json.dumps({**settings, "warmup": steps // 10})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def one(start: Path, folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """One training of ours, for the process that asked for it."""
    # Trainer reads the head of a text, keeps the last epoch and never stops early; so do we here.
    chosen = finetune.Settings(**settings, cut=HEAD, patience=settings["epochs"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    result = finetune.finetune(start, folder, chosen, out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    answer = {"seconds": time.monotonic() - began, "cpu": cpu, "padding": result.padding}
    sys.stdout.write(json.dumps(answer) + "\n")


def predict(
    checkpoint: Path, start: Path, texts: list[str], most: int, device: torch.device = CPU, kept: str = HEAD
) -> list[str]:
    """The label of each text, from either's checkpoint by the same code."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
        held = tokens.write(Path(scratch, "held"), tokenizer, texts, most, kept)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval().to(device)
        answers = np.zeros(len(texts), dtype=np.int64)
        with torch.inference_mode():
            for rows in batches.passes(np.arange(len(texts)), held.lengths, 2_048 if device.type == "cpu" else 65_536):
                ids, mask = batches.padded(held, rows, model.config.pad_token_id, device)
                answers[rows] = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).cpu().numpy()
    return [LABELS[column] for column in answers]


def reviews(data: Path, root: Path, asked: argparse.Namespace) -> Path:
    """IMDB rows as a prepared dataset: train from its train split, test from its test split."""

    def sample(file: str, count: int) -> list[Example]:
        table = pq.read_table(data / file, columns=["text", "label"])
        chosen = np.random.default_rng(0).permutation(len(table))[:count]
        return [Example(row["text"], LABELS[row["label"]]) for row in table.take(chosen).to_pylist()]

    # Few rows to validate on, since the peer validates on none.
    train = sample("imdb_train.parquet", asked.rows + VALIDATION)
    splits = {"validation": train[:VALIDATION], "train": train[VALIDATION:]}
    splits["test"] = sample("imdb_test.parquet", asked.test_rows)
    return dataset.write(root / "data", splits, name="imdb", source="benchmark")


def report(found: dict[str, list[dict[str, Any]]], asked: argparse.Namespace, counted: int) -> str:
    """The table of medians and the ratio in each round."""
    rows = []
    for name, runs in found.items():
        qualities = [run["quality"] for run in runs]
        rows.append(
            [
                name,
                " / ".join(f"{q.accuracy:.1%}" for q in qualities),
                " / ".join(f"{q.f1_macro:.3f}" for q in qualities),
                f"{statistics.median(counted / run['cpu'] for run in runs):.0f}",
                f"{statistics.median(counted / run['seconds'] for run in runs):.0f}",
                f"{statistics.median(run['padding'] for run in runs):.1%}",
            ]
        )
    head = ["", "accuracy by round", "macro F1", "tokens per CPU second", "tokens per second", "padding"]
    ratios = [peer["cpu"] / own["cpu"] for own, peer in zip(found[OURS], found[PEER], strict=True)]
    pairs = zip(found[OURS], found[PEER], strict=True)
    gain = statistics.mean(own["quality"].accuracy - peer["quality"].accuracy for own, peer in pairs)
    n = found[OURS][0]["quality"].n
    return (
        f"{asked.rows:,} reviews, {asked.epochs} epochs, at most {asked.max_tokens} tokens, batches of "
        f"{asked.batch_size}, {asked.encoder}; {n:,} test rows. Tokens are those of the texts, without padding.\n\n"
        f"{page.table(head, rows)}\n\n"
        f"In the same CPU time ours reads {statistics.median(ratios):.2f} times as many tokens of real text (median; "
        f"by round {', '.join(f'{ratio:.2f}' for ratio in ratios)}); its accuracy is {gain:+.2%} on average."
    )


def counted(folder: Path, start: Path, asked: argparse.Namespace) -> tuple[int, float]:
    """The real tokens of all epochs, and the share of padding in batches of rows in random order."""
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    encoded = tokenizer.encode_batch_fast([row.text for row in dataset.read(folder, "train")])
    lengths = np.minimum([len(item.ids) for item in encoded], asked.max_tokens)
    order = np.random.default_rng(0).permutation(len(lengths))
    groups = [lengths[order[i : i + asked.batch_size]] for i in range(0, len(order), asked.batch_size)]
    fed = sum(len(group) * int(group.max()) for group in groups)
    return int(lengths.sum()) * asked.epochs, 1 - float(lengths.sum()) / fed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000, help="reviews to train on")
    parser.add_argument("--test-rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--encoder", default=encoder.DEFAULT)
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the table goes")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
