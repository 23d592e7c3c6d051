"""Real texts as a served model sees them: what the benchmarks of drift draw their windows from.

A classifier is trained on film reviews and exported, then every pool of texts is read once by its int8 graph, one text
at a time as in production. Model and pools are kept under RETRUE_HOME/bench-drift; pools by the model's id. Home are
IMDB reviews, in whole films; the other pools are what they may drift to.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
from numpy.typing import NDArray
from recipe import recipe
from tqdm import tqdm

from retrue import artifact, dataset, drift
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.training import encoder, export, finetune
from retrue.training.settings import Settings

LABELS = ("negative", "positive")
HOME, FILMS, TRAINED = "home", "films", "trained"
HOME_ROWS, FILM_ROWS, DRIFTED = 10_000, 3_000, 600
TRAIN, HELD = 1_500, 300  # rows to train on; to choose the epoch and the temperature by, and as many to test
CREATED = "2026-11-25T00:00:00.000Z"  # of the card: the same for every run, so that the model's id is too
TYPOS = 0.2  # share of the words
WORDS = 60  # of a truncated text

Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Pool:
    """The texts of one kind, as the graph answered them; `layers` are mean-pooled hidden states, lowest first.

    Of the last layer it is [CLS], which is all that the graph computes of it.
    """

    projection: NDArray[np.float32]  # (n, CAPTURED)
    tokens: NDArray[np.int64]  # (n,)
    pieces: NDArray[np.float64]
    symbols: NDArray[np.float64]
    scores: NDArray[np.float64]  # (n, 2)
    layers: NDArray[np.float16]  # (n, depth + 1, width)
    labels: NDArray[np.int64]
    films: NDArray[np.str_]

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as archive:
            return cls(**archive)

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    def columns(self) -> NDArray[np.float32]:
        """What the monitor makes of them."""
        return drift.columns(self.projection, self.tokens, self.pieces, self.symbols, self.scores)


def home() -> Path:
    root = Path(os.environ.get("RETRUE_HOME", Path(__file__).resolve().parents[1] / ".retrue")) / "bench-drift"
    root.mkdir(parents=True, exist_ok=True)
    return root


def pools() -> tuple[Path, dict[str, Pool]]:
    """The model folder, and every pool by its name; what is not there yet is made."""
    data = Path(os.environ["RETRUE_DATA"])
    folder = model(data)
    kept = home() / artifact.identity(folder)
    kept.mkdir(exist_ok=True)
    files = {name: kept / f"{name}.npz" for name in texts(data)}
    if not all(file.is_file() for file in files.values()):
        reader = Reader(folder)
        for name, rows in texts(data).items():
            if not files[name].is_file():
                reader.read(rows, name).save(files[name])
    return folder, {name: Pool.load(file) for name, file in files.items()}


def model(data: Path) -> Path:
    """A sealed model folder, trained on film reviews; another one for other code that makes it."""
    folder = home() / f"model-{recipe(Path(__file__))}"
    if folder.is_dir():
        return folder
    start = encoder.resolve(encoder_name := Settings().encoder_name, home().parent / "encoders")
    with tempfile.TemporaryDirectory(dir=home()) as scratch:
        root = Path(scratch)
        rows = [Example(row["text"], LABELS[row["label"]]) for row in films(data)[1]]
        splits = {
            "validation": rows[:HELD],
            "test": rows[HELD : 2 * HELD],
            "train": rows[2 * HELD : 2 * HELD + TRAIN],
        }
        prepared = dataset.write(root / "data", splits, name="imdb", source="benchmark")
        settings = Settings(encoder_name=encoder_name, epochs=2, max_tokens=128)
        result = finetune.finetune(start, prepared, settings, root / "checkpoint")
        out = export.export(root / "checkpoint", prepared, result, root / "model", created=CREATED)
        shutil.move(out, folder)
    return folder


def films(data: Path) -> tuple[Rows, Rows]:
    """Rows of IMDB's training split: whole films that no training reads, and rows of other films in random order."""
    rows = pq.read_table(data / "imdb_train.parquet", filters=[("dup_in_test", "=", False)]).to_pylist()
    kept = whole(rows, FILM_ROWS, seed=1)
    titles = {row["title_id"] for row in kept}
    others = [row for row in rows if row["title_id"] not in titles]
    return kept, [others[i] for i in np.random.default_rng(0).permutation(len(others))]


