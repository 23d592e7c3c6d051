import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from retrue import artifact, corpus, dataset, drift, metrics
from retrue.artifact import Card
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import TrainingFailed
from retrue.training import export, finetune
from retrue.training.finetune import Result

CREATED = "2026-01-01T00:00:00.000Z"


@pytest.fixture(scope="module")
def checkpoint(tiny_encoder: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A checkpoint that has hardly learned anything, and its result."""
    out = tmp_path_factory.mktemp("checkpoint") / "out"
    settings = finetune.Settings(learning_rate=1e-3, epochs=1, batch_size=32, max_tokens=64, max_rows=64)
    return out, finetune.finetune(tiny_encoder, tiny_dataset, settings, out)


@pytest.fixture(scope="module")
def graph(checkpoint: tuple[Path, Result]) -> export.Graph:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint[0], attn_implementation="eager")
    return export.Graph(model.eval()).eval()


@pytest.fixture(scope="module")
def exported(graph: export.Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export._write(graph, path)
    return path


def held_out(model: Path, folder: Path, split: str) -> tuple[list[Example], list[Any]]:
    classifier = Classifier.open(model)
    rows = dataset.read(folder, split)
    return rows, [classifier.score(row.text) for row in rows]


def test_an_exported_folder_is_whole_and_its_graph_has_learned(tiny_model: Path, tiny_dataset: Path) -> None:
    card = Classifier.open(tiny_model).card
    assert sorted(path.name for path in tiny_model.iterdir()) == sorted([*artifact.FILES, artifact.MANIFEST])
    assert card.labels == ["negative", "positive"]
    assert (card.layer, card.max_tokens, card.created) == (1, 64, CREATED)
    assert card.dataset == dataset.read_manifest(tiny_dataset).id
    assert card.run["synthetic_data"] is True
    assert card.metrics["validation"]["accuracy"] > 0.65


def test_the_card_tells_what_the_shipped_graph_really_scores(tiny_model: Path, tiny_dataset: Path) -> None:
    card = artifact.read_card(tiny_model)
    for split in ("validation", "test"):
        rows, answers = held_out(tiny_model, tiny_dataset, split)
        truth, predicted = [row.label for row in rows], [answer.label for answer in answers]
        assert card.metrics[split] == dataclasses.asdict(metrics.quality(truth, predicted, card.labels))


def test_the_temperature_makes_the_validation_rows_likeliest(tiny_model: Path, tiny_dataset: Path) -> None:
    card = artifact.read_card(tiny_model)
    rows, answers = held_out(tiny_model, tiny_dataset, "validation")
    logits = np.array([answer.logits for answer in answers])
    truth = np.array([card.labels.index(row.label) for row in rows])

    def loss(temperature: float) -> float:
        return -float(np.log(metrics.softmax(logits / temperature)[np.arange(len(truth)), truth]).mean())

    assert loss(card.temperature) < min(loss(card.temperature * 1.1), loss(card.temperature / 1.1))


def test_golden_answers_are_those_of_the_sealed_folder(tiny_model: Path) -> None:
    classifier = Classifier.open(tiny_model)
    golden = json.loads((tiny_model / artifact.GOLDEN).read_text())
    assert len(golden) == 8
    assert all(classifier.score(item["text"]).scores == item["scores"] for item in golden)


def test_held_out_texts_do_not_drift_from_the_reference_that_they_made(tiny_model: Path, tiny_dataset: Path) -> None:
    reference = drift.Reference.from_bytes((tiny_model / artifact.REFERENCE).read_bytes())
    _, answers = held_out(tiny_model, tiny_dataset, "test")
    table = drift.columns(
        np.array([answer.projection for answer in answers]),
        np.array([answer.tokens for answer in answers]),
        np.array([list(answer.scores.values()) for answer in answers]),
    )
    assert reference.rows == 2 * len(answers)
    assert not drift.check(reference, table, 1e-4).fired
    assert drift.check(reference, table + 2 * table.std(axis=0), 1e-4).fired


@pytest.mark.parametrize("length", [1, 2, 63, 128, 511, 512])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_is_right_at_every_length_and_batch(
    graph: export.Graph, exported: Path, batch: int, length: int
) -> None:
    ids = np.random.default_rng(length).integers(0, graph.model.config.vocab_size, (batch, length))
    mask = np.ones_like(ids)
    mask[1:, (length + 1) // 2 :] = 0
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    logits, projection = session.run(["logits", "projection"], {"input_ids": ids, "attention_mask": mask})
    with torch.inference_mode():
        wanted = graph(torch.from_numpy(ids), torch.from_numpy(mask))
    assert np.abs(logits - wanted[0].numpy()).max() < 1e-4
    assert np.abs(projection - wanted[1].numpy()).max() < 1e-4


def test_the_projection_is_the_mean_of_the_middle_layer_times_a_matrix_that_never_changes(graph: export.Graph) -> None:
    ids = torch.arange(5, 15)[None]
    mask = torch.tensor([[1] * 7 + [0] * 3])
    with torch.inference_mode():
        _, projection = graph(ids, mask)
        hidden = graph.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    matrix = np.random.default_rng(64).standard_normal((32, 64)) / math.sqrt(32)
    assert np.abs(hidden[0, :7].mean(0).numpy() @ matrix - projection[0].numpy()).max() < 1e-5


def test_int8_weights_are_signed_and_of_seven_bits(exported: Path, tmp_path: Path) -> None:
    export._quantise(exported, tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 2 * 6 + 3  # six in each layer, two in the head, and the projection
    for node in products:
        weight = weights[node.input[1]]
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * exported.stat().st_size


def test_a_graph_that_computes_something_else_is_not_shipped(
    graph: export.Graph, exported: Path, tmp_path: Path
) -> None:
    model = onnx.load(exported)
    bias = next(item for item in model.graph.initializer if item.name.endswith("classifier.bias") and item.dims == [2])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.001), bias.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    export._prove(graph, exported, 64)
    with pytest.raises(TrainingFailed, match="logits differ from torch's"):
        export._prove(graph, tmp_path / "wrong.onnx", 64)


def test_int8_that_answers_differently_is_not_shipped_and_the_card_says_why(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "turned")
    card = json.loads((tiny_model / artifact.CARD).read_text())
    (tmp_path / "turned" / artifact.CARD).write_text(Card.of({**card, "labels": card["labels"][::-1]}).to_json())
    rows = [Example(item["text"], "positive") for item in json.loads((tiny_model / artifact.GOLDEN).read_text())]
    held = {"validation": rows, "test": rows}
    folders = (tiny_model, tmp_path / "turned")
    full, turned = ({split: export._score(folder, rows) for split in held} for folder in folders)
    same = export._compare(held, full, full)
    assert same["shipped"]
    assert same["agreement"] == 1
    other = export._compare(held, full, turned)
    assert not other["shipped"]
    assert "labels 0.00% of 16 held-out rows" in other["reason"]
    assert other["reason"].endswith("so fp32 is shipped")


def test_fp32_is_shipped_where_int8_was_refused(
    checkpoint: tuple[Path, Result], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "AGREEMENT", 1.01)
    folder, result = checkpoint
    out = export.export(folder, tiny_dataset, result, tmp_path / "model", created=CREATED)
    card = Classifier.open(out).card
    assert card.precision == "fp32"
    assert not card.metrics["int8"]["shipped"]
    operators = {node.op_type for node in onnx.load(out / artifact.MODEL).graph.node}
    assert "MatMul" in operators
    assert "MatMulInteger" not in operators


def test_more_than_two_classes_are_trained_exported_and_served(tiny_encoder: Path, tmp_path: Path) -> None:
    films, kitchen = (corpus.generate(seed=3, rows=120, domain=domain) for domain in ("films", "kitchen"))
    rows = films + [dataclasses.replace(row, label="kitchen") for row in kitchen]
    data = dataset.write(tmp_path / "data", {"train": rows}, name="three", source="synthetic", synthetic=True)
    settings = finetune.Settings(learning_rate=3e-3, epochs=2, batch_size=16, max_tokens=64)
    result = finetune.finetune(tiny_encoder, data, settings, tmp_path / "checkpoint")
    folder = export.export(tmp_path / "checkpoint", data, result, tmp_path / "model", created=CREATED)
    scored = Classifier.open(folder).score(kitchen[0].text)
    assert list(scored.scores) == ["kitchen", "negative", "positive"]
    assert sum(scored.scores.values()) == pytest.approx(1)
    assert scored.label == "kitchen"
