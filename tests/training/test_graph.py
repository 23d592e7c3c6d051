"""The ONNX graph: it computes what torch computes, at every length, or it is not shipped."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray

from retrue import artifact
from retrue.errors import TrainingFailed
from retrue.training import graph as graphs
from retrue.training import ranges
from retrue.training.graph import Graph


@pytest.fixture(scope="session")
def exported(three: Any) -> Path:
    """The fp32 graph of three classes, as it was shipped."""
    return Path(three.model / artifact.MODEL)


def run(path: Path, ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Logits and projection."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(["logits", "projection"], {"input_ids": ids})
    return found


def torchs(graph: Graph, ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """What torch says of the same texts."""
    with torch.inference_mode():
        return [value.numpy() for value in graph(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64))]


def measured(graph: Graph) -> ranges.Ranges:
    """The ranges over a few random texts."""
    ids = torch.randint(0, graph.model.config.vocab_size, (8, 20), generator=torch.Generator().manual_seed(0))
    return ranges.measure(graph.model, [(ids, torch.ones_like(ids))])


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
    for found, wanted in zip(run(exported, ids), torchs(graph, ids), strict=True):
        assert np.abs(found - wanted).max() < 1e-4


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


def test_int8_weights_are_signed_and_no_neighbours_overflow_16_bits_but_for_those_of_the_drift_vector(
    graph: Graph, exported: Path, tmp_path: Path
) -> None:
    graphs.write(graph, tmp_path / artifact.MODEL, measured(graph), 0.8)
    model = onnx.load(tmp_path / artifact.MODEL)
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 2 * 6  # six in each layer
    for node in products:
        weight = weights[node.input[1]]
        assert weight.dtype == np.int8
        assert 255 * np.abs(weight.astype(int)).reshape(len(weight) // 2, 2, -1).sum(1).max() < 2**15
        assert np.abs(weight.astype(int)).max() > 64  # which is all that single weights could have
    assert weights["words"].dtype == np.int8
    before = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(exported).graph.initializer}
    for name in ("matrix", "centre", "head.0.weight", "head.1.weight"):
        np.testing.assert_array_equal(weights[name], before[name])
    assert artifact.size(tmp_path) < 0.65 * artifact.size(exported.parent)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_graph_is_written_as_it_is_to_be_run(graph: Graph, tmp_path: Path, precision: str) -> None:
    path = tmp_path / artifact.MODEL
    graphs.write(graph, path, measured(graph) if precision == "int8" else None, 0.8)
    model = onnx.load(path, load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    layers = 2
    assert [node.name for node in model.graph.input] == ["input_ids"]  # and no mask
    assert kinds["MultiHeadAttention"] == layers
    assert kinds["LayerNormalization"] == 2 * layers + 1  # beside their Add, and not fused with it
    assert "SkipLayerNormalization" not in kinds
    assert (kinds["QuantizeLinear"], kinds["DynamicQuantizeLinear"]) == (
        (4 * layers + 1, 0) if precision == "int8" else (0, 0)
    )
    large = [item for item in model.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
    assert sum(len(item.raw_data) for item in model.graph.initializer) < 30_000 < artifact.size(tmp_path)
    assert {entry.value for item in large for entry in item.external_data if entry.key == "location"} == {"weights.bin"}


def test_the_weights_can_be_read_by_whoever_serves_them(graph: Graph, tmp_path: Path) -> None:
    graphs.write(graph, tmp_path / artifact.MODEL)
    assert [(tmp_path / name).stat().st_mode & 0o444 for name in (artifact.MODEL, artifact.WEIGHTS)] == [0o444] * 2


def test_of_the_last_layer_only_the_first_token_is_computed(graph: Graph, exported: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(exported))
    slices = [node for node in model.graph.node if node.op_type == "Slice"]
    assert len(slices) == 2  # of the positions, and of the last layer's input
    gelus = [node for node in model.graph.node if node.op_type == "Gelu"]
    session = onnxruntime.InferenceSession(_with_output(model, gelus[-1].output[0]), providers=["CPUExecutionProvider"])
    assert session.run([gelus[-1].output[0]], {"input_ids": np.ones((2, 9), np.int64)})[0].shape[:2] == (2, 1)


def _with_output(model: onnx.ModelProto, name: str) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(copy.SerializeToString())


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.8])
def test_int8_is_near_to_fp32_and_says_the_same_of_a_text_alone_and_in_company(
    graph: Graph, tmp_path: Path, smoothing: float
) -> None:
    path = tmp_path / artifact.MODEL
    graphs.write(graph, path, measured(graph), smoothing)
    ids = np.random.default_rng(1).integers(0, graph.model.config.vocab_size, (5, 20))
    logits, projection = run(path, ids)
    wanted = torchs(graph, ids)
    assert np.abs(logits - wanted[0]).max() < 0.1 * np.abs(wanted[0]).max()
    for row in range(5):
        alone = run(path, ids[row : row + 1])
        assert alone[0].tobytes() == logits[row].tobytes()
        np.testing.assert_allclose(alone[1][0], projection[row], atol=1e-6)


def test_a_graph_whose_scales_depend_on_what_runs_together_is_found_out(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / artifact.MODEL
    graphs.write(graph, path, measured(graph), 0.8)
    assert graphs.moved(graph, path) <= graphs.TOLERANCE
    model = onnx.load(path)
    scaled = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scaled.op_type = "DynamicQuantizeLinear"
    scale, point = scaled.input[1:]
    del scaled.input[1:]
    scaled.output.extend(["its.scale", "its.zero"])
    for node in model.graph.node:
        if scaled.output[0] in node.input:
            node.input[:] = [{scale: "its.scale", point: "its.zero"}.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "dynamic.onnx")
    assert graphs.TOLERANCE < graphs.moved(graph, tmp_path / "dynamic.onnx") < math.inf


def test_a_graph_that_answers_with_no_numbers_is_found_out(graph: Graph, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    (bias,) = [item for item in model.graph.initializer if item.name == "head.1.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "silent.onnx")
    assert graphs.moved(graph, tmp_path / "silent.onnx") == math.inf


def test_a_bert_with_its_pooler_and_first_segment_becomes_a_graph_too(tmp_path: Path) -> None:
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=90, num_labels=3, max_position_embeddings=40, **shape)
    model = transformers.BertForSequenceClassification._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    bert = Graph(model).eval()
    graphs.write(bert, tmp_path / artifact.MODEL)
    graphs.prove(bert, tmp_path / artifact.MODEL)


def test_a_graph_that_computes_what_torch_computes_passes(graph: Graph, exported: Path) -> None:
    graphs.prove(graph, exported)


def test_a_graph_that_computes_something_else_is_not_shipped(graph: Graph, exported: Path, tmp_path: Path) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "head.1.bias", np.s_[:1])
    with pytest.raises(TrainingFailed, match=r"logits differ from torch's by 0\.01"):
        graphs.prove(graph, wrong)


def test_a_graph_with_another_residual_is_not_shipped(graph: Graph, exported: Path, tmp_path: Path) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "matrix", np.s_[::3])
    with pytest.raises(TrainingFailed, match=r"projection differ from torch's by"):
        graphs.prove(graph, wrong)


def test_a_graph_that_is_wrong_only_beyond_the_trained_length_is_not_shipped(
    graph: Graph, exported: Path, tmp_path: Path
) -> None:
    wrong = changed(exported, tmp_path / "wrong.onnx", "positions", np.s_[300:, ::2])
    with pytest.raises(TrainingFailed, match="at 512 tokens"):
        graphs.prove(graph, wrong)
