"""One ONNX graph of a trained classifier: written, proved against torch, and made small."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import nn

from retrue.artifact import PROJECTIONS
from retrue.errors import TrainingFailed

# The newest without the fused Attention operator, which cannot be quantised: 20 to 24 gave files of the same size and
# 24 to 25 ms of CPU for a text of 128 tokens, within the noise of each other.
OPSET = 22
TOLERANCE = 1e-4  # between torch and the fp32 graph, absolute
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


def write(graph: Graph, path: Path) -> None:
    """Export with free batch and length, and the weights inside the one file."""
    tokens = torch.randint(0, graph.model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    positions = graph.model.config.max_position_embeddings
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=positions)}
    told = logging.getLogger("torch.onnx._internal.exporter")
    level = told.level
    with warnings.catch_warnings():
        # torch warns of its own deprecated class, and that two inputs share the axes that are meant to be shared.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: (batch|length) will not be used", UserWarning)
        told.setLevel(logging.ERROR)  # it warns of torchvision, which no text needs
        try:
            torch.onnx.export(
                graph,
                (tokens, torch.ones_like(tokens)),
                path,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits", "projection"],
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            told.setLevel(level)


def prove(graph: Graph, path: Path) -> None:
    """Compare the graph with torch on random texts, padded and not, of 1 token, all positions, and lengths between.

    TrainingFailed where they differ: whoever serves the graph may feed longer texts than it was trained on.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    positions = graph.model.config.max_position_embeddings
    lengths = [1, positions, *random.integers(1, positions + 1, PROBED - 2).tolist()]
    for number, length in enumerate(lengths):
        ids = random.integers(0, graph.model.config.vocab_size, (1 + number % 2, length))
        mask = np.ones_like(ids)
        mask[1:, (length + 1) // 2 :] = 0
        answers = session.run(["logits", "projection"], {"input_ids": ids, "attention_mask": mask})
        with torch.inference_mode():
            expected = graph(torch.from_numpy(ids), torch.from_numpy(mask))
        for name, answer, wanted in zip(("logits", "projection"), answers, expected, strict=True):
            difference = float(np.abs(answer - wanted.numpy()).max())
            if not difference <= TOLERANCE:
                raise TrainingFailed(
                    f"the exported graph's {name} differ from torch's by {difference:.2g} at {length} tokens "
                    f"(allowed {TOLERANCE:g}): train again, and keep the torch and onnx versions of the lock file"
                )


def quantise(path: Path, target: Path) -> None:
    """Signed 7-bit weights with a scale per channel: no product overflows on CPUs without VNNI, so all hosts agree.

    What only the projection needs stays as it is: it is next to nothing, and coarse steps would blur small distances.
    """
    model = onnx.load(path)
    exact = _unshared(model.graph, "projection", "logits")
    # The exporter's own shapes contradict those that the quantiser infers after it has renamed values.
    del model.graph.value_info[:]
    add_pre_process_metadata(model)  # the exporter has already folded and inferred what the quantiser would ask for
    quantize_dynamic(
        model, target, nodes_to_exclude=exact, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )


def _unshared(graph: onnx.GraphProto, output: str, other: str) -> list[str]:
    """The names of the nodes that one output needs and another does not."""
    makers = {name: node for node in graph.node for name in node.output}

    def needed(output: str) -> dict[str, None]:
        found: dict[str, None] = {}
        wanted = [output]
        while wanted:
            node = makers.get(wanted.pop())
            if node is not None and node.name not in found:
                found[node.name] = None
                wanted += node.input
        return found

    return list(needed(output).keys() - needed(other).keys())
