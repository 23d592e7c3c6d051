"""Which layer shows drift: the share of drifted windows that is found, by layer, at the same true false-alarm rate.

Projections, residual and distances are those of the monitor, made of each layer's mean in turn, for windows of real
texts (pools.py). A threshold is the value that one in a hundred windows without drift exceeds. The table goes into
docs/benchmarks.md.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import page
import torch
from numpy.typing import NDArray
from pools import TRAINED, Pool, pools
from tqdm import tqdm
from windows import NEGATIVES, Kind, Split, cut

from retrue import drift
from retrue.training import graph

N, SHARES = 200, (0.1, 0.3)
ALPHA = 0.01


class Held(graph.Graph):
    """The arithmetic of the exported graph on means that were kept."""

    def __init__(self, pools: dict[str, Pool], layer: int) -> None:
        depth, width = pools[TRAINED].layers.shape[1] - 1, pools[TRAINED].layers.shape[2]
        super().__init__(SimpleNamespace(config=SimpleNamespace(num_hidden_layers=depth, hidden_size=width)))
        self.place = layer
        self.fit(self.means(pools[TRAINED]))

    def answer(self, means: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return means, means

    def means(self, pool: Pool) -> torch.Tensor:
        return torch.from_numpy(pool.layers[:, self.place].astype(np.float32))

    def columns(self, pool: Pool) -> NDArray[np.float32]:
        means = self.means(pool)
        captured = self(means, means)[1].numpy()
        return drift.columns(captured, pool.tokens, pool.pieces, pool.symbols, pool.scores)


def main() -> None:
    """Measure each layer and write the page."""
    asked = arguments()
    texts = pools()[1]
    splits = [cut(texts, seed) for seed in range(asked.splits)]
    depth = texts[TRAINED].layers.shape[1]
    found = {layer: found_by(Held(texts, layer), texts, splits, asked) for layer in tqdm(range(depth), disable=None)}
    text = report(found, asked)
    sys.stdout.write(text + "\n")
    page.put("layer", f"{text}\n\n{page.made_by()}", asked.page)


def found_by(
    held: Held, texts: dict[str, Pool], splits: list[Split], asked: argparse.Namespace
) -> dict[str, dict[Kind, float]]:
    """The share of windows of each kind that the embedding's distance finds, and that the whole test finds."""
    columns = np.vstack([held.columns(pool) for pool in texts.values()])
    values: dict[Kind, list[tuple[float, float]]] = {}
    for split in splits:
        reference = drift.register(columns[split.reference])
        for kind in split.kinds([N], SHARES):
            for window in split.windows(kind, asked.windows if kind.name else asked.nulls):
                told = drift.check(reference, columns[window])
                values.setdefault(kind, []).append((told.distances["embedding"], told.statistic))
    limits = np.quantile(values[Kind("", N, 0.0)], 1 - ALPHA, axis=0)
    shares = {kind: (np.array(each) > limits).mean(axis=0).tolist() for kind, each in values.items()}
    return {
        name: {kind: share[place] for kind, share in shares.items()}
        for place, name in enumerate(("embedding", "whole"))
    }


def report(found: dict[int, dict[str, dict[Kind, float]]], asked: argparse.Namespace) -> str:
    """The table: a row for what is looked at, a column a layer."""
    names = list(dict.fromkeys(kind.name for kind in found[0]["embedding"] if kind.name))

    def row(title: str, test: str, kinds: list[Kind]) -> list[str]:
        return [title, *(f"{np.mean([layer[test][kind] for kind in kinds]):.2f}" for layer in found.values())]

    shares = " or ".join(f"{share:.0%}" for share in SHARES)
    every = [Kind(name, N, share) for name in names if name != NEGATIVES for share in SHARES]
    rows = [
        row("all kinds of drifted texts, embedding alone", "embedding", every),
        row("the same, all groups", "whole", every),
        *(row(f"{name}, embedding alone", "embedding", [Kind(name, N, SHARES[0])]) for name in names[:-1]),
        row(f"{SHARES[1]:.0%} {NEGATIVES}, embedding alone", "embedding", [Kind(NEGATIVES, N, SHARES[1])]),
        row("the same, all groups", "whole", [Kind(NEGATIVES, N, SHARES[1])]),
    ]
    return "\n\n".join(
        [
            f"Share of the windows of {N} texts in which drift is found, where {ALPHA:.0%} of the windows without "
            f"drift alarm; first the mean over {len(every)} kinds of {shares}, "
            f"then {SHARES[0]:.0%} of each. {asked.splits} references, {asked.splits * asked.nulls:,} windows without "
            f"drift and {asked.splits * asked.windows} of each kind.",
            page.table(["layer", *map(str, found)], rows),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--splits", type=int, default=4, help="cuts of the home rows")
    parser.add_argument("--nulls", type=int, default=250, help="windows without drift, a cut")
    parser.add_argument("--windows", type=int, default=20, help="windows of each kind with drift, a cut")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the table goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
