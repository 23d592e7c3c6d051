"""How fast and how well a GPU trains: seconds, tokens of real text per second, model FLOPs utilisation, accuracy.

gpu.sh starts it: once to prepare rows and encoders in a folder, then once for each training, through torchrun where
several GPUs take part. Each training prints one line of JSON. Model FLOPs utilisation (Chowdhery et al. 2022, appendix
B) is what the model's own arithmetic needs for the tokens of real text, over the most that the cards could do: padding,
optimiser and waiting all count against it.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from train import LABELS, predict, reviews

from retrue import dataset, metrics
from retrue.training import encoder, finetune
from retrue.training.settings import Settings

# Dense bf16 operations per second of one card, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12}
SHAPED = "distilbert-shape"


def main() -> None:
    """Prepare, or train once and say how it went."""
    asked = arguments()
    if asked.prepare:
        prepare(asked)
        return
    settings = Settings(
        epochs=asked.epochs, max_tokens=asked.max_tokens, batch_size=asked.batch_size, batch_tokens=asked.batch_tokens,
        learning_rate=asked.learning_rate, compile=asked.compile, patience=asked.epochs,
    )  # fmt: skip
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    start, folder = asked.work / asked.encoder, asked.work / "imdb"
    out = asked.work / f"{asked.encoder}-{processes}-{asked.compile}"
    result = finetune.finetune(start, folder, settings, out, cache=asked.work / "tokens")
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(told(result, start, folder, out, asked, processes)) + "\n")


def told(
    result: finetune.Result, start: Path, folder: Path, out: Path, asked: argparse.Namespace, processes: int
) -> dict[str, Any]:
    """What a training did, as plain values."""
    test = dataset.read(folder, "test")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predicted = predict(out, start, [row.text for row in test], asked.max_tokens, device, str(result.settings["cut"]))
    found = metrics.quality([row.label for row in test], predicted, LABELS)
    rate = result.tokens_per_second * flops(start, folder, asked.max_tokens)
    peak = next((value for name, value in PEAKS.items() if name in result.device), None)
    return {
        "device": result.device, "encoder": result.encoder, "bf16": result.bf16, "compile": asked.compile,
        "rows": result.rows, "epochs": asked.epochs, "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second), "padding": result.padding,
        "peak_memory_mb": result.peak_memory_mb, "tflops": round(rate / 1e12, 3),
        "mfu": round(rate / (peak * processes), 4) if peak else None,
        "accuracy": round(found.accuracy, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n,
    }  # fmt: skip


def flops(start: Path, folder: Path, most: int) -> float:
    """Operations that a token's forward and backward pass need on average.

    Six for each weight of the layers, and 12 l d n for attention, where n is the length of the token's own text.
    """
    config = transformers.AutoConfig.from_pretrained(start)
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "hidden_dim", None) or config.intermediate_size
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    texts = [row.text for row in dataset.read(folder, "train")]
    lengths = np.minimum([len(item.ids) for item in tokenizer.encode_batch_fast(texts)], most)
    own = float((lengths**2).sum() / lengths.sum())
    return float(6 * layers * (4 * width**2 + 2 * width * inner) + 12 * layers * width * own)


def prepare(asked: argparse.Namespace) -> None:
    """Rows of IMDB, the encoder, and one of DistilBERT's shape with random weights, all in the working folder."""
    asked.work.mkdir(parents=True, exist_ok=True)
    reviews(asked.data, asked.work, asked).rename(asked.work / "imdb")
    home = Path(os.environ.get("RETRUE_HOME", Path(__file__).resolve().parents[1] / ".retrue"))
    found = encoder.resolve(asked.encoder, home / "encoders")
    shutil.copytree(found, asked.work / Path(asked.encoder).name)
    shaped = asked.work / SHAPED
    shutil.copytree(found, shaped)
    words = transformers.AutoConfig.from_pretrained(found).vocab_size
    encoder.save(transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=words)), shaped)
    facts = {"name": SHAPED, "sha256": "random", "notice": "Random weights, to measure speed."}
    (shaped / encoder.FACTS).write_text(json.dumps(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="folder for rows, encoders and checkpoints")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--data", type=Path, help="folder with imdb_train.parquet and imdb_test.parquet")
    parser.add_argument("--encoder", default=encoder.DEFAULT)
    parser.add_argument("--rows", type=int, default=24_900)
    parser.add_argument("--test-rows", type=int, default=23_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