def whole(rows: Rows, count: int, seed: int) -> Rows:
    """All rows of so many films, in random order, that there are about `count` of them."""
    titles = np.array([row["title_id"] for row in rows])
    order = np.random.default_rng(seed).permutation(np.unique(titles))
    by_title: dict[str, list[int]] = {}
    for i, title in enumerate(titles.tolist()):
        by_title.setdefault(title, []).append(i)
    taken: list[int] = []
    for title in order.tolist():
        if len(taken) >= count:
            break
        taken += by_title[title]
    return [rows[i] for i in taken]


def texts(data: Path) -> dict[str, Rows]:
    """The rows of every pool, always the same."""

    def some(file: str, **wanted: Any) -> Rows:
        rows = pq.read_table(data / f"drift/{file}.parquet", filters=[(k, "=", v) for k, v in wanted.items()] or None)
        found = rows.to_pylist()
        return [found[i] for i in np.random.default_rng(2).permutation(len(found))[:DRIFTED]]

    held, trained = films(data)
    tested = pq.read_table(data / "imdb_test.parquet").to_pylist()
    at_home = whole(tested, HOME_ROWS, seed=0)
    titles = {row["title_id"] for row in at_home}
    others = [row for row in tested if row["title_id"] not in titles]
    random = np.random.default_rng(3)
    others = [others[i] for i in random.permutation(len(others))[:DRIFTED]]
    return {
        HOME: at_home,
        FILMS: held,
        TRAINED: trained[2 * HELD : 2 * HELD + TRAIN],
        "airline tweets": some("airline_tweets"),
        "Yelp": some("yelp"),
        "Amazon electronics": some("amazon_multidomain", domain="electronics"),
        "Amazon kitchen": some("amazon_multidomain", domain="kitchen"),
        "Amazon books": some("amazon_multidomain", domain="books"),
        "Amazon dvd": some("amazon_multidomain", domain="dvd"),
        "French, German": some("books_de_fr"),
        "typing errors": [row | {"text": mistyped(row["text"], random)} for row in others],
        f"first {WORDS} words": [row | {"text": " ".join(row["text"].split()[:WORDS])} for row in others],
    }


class Reader:
    """The served classifier, whose session is made to tell the hidden states of every layer beside."""

    def __init__(self, folder: Path) -> None:
        self.classifier = Classifier(folder)
        model = onnx.load(folder / artifact.MODEL)
        norms = [node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"]
        self.names = norms[::2]  # one ends the embeddings, and of each layer's two the second ends the layer
        for name in self.names:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            self.classifier._session.get_session_options(),
            providers=["CPUExecutionProvider"],
        )
        self.classifier._session = self

    def run(self, outputs: list[str], feed: dict[str, Any]) -> list[NDArray[np.float32]]:
        """What the classifier asks its session for; the mean of each layer is kept."""
        answers: list[NDArray[np.float32]] = self.session.run([*outputs, *self.names], feed)
        self.means = np.stack([hidden[0].mean(axis=0) for hidden in answers[len(outputs) :]])
        return answers[: len(outputs)]

    def read(self, rows: Rows, name: str) -> Pool:
        answers, layers = [], []
        for row in tqdm(rows, desc=name, disable=None):
            answers.append(self.classifier.score(row["text"]))
            layers.append(self.means.astype(np.float16))
        return Pool(
            projection=np.stack([answer.projection for answer in answers]),
            tokens=np.array([answer.tokens for answer in answers]),
            pieces=np.array([answer.pieces for answer in answers]),
            symbols=np.array([answer.symbols for answer in answers]),
            scores=np.array([[answer.scores[label] for label in LABELS] for answer in answers]),
            layers=np.stack(layers),
            labels=np.array([row["label"] for row in rows]),
            films=np.array([row.get("title_id") or "" for row in rows]),
        )


def mistyped(text: str, random: np.random.Generator) -> str:
    """In a share of the words two neighbouring letters are swapped, or one is left out or doubled."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 2 and random.random() < TYPOS:
            at = int(random.integers(len(word) - 1))
            words[i] = (
                word[:at]
                + (word[at + 1] + word[at], word[at + 1], word[at] * 2 + word[at + 1])[int(random.integers(3))]
                + word[at + 2 :]
            )
    return " ".join(words)
