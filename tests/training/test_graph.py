"""The ONNX graph: it computes what torch computes, at every length, or it is not shipped."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from retrue import artifact
from retrue.errors import TrainingFailed
from retrue.training import graph as graphs
from retrue.training.graph import Graph


@pytest.fixture(scope="session")
def exported(three: Any) -> Path:
    """The fp32 graph of three classes, as it was shipped."""
    return Path(three.model / artifact.MODEL)


def changed(exported: Path, target: Path, ending: str, where: Any) -> Path:
    """A copy of the graph in which a few numbers of one weight are a little larger."""
    model = onnx.load(exported)
    (weight,) = [item for item in model.graph.initializer if item.name.endswith(ending)]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[where] += np.float32(0.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("length", [1, 2, 63, 128, 511, 512])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_is_right_at_every_length_and_batch(graph: Graph, exported: Path, batch: int, length: int) -> None:
    ids = np.random.default_rng(length).integers(0, graph.model.config.vocab_size, (batch, length))
    mask = np.ones_like(ids)
    mask[1:, (length + 1) // 2 :] = 0
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    logits, projection = session.run(["logits", "projection"], {"input_ids": ids, "attention_mask": mask})
    with torch.inference_mode():
        wanted = graph(torch.from_numpy(ids), torch.from_numpy(mask))
    assert np.abs(logits - wanted[0].numpy()).max() < 1e-4
    assert np.abs(projection - wanted[1].numpy()).max() < 1e-4


def test_the_mean_of_the_middle_layer_is_told_by_main_directions_random_ones_and_what_lies_outside(
    graph: Graph,
) -> None:
    fresh = Graph(graph.model).eval()
    rng = np.random.default_rng(3)
    means = rng.normal(size=(200, 32)) * np.geomspace(5, 0.5, 32) @ np.linalg.qr(rng.normal(size=(32, 32)))[0] + 1
    fresh.fit(torch.from_numpy(means.astype(np.float32)))
    ids = torch.arange(5, 15)[None]
    mask = torch.tensor([[1] * 7 + [0] * 3])
    with torch.inference_mode():
        logits, projection = fresh(ids, mask)
        answer = fresh.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    apart = answer.hidden_states[1][0, :7].mean(0).numpy() - means.mean(0)
    directions = np.linalg.svd(means - means.mean(0))[2]
    main, others, residual = np.split(projection[0].numpy(), [16, 64])
    # Of a direction only the sign is free.
    np.testing.assert_allclose(np.abs(main[::-1]), np.abs(directions[:16] @ apart), rtol=1e-3, atol=1e-4)
    gaussian = np.random.default_rng(64).standard_normal((32, 64)) / math.sqrt(32)
    np.testing.assert_allclose(others, apart @ gaussian[:, 16:], rtol=1e-3, atol=1e-4)
    assert residual.item() == pytest.approx(np.linalg.norm(directions[16:] @ apart), rel=1e-4)
    assert torch.equal(logits, answer.logits)


def test_all_64_directions_of_a_wide_layer_are_those_of_its_texts(graph: Graph) -> None:
    config = graph.model.config.__class__(**{**graph.model.config.to_dict(), "dim": 132, "n_layers": 1, "n_heads": 2})
    wide = Graph(graph.model.__class__(config))
    wide.fit(torch.randn(300, 132, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(wide.matrix.T @ wide.matrix, torch.eye(64), rtol=0, atol=1e-5)


def test_int8_weights_are_signed_and_of_seven_bits_but_for_those_of_the_drift_vector(
    exported: Path, tmp_path: Path
) -> None:
    graphs.quantise(exported, tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 2 * 6 + 2  # six in each layer, and two in the head
    for node in products:
        weight = weights[node.input[1]]
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
    before = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(exported).graph.initializer}
    for name in ("matrix", "centre"):
        np.testing.assert_array_equal(weights[name], before[name])
    assert (tmp_path / "int8.onnx").stat().st_size < 0.65 * exported.stat().st_size


def test_the_graph_is_of_the_opset_that_was_measured_and_has_no_fused_attention(exported: Path) -> None:
    model = onnx.load(exported)
    assert [item.version for item in model.opset_import if not item.domain] == [graphs.OPSET]
    assert "Attention" not in {node.op_type for node in model.graph.node}


def test_a_graph_that_computes_what_torch_computes_passes(graph: Graph, exported: Path) -> None:
    graphs.prove(graph, exported)


def test_a_graph_that_computes_something_else_is_not_shipped(graph: Graph, exported: Path, tmp_path: Path) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "model.classifier.bias", np.s_[:1])
    with pytest.raises(TrainingFailed, match=r"logits differ from torch's by 0\.01"):
        graphs.prove(graph, wrong)


def test_a_graph_with_another_residual_is_not_shipped(graph: Graph, exported: Path, tmp_path: Path) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "matrix", np.s_[::3])
    with pytest.raises(TrainingFailed, match=r"projection differ from torch's by"):
        graphs.prove(graph, wrong)


def test_a_graph_that_is_wrong_only_beyond_the_trained_length_is_not_shipped(
    graph: Graph, exported: Path, tmp_path: Path
) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "position_embeddings.weight", np.s_[300:, ::2])
    with pytest.raises(TrainingFailed, match="at 512 tokens"):
        graphs.prove(graph, wrong)
