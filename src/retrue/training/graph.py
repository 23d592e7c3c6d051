"""The ONNX graph of a trained classifier: built from its weights as it is to be run, and proved against torch.

Each operator is chosen for onnxruntime on a CPU, which is to change nothing when it loads the graph (decision 0020).
Texts come in one length and without padding, so attention needs no mask. Of the last layer only [CLS] is computed,
which is all that the head reads.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from retrue.artifact import CAPTURED, PROJECTIONS, WEIGHTS
from retrue.errors import TrainingFailed
from retrue.training import anatomy, rounding
from retrue.training.ranges import Key, Ranges

OPSET, IR = 22, 10
MICROSOFT = "com.microsoft"
ALONE = 1_024  # bytes of a weight that lies in the file of its own
TOLERANCE = 1e-4  # of a logit, absolute: between torch and the fp32 graph, and between a text alone and in company
PROBED = 8  # lengths at which the graph is compared with torch
PROJECTION_SEED = 64


class Graph(nn.Module):
    """A classifier whose one forward pass gives logits (batch, labels) and projection (batch, CAPTURED).

    The projection is the mean of the middle layer's hidden states over the real tokens, along the main directions of
    the training texts, which `fit` finds. Its last number is the norm of what lies outside them: texts of a kind that
    the model never met are there. Half of a narrow layer is left outside; what it has too few directions for, Gaussian
    ones make up (Johnson and Lindenstrauss 1984).
    """

    matrix: torch.Tensor  # (width, PROJECTIONS), the main directions first
    centre: torch.Tensor  # (width,)

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.layer = round(model.config.num_hidden_layers / 2)
        width = model.config.hidden_size
        gaussian = np.random.default_rng(PROJECTION_SEED).standard_normal((width, PROJECTIONS)) / np.sqrt(width)
        self.register_buffer("matrix", torch.from_numpy(gaussian.astype(np.float32)))
        self.register_buffer("centre", torch.zeros(width))
        self.main = min(PROJECTIONS, width // 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, mean = self.answer(input_ids, attention_mask)
        apart = mean - self.centre
        projection = apart @ self.matrix
        inside = projection[:, : self.main] @ self.matrix[:, : self.main].T
        residual = torch.linalg.vector_norm(apart - inside, dim=1, keepdim=True)
        return logits, torch.cat([projection, residual], dim=1)

    def answer(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and the mean of the middle layer (batch, width)."""
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weights = attention_mask.unsqueeze(-1).float()
        return answer.logits, (answer.hidden_states[self.layer] * weights).sum(1) / weights.sum(1)

    def fit(self, means: torch.Tensor) -> None:
        """Take the centre and the main directions of training texts from what `answer` says of them (texts, width).

        They must not be the texts of the drift reference: a basis that knows them spoils the calibration.
        """
        self.centre = means.mean(0)
        apart = (means - self.centre).double()
        directions = torch.linalg.eigh(apart.T @ apart).eigenvectors
        self.matrix[:, : self.main] = directions[:, -self.main :].float()


def write(graph: Graph, path: Path, ranges: Ranges | None = None, smoothing: float = 0.0) -> None:
    """Write the graph at `path` and its weights beside it, as fp32, or as int8 where the ranges are given.

    `smoothing` is the share of a channel's largeness that is moved into the weights. What only the projection needs,
    the head and attention itself stay fp32: they are next to nothing, and coarse steps would blur small distances.
    """
    with torch.inference_mode():
        made = _Writer(ranges, smoothing)
        _classifier(made, graph)
    batch, length = "batch", "length"
    outputs = {"logits": graph.model.config.num_labels, "projection": CAPTURED}
    whole = helper.make_graph(
        made.nodes,
        "classifier",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, length])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name, width in outputs.items()],
        list(made.weights.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=IR)
    path.with_name(WEIGHTS).unlink(missing_ok=True)  # onnx appends to a file that is there
    onnx.save(model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=ALONE)
    path.with_name(WEIGHTS).chmod(0o644)  # onnx makes it for its owner alone, and Lambda's user is another


