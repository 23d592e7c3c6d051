"""What to read of a long text: its head, or a quarter from the head and the rest from the tail.

Both are trained and tested on the same IMDB reviews from the folder that RETRUE_DATA names. The table goes into
docs/benchmarks.md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import page
from tqdm import tqdm
from train import LABELS, predict, reviews

from retrue import dataset, metrics
from retrue.training import encoder, finetune
from retrue.training.settings import CUTS, Settings


def main() -> None:
    """Train each way, score, and write the page."""
    asked = arguments()
    home = Path(os.environ.get("RETRUE_HOME", Path(__file__).resolve().parents[1] / ".retrue"))
    start = encoder.resolve(asked.encoder, home / "encoders")
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=2 * len(asked.max_tokens), disable=None) as bar:
        root = Path(scratch)
        folder = reviews(Path(os.environ["RETRUE_DATA"]), root, asked)
        test = dataset.read(folder, "test")
        truth = [row.label for row in test]
        for most in asked.max_tokens:
            right = {}
            for kept in CUTS:
                settings = Settings(epochs=asked.epochs, max_tokens=most, cut=kept, patience=asked.epochs)
                finetune.finetune(start, folder, settings, root / "out", cache=root / "tokens")
                predicted = predict(root / "out", start, [row.text for row in test], most, kept=kept)
                right[kept] = np.array([a == b for a, b in zip(predicted, truth, strict=True)])
                quality = metrics.quality(truth, predicted, LABELS)
                told = f"{quality.accuracy:.1%} ({quality.low:.1%} to {quality.high:.1%})"
                rows.append([str(most), kept, told, f"{quality.f1_macro:.3f}", ""])
                tqdm.write(" ".join(rows[-1]))
                bar.update()
            head, ends = (right[kept] for kept in CUTS)
            gained, lost = int((ends & ~head).sum()), int((head & ~ends).sum())
            low, high = metrics.difference(gained, lost, len(truth))
            rows[-1][-1] = f"{(gained - lost) / len(truth):+.1%} ({low:+.1%} to {high:+.1%})"
    heading = ["tokens", "kept", "accuracy", "macro F1", "ends less head"]
    text = (
        f"{asked.rows:,} reviews, {asked.epochs} epochs, one seed, {asked.encoder}; {len(truth):,} test rows, with "
        f"95 % intervals.\n\n{page.table(heading, rows)}\n\n{page.made_by()}"
    )
    sys.stdout.write(text + "\n")
    page.put("cut", text, asked.page)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000, help="reviews to train on")
    parser.add_argument("--test-rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--encoder", default=encoder.DEFAULT)
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the table goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
