"""What the tests of the export share: one more model, so that the costly part is done once."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
import transformers

from retrue import artifact, corpus, dataset
from retrue.training import export, finetune
from retrue.training.finetune import Result
from retrue.training.graph import Graph

CREATED = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Made:
    """A checkpoint, what it came from, and the model folder that was made of it."""

    dataset: Path
    checkpoint: Path
    result: Result
    model: Path


@pytest.fixture(scope="session")
def three(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three classes, and an int8 graph that agrees too little for the rules: so fp32 ships."""
    root = tmp_path_factory.mktemp("three")
    films, kitchen = (corpus.generate(seed=3, rows=120, domain=domain) for domain in ("films", "kitchen"))
    rows = films + [dataclasses.replace(row, label="kitchen") for row in kitchen]
    data = dataset.write(root / "data", {"train": rows}, name="three", source="synthetic", synthetic=True)
    settings = finetune.Settings(learning_rate=3e-3, epochs=2, batch_size=16, max_tokens=64)
    result = finetune.finetune(tiny_encoder, data, settings, root / "checkpoint")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "AGREEMENT", 1.01)
        model = export.export(root / "checkpoint", data, result, root / "model", created=CREATED)
    return Made(data, root / "checkpoint", result, model)


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bf16, where the CPU has it: it rounds other sums otherwise, and a test looks at the fifth digit."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.fixture(scope="session")
def graph(three: Made) -> Graph:
    """What torch computes with the checkpoint of three classes."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        three.checkpoint, attn_implementation="eager"
    )
    graph = Graph(model.eval()).eval()
    shipped = {item.name: item for item in onnx.load(three.model / artifact.MODEL).graph.initializer}
    for name in ("centre", "matrix"):
        setattr(graph, name, torch.from_numpy(onnx.numpy_helper.to_array(shipped[name]).copy()))
    return graph
