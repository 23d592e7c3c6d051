"""A model folder of DistilBERT's full size, and what each peer makes of the same checkpoint.

Nobody trained it, which changes no speed: its weights are random with a fixed seed, its vocabulary that of the default
encoder. All is kept under RETRUE_HOME/bench-serve, by what it was made from.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from recipe import recipe
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from retrue import artifact, corpus, drift, metrics
from retrue.artifact import TOKENIZER
from retrue.classifier import Classifier
from retrue.training import encoder, export
from retrue.training.learner import quiet

HERE = Path(__file__).resolve().parent
ROWS = 60  # synthetic texts in the drift reference, which no benchmark of speed reads
MOST = 512  # tokens of a text


def home() -> Path:
    root = Path(os.environ.get("RETRUE_HOME", HERE.parent / ".retrue"))
    (root / "bench-serve").mkdir(parents=True, exist_ok=True)
    return root / "bench-serve"


def checkpoint() -> Path:
    """A classifier as transformers saves it: 6 layers, 768 wide, 12 heads, 30,522 tokens, 2 labels."""
    folder = home() / "checkpoint"
    if not folder.is_dir():
        start = encoder.resolve(encoder.DEFAULT, home().parent / "encoders")
        torch.manual_seed(0)
        config = DistilBertConfig(id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1})
        with tempfile.TemporaryDirectory(dir=home()) as scratch:
            made = Path(scratch, "checkpoint")
            encoder.save(DistilBertForSequenceClassification(config), made)
            for file in (TOKENIZER, "tokenizer_config.json"):
                shutil.copyfile(start / file, made / file)
            made.rename(folder)
    return folder


def models(source: Path) -> dict[str, Path]:
    """The folder that each way of serving loads, by its name; what is not there yet is made of a checkpoint."""
    weights = artifact.sha256(source / "model.safetensors")[:12]
    kept = home() / weights
    kept.mkdir(exist_ok=True)
    peers = kept / "peers"
    if not peers.is_dir():
        with tempfile.TemporaryDirectory(dir=kept) as scratch:
            made = Path(scratch, "peers")
            _make("optimum", source, made / "optimum")
            # nncf reads what optimum exported.
            shutil.copyfile(source / TOKENIZER, made / "optimum/fp32" / TOKENIZER)
            _make("openvino", made / "optimum/fp32", made / "openvino")
            _make("ctranslate2", source, made / "ctranslate2")
            made.rename(peers)
    return {
        "retrue": ours(source, kept),
        "transformers": source,
        "optimum": peers / "optimum/fp32",
        "onnxruntime": peers / "optimum/int8",
        "openvino": peers / "openvino",
        "ctranslate2": peers / "ctranslate2",
    }


def ours(source: Path, kept: Path) -> Path:
    """A sealed model folder by the project's own export; another one for other code that makes it."""
    folder = kept / f"retrue-{recipe(Path(__file__))}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        start = encoder.resolve(str(source), Path(scratch, "encoders"))
        made = Path(scratch, "model")
        with quiet():
            export.reader(start, made)
        card = replace(artifact.read_card(made), max_tokens=MOST)
        (made / artifact.CARD).write_text(card.to_json())
        texts = [row.text for row in corpus.generate(seed=0, rows=ROWS, domain="films")]
        classifier = Classifier(made)
        said = [classifier.score(text) for text in texts]
        columns = drift.columns(
            *([getattr(one, name) for one in said] for name in ("projection", "tokens", "pieces", "symbols")),
            metrics.softmax([one.logits for one in said]),
        )
        (made / artifact.REFERENCE).write_bytes(drift.register(columns).to_bytes())
        golden = [{"text": text, "scores": one.scores} for text, one in zip(texts[:4], said, strict=False)]
        (made / artifact.GOLDEN).write_text(json.dumps(golden))
        artifact.seal(made)
        made.rename(folder)
    return folder


def _make(name: str, source: Path, folder: Path) -> None:
    """Let a peer make its own file, in the environment in which it is made."""
    python = HERE.parent / f".venv-bench-{name}/bin/python"
    command = [str(python), str(HERE / f"peers/{name}_serving.py"), "make", str(source), str(folder)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-8:]
        sys.exit("\n".join([f"{name} could not make its model:", *lines]))
