"""What a model folder holds: the one owner of its file names, its card, and the checks that it is whole.

model.onnx       the graph: input_ids (int64, batch × length, texts of one length without padding) →
                 logits (float32, batch × classes), projection (float32, batch × CAPTURED)
weights.bin      its weights, a file of their own so that they are mapped into memory and not copied
tokenizer.json   no truncation and no padding baked in
reference.npz    the drift reference, made by this very graph (retrue.drift.Reference)
golden.json      texts and the scores that a healthy copy answers: [{"text", "scores"}]
card.json        Card: what it is, how it was made, what it scored
manifest.json    {"files": {name: sha256}}; the model's id is the first 12 digits of this file's own sha256

For people, and not needed to serve:

card.md          the card as a page, with curves.svg, confusion.svg, reliability.svg and slices.svg
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrue.errors import ModelRefused
from retrue.records import Record

MODEL, WEIGHTS, TOKENIZER, REFERENCE = "model.onnx", "weights.bin", "tokenizer.json", "reference.npz"
GOLDEN, CARD, MANIFEST = "golden.json", "card.json", "manifest.json"
SIGNATURE = "manifest.sig"  # beside the folder's files in the lake, where the deployment has a key
TRIAL = "trial.json"  # what a training that paused leaves in place of a model folder
FILES = (MODEL, WEIGHTS, TOKENIZER, REFERENCE, GOLDEN, CARD)
SERVED = (*FILES, MANIFEST)  # what a function fetches before it can answer
PAGE = "card.md"
CURVES, CONFUSION, RELIABILITY, SLICES = "curves.svg", "confusion.svg", "reliability.svg", "slices.svg"
REPORT = (PAGE, CURVES, CONFUSION, RELIABILITY, SLICES)
PROJECTIONS = 64  # of the middle layer
CAPTURED = PROJECTIONS + 1  # and the norm of what the layer has outside the training texts' main directions
NONE = "none"  # what the pointer to the serving model says before there is one


@dataclass(frozen=True, slots=True)
class Card(Record):
    """The model card: what GET /v1/model answers. `labels` is in the order of the logits."""

    labels: list[str]
    created: str
    encoder: str
    precision: str  # "int8" or "fp32"
    max_tokens: int
    temperature: float
    dataset: str
    metrics: dict[str, Any]
    settings: dict[str, Any]
    run: dict[str, Any]  # seconds, device, packages, seed
    cut: str = "head"  # what is read of a text longer than max_tokens (retrue.classifier.cut)
    layer: int = 0  # the hidden layer whose mean the projection is taken from
    notice: str = ""  # licence and origin of the weights
    data: dict[str, Any] = field(default_factory=dict)  # name, source, counts, dropped, synthetic, notice


def seal(folder: Path) -> str:
    """Write the manifest of a folder that holds every one of FILES, and return the model's id."""
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        raise ModelRefused(f"the model folder lacks {', '.join(lacking)}: train again")
    files = {name: sha256(folder / name) for name in (*FILES, *REPORT) if (folder / name).is_file()}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True))
    return identity(folder)


def identity(folder: Path) -> str:
    """The id of the model in a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelRefused(f"{folder.name} holds no {MANIFEST}, so it is not a model folder")
    return sha256(path)[:12]


def verify(folder: Path) -> str:
    """Check every file against the manifest and return the model's id; ModelRefused names what is missing or altered.

    Files for people need not be there, but those that are must be the ones that were sealed.
    """
    found = identity(folder)
    files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    present = {name for name in (*files, *FILES, *REPORT) if (folder / name).is_file()}
    wrong = {name for name in present if sha256(folder / name) != files.get(name)} | (set(FILES) - present)
    if wrong:
        raise ModelRefused(f"model {found} is not whole ({', '.join(sorted(wrong))}): promote another one")
    return found


def bound(files: Mapping[str, str], max_tokens: int, cut: str) -> str:
    """All that decides what a text's columns are: the sha256 of graph, weights and tokenizer, and how much is read."""
    made_of = ", ".join(f"{name} {files.get(name, NONE)}" for name in (MODEL, WEIGHTS, TOKENIZER))
    return f"{made_of}, {max_tokens} tokens, cut {cut}"


def size(folder: Path) -> int:
    """The bytes of a model, graph and weights together."""
    return sum((folder / name).stat().st_size for name in (MODEL, WEIGHTS))


def read_card(folder: Path) -> Card:
    return Card.from_json((folder / CARD).read_text())


def sha256(path: Path) -> str:
    """The hexadecimal hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