class _Writer:
    """Operators in the order in which they are run, and their weights by name."""

    def __init__(self, ranges: Ranges | None, smoothing: float) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.ranges, self.smoothing = ranges, smoothing

    def add(self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """One operator; the name of its output."""
        name = f"{kind}_{len(self.nodes)}"
        told = output or f"{name}.0"
        self.nodes.append(helper.make_node(kind, inputs, [told], name=name, domain=domain, **attributes))
        return told

    def weight(self, name: str, value: Any) -> str:
        """A constant; the same name is written once."""
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.weights.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normalise(self, x: str, name: str, norm: nn.LayerNorm) -> str:
        weight, bias = self.weight(f"{name}.weight", norm.weight), self.weight(f"{name}.bias", norm.bias)
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def product(self, x: str, name: str, module: nn.Linear) -> str:
        """What torch's Linear does, in fp32."""
        times = self.add("MatMul", x, self.weight(f"{name}.weight", module.weight.T))
        return self.add("Add", times, self.weight(f"{name}.bias", module.bias))

    def products(self, x: str, key: Key, modules: Mapping[str, nn.Linear], merged: bool = False) -> list[str]:
        """The products of one input with several weights, as int8 where its range is known.

        Where an earlier product gives the input smoothed already, it is `merged`.
        """
        if self.ranges is None:
            return [self.product(x, f"{key[0]}.{name}", module) for name, module in modules.items()]
        smoothing = self.ranges[key].smoothing(self.smoothing)
        step, zero = self.ranges[key].scale(smoothing)
        gram = torch.from_numpy(self.ranges[key].gram / np.outer(smoothing, smoothing))
        place = f"{key[0]}.{key[1]}"
        if self.smoothing and not merged:
            x = self.add("Mul", x, self.weight(f"{place}.smoothing", 1 / smoothing))
        scale, point = self.weight(f"{place}.scale", step), self.weight(f"{place}.zero", zero)
        small = self.add("QuantizeLinear", x, scale, point)
        factors = torch.from_numpy(smoothing)[:, None]
        return [
            self._quantised(small, scale, point, f"{key[0]}.{name}", module.weight.T * factors, module.bias, gram)
            for name, module in modules.items()
        ]

    def _quantised(
        self, x: str, scale: str, zero: str, name: str, weight: torch.Tensor, bias: torch.Tensor, gram: torch.Tensor
    ) -> str:
        steps = rounding.steps(weight)
        return self.add(
            "MatMulIntegerToFloat",
            x,
            self.weight(f"{name}.weight", rounding.rounded(weight, steps, gram)),
            scale,
            self.weight(f"{name}.steps", steps),
            zero,
            self.weight(f"{name}.zeros", np.zeros(len(bias), np.int8)),
            self.weight(f"{name}.bias", bias),
            domain=MICROSOFT,
        )

    def divided(self, module: nn.Linear, key: Key) -> nn.Linear:
        """A product whose outputs come smoothed, as the one at `key` wants what attention mixes of them."""
        if self.ranges is None:
            return module
        smoothing = torch.from_numpy(self.ranges[key].smoothing(self.smoothing))
        made = nn.Linear(module.in_features, module.out_features)
        made.weight.copy_(module.weight / smoothing[:, None])
        made.bias.copy_(module.bias / smoothing)
        return made


def _classifier(made: _Writer, graph: Graph) -> None:
    parts = anatomy.of(graph.model)
    x = _embedded(made, parts)
    layers = len(parts.blocks)
    for number, block in enumerate(parts.blocks):
        if number == graph.layer:
            _project(made, graph, x)
        x = _layer(made, x, number, block, parts.heads, last=number == layers - 1)
    x = made.add("Squeeze", x, made.weight("axis", np.array([1])))
    for number, (module, activation) in enumerate(parts.head):
        last = number == len(parts.head) - 1
        name = f"head.{number}"
        weight, bias = made.weight(f"{name}.weight", module.weight.T), made.weight(f"{name}.bias", module.bias)
        x = made.add("Gemm", x, weight, bias, output="logits" if last else "")
        x = made.add(activation, x) if activation else x


def _embedded(made: _Writer, parts: anatomy.Anatomy) -> str:
    """The words, as bytes with a scale for each where the graph is int8, and the positions."""
    if made.ranges is None:
        words = made.add("Gather", made.weight("words", parts.words), "input_ids")
    else:
        full = parts.words.numpy()
        steps = np.maximum(np.abs(full).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
        small = made.add("Gather", made.weight("words", np.rint(full / steps).astype(np.int8)), "input_ids")
        scales = made.add("Gather", made.weight("words.steps", steps.astype(np.float32)), "input_ids")
        words = made.add("Mul", made.add("Cast", small, to=TensorProto.FLOAT), scales)
    length = made.add("Shape", "input_ids", start=1, end=2)
    first = made.weight("first", np.array([0]))
    positions = made.add("Slice", made.weight("positions", parts.positions), first, length, first)
    return made.normalise(made.add("Add", words, positions), "embedded", parts.embedded)


def _layer(made: _Writer, x: str, number: int, block: anatomy.Block, heads: int, last: bool) -> str:
    names = {"query": block.query, "key": block.key, "value": made.divided(block.value, (number, "merge"))}
    asking = x
    if last:
        first, second, axis = (made.weight(n, np.array([v])) for n, v in (("first", 0), ("second", 1), ("axis", 1)))
        asking = made.add("Slice", x, first, second, axis)
        query = made.products(asking, (number, "attend"), {"query": names.pop("query")})
        query += made.products(x, (number, "attend"), names)
    else:
        query = made.products(x, (number, "attend"), names)
    mixed = made.add("MultiHeadAttention", *query, domain=MICROSOFT, num_heads=heads)
    (merged,) = made.products(mixed, (number, "merge"), {"merge": block.merge}, merged=True)
    x = made.normalise(made.add("Add", merged, asking), f"{number}.merged", block.merged)
    (wide,) = made.products(x, (number, "expand"), {"expand": block.expand})
    wide = made.add("Gelu", wide, domain=MICROSOFT)
    (narrow,) = made.products(wide, (number, "contract"), {"contract": block.contract})
    return made.normalise(made.add("Add", narrow, x), f"{number}.contracted", block.contracted)


def _project(made: _Writer, graph: Graph, x: str) -> None:
    """The second output, as Graph.forward has it."""
    mean = made.add("ReduceMean", x, made.weight("axis", np.array([1])), keepdims=0)
    apart = made.add("Sub", mean, made.weight("centre", graph.centre))
    projection = made.add("MatMul", apart, made.weight("matrix", graph.matrix))
    span = graph.matrix[:, : graph.main]
    inside = made.add("MatMul", made.add("MatMul", apart, made.weight("span", span)), made.weight("span.back", span.T))
    outside = made.add("Sub", apart, inside)
    residual = made.add("ReduceL2", outside, made.weight("axis", np.array([1])), keepdims=1)
    made.add("Concat", projection, residual, output="projection", axis=1)


def prove(graph: Graph, path: Path) -> None:
    """Compare the graph with torch on random texts, alone and in pairs, of 1 token, all positions, and lengths between.

    TrainingFailed where they differ: whoever serves the graph may feed longer texts than it was trained on.
    """
    session = _session(path)
    for number, pair in enumerate(_texts(graph)):
        ids = pair[: 1 + number % 2]
        answers = session.run(["logits", "projection"], {"input_ids": ids})
        with torch.inference_mode():
            expected = graph(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64))
        for name, answer, wanted in zip(("logits", "projection"), answers, expected, strict=True):
            difference = float(np.abs(answer - wanted.numpy()).max())
            if not difference <= TOLERANCE:
                raise TrainingFailed(
                    f"the exported graph's {name} differ from torch's by {difference:.2g} at {ids.shape[1]} tokens "
                    f"(allowed {TOLERANCE:g}): train again, and keep the torch and onnx versions of the lock file"
                )


def moved(graph: Graph, path: Path) -> float:
    """How far a text's logits move at most where another of its length runs beside it, over random texts.

    Infinitely far, where they are no numbers.
    """
    session = _session(path)
    found = []
    for ids in _texts(graph):
        (together,) = session.run(["logits"], {"input_ids": ids})
        alone = [session.run(["logits"], {"input_ids": row[None]})[0][0] for row in ids]
        found.append(np.abs(together - alone).max())
    return float(np.nan_to_num(np.max(found), nan=np.inf))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _texts(graph: Graph) -> Iterator[NDArray[np.int64]]:
    """Pairs of random texts: of 1 token, of all positions, and of lengths between."""
    random = np.random.default_rng(0)
    positions = graph.model.config.max_position_embeddings
    for length in [1, positions, *random.integers(1, positions + 1, PROBED - 2).tolist()]:
        yield random.integers(0, graph.model.config.vocab_size, (2, length))
