"""From a checkpoint to a sealed model folder: one ONNX graph, proved against torch, small where that is safe."""

import importlib.metadata
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import nn

from retrue import artifact, corpus, drift, metrics
from retrue import dataset as datasets
from retrue.artifact import PROJECTIONS, Card
from retrue.classifier import Classifier, Scored
from retrue.dataset import Example
from retrue.errors import TrainingFailed
from retrue.training.finetune import Progress, Result, silent
from retrue.training.learner import quiet

OPSET = 20
TOLERANCE = 1e-4  # between torch and the fp32 graph, absolute
AGREEMENT = 0.985  # share of held-out rows that int8 must label as fp32 does
TOLERATED_LOSS = 0.005  # of validation accuracy
EVALUATED = 2_500  # rows of a split that are scored at most
COMPARED = 1_000  # rows of a split that are scored by both graphs at most
PROBED = 8  # lengths at which the graph is compared with torch
PROJECTION_SEED = 64
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")


class Graph(nn.Module):
    """A classifier whose one forward pass gives logits (batch, labels) and projection (batch, PROJECTIONS).

    The projection is the mean of the middle layer's hidden states over the real tokens, times a Gaussian matrix that
    depends on the width alone: distances survive it (Johnson and Lindenstrauss 1984), and drift shows in few columns.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.layer = round(model.config.num_hidden_layers / 2)
        width = model.config.hidden_size
        gaussian = np.random.default_rng(PROJECTION_SEED).standard_normal((width, PROJECTIONS)) / np.sqrt(width)
        self.register_buffer("matrix", torch.from_numpy(gaussian.astype(np.float32)))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weights = attention_mask.unsqueeze(-1).float()
        mean = (answer.hidden_states[self.layer] * weights).sum(1) / weights.sum(1)
        return answer.logits, mean @ self.matrix


def export(
    checkpoint: Path, dataset: Path, result: Result, out: Path, *, created: str, progress: Progress = silent
) -> Path:
    """Write the sealed model folder `out` from what `finetune` left in `checkpoint`.

    `created` is the time of the card. Raises TrainingFailed when the graph does not compute what torch computes.
    """
    began = time.monotonic()
    out.mkdir(parents=True)
    held = {split: _sample(datasets.read(dataset, split)) for split in ("validation", "test")}
    manifest = datasets.read_manifest(dataset)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    graph = Graph(model.eval()).eval()
    max_tokens = int(result.settings["max_tokens"])
    shutil.copyfile(checkpoint / "tokenizer.json", out / artifact.TOKENIZER)

    def card(precision: str, **more: Any) -> Card:
        filled: dict[str, Any] = {"temperature": 1.0, "metrics": {}, "run": {}} | more
        return Card(
            labels=result.labels,
            created=created,
            encoder=result.encoder,
            precision=precision,
            max_tokens=max_tokens,
            dataset=manifest.id,
            settings=result.settings,
            layer=graph.layer,
            notice=result.notice,
            **filled,
        )

    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        progress(0.0, "exporting the graph")
        full, small = Path(scratch, "fp32"), Path(scratch, "int8")
        for folder in (full, small):
            folder.mkdir()
            shutil.copyfile(out / artifact.TOKENIZER, folder / artifact.TOKENIZER)
            (folder / artifact.CARD).write_text(card(folder.name).to_json())
        _write(graph, full / artifact.MODEL)
        _prove(graph, full / artifact.MODEL, max_tokens)
        progress(0.2, "quantising")
        _quantise(full / artifact.MODEL, small / artifact.MODEL)
        progress(0.3, "comparing int8 with fp32")
        compared = {split: rows[:COMPARED] for split, rows in held.items()}
        answers = {
            folder: {split: _score(folder, rows) for split, rows in compared.items()} for folder in (full, small)
        }
        comparison = _compare(compared, answers[full], answers[small])
        chosen = small if comparison["shipped"] else full
        progress(0.7, "scoring the other held-out rows")
        validation, test = (answers[chosen][split] + _score(chosen, held[split][COMPARED:]) for split in held)
        shutil.move(chosen / artifact.MODEL, out / artifact.MODEL)

    progress(0.9, "calibrating and measuring")
    truth = np.array([result.labels.index(row.label) for row in held["validation"]])
    logits = np.array([answer.logits for answer in validation])
    temperature = metrics.fit_temperature(logits, truth)
    found: dict[str, Any] = {
        "validation": asdict(metrics.quality(*_columns(held["validation"], validation), result.labels)),
        "test": asdict(metrics.quality(*_columns(held["test"], test), result.labels)),
        "calibration_error_before": metrics.calibration_error(metrics.softmax(logits), truth),
        "calibration_error": metrics.calibration_error(metrics.softmax(logits / temperature), truth),
        "int8": comparison,
    }
    reference = drift.register(_drift_columns([*validation, *test], temperature))
    (out / artifact.REFERENCE).write_bytes(reference.to_bytes())
    run = {
        "train_seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "rows": result.rows,
        "steps": result.steps,
        "history": result.history,
        "device": result.device,
        "bf16": result.bf16,
        "seed": result.settings["seed"],
        "synthetic_data": manifest.synthetic,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "export_seconds": round(time.monotonic() - began, 3),
    }
    final = card(chosen.name, temperature=temperature, metrics=found, run=run)
    (out / artifact.CARD).write_text(final.to_json())
    (out / artifact.GOLDEN).write_text(json.dumps(_golden(out), indent=1))
    artifact.seal(out)
    progress(1.0, f"{chosen.name} model, {found['test']['accuracy']:.1%} of {len(test)} test rows right")
    return out


def _write(graph: Graph, path: Path) -> None:
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


def _prove(graph: Graph, path: Path, max_tokens: int) -> None:
    """Compare the graph with torch on random texts of random lengths, padded and not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    lengths = [1, max_tokens, *random.integers(1, max_tokens + 1, PROBED - 2).tolist()]
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


def _quantise(path: Path, target: Path) -> None:
    """Signed 7-bit weights with a scale per channel: no product overflows on CPUs without VNNI, so all hosts agree."""
    model = onnx.load(path)
    # The exporter's own shapes contradict those that the quantiser infers after it has renamed values.
    del model.graph.value_info[:]
    add_pre_process_metadata(model)  # the exporter has already folded and inferred what the quantiser would ask for
    quantize_dynamic(model, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


def _score(folder: Path, rows: Sequence[Example]) -> list[Scored]:
    classifier = Classifier(folder)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(classifier.score, [row.text for row in rows]))


def _compare(
    held: dict[str, list[Example]], full: dict[str, list[Scored]], small: dict[str, list[Scored]]
) -> dict[str, Any]:
    """Whether the int8 graph may be shipped, and the numbers that say so, from what both answer by split."""
    labels = [[answer.label for split in held for answer in answers[split]] for answers in (full, small)]
    truth = [row.label for row in held["validation"]]
    right = [
        float(np.mean([answer.label == label for answer, label in zip(answers["validation"], truth, strict=True)]))
        for answers in (full, small)
    ]
    agreement = float(np.mean([a == b for a, b in zip(*labels, strict=True)]))
    loss = right[0] - right[1]
    shipped = agreement >= AGREEMENT and loss <= TOLERATED_LOSS
    reason = (
        f"int8 labels {agreement:.2%} of {len(labels[0])} held-out rows as fp32 does (at least {AGREEMENT:.1%} "
        f"wanted) and loses {loss:.2%} of validation accuracy (at most {TOLERATED_LOSS:.1%} allowed), so "
        f"{'int8' if shipped else 'fp32'} is shipped"
    )
    return {"shipped": shipped, "agreement": agreement, "accuracy_loss": loss, "reason": reason}


def _columns(rows: list[Example], answers: list[Scored]) -> tuple[list[str], list[str]]:
    return [row.label for row in rows], [answer.label for answer in answers]


def _drift_columns(answers: list[Scored], temperature: float) -> NDArray[np.float32]:
    logits = np.array([answer.logits for answer in answers])
    return drift.columns(
        np.array([answer.projection for answer in answers]),
        np.array([answer.tokens for answer in answers]),
        metrics.softmax(logits / temperature),
    )


def _golden(folder: Path) -> list[dict[str, Any]]:
    """Texts that belong to nobody, and what a healthy copy of this model answers."""
    classifier = Classifier(folder)
    texts = [row.text for domain in ("films", "kitchen") for row in corpus.generate(seed=0, rows=4, domain=domain)]
    return [{"text": text, "scores": classifier.score(text).scores} for text in texts]


def _sample(rows: list[Example]) -> list[Example]:
    if len(rows) <= EVALUATED:
        return rows
    chosen = np.random.default_rng(0).permutation(len(rows))[:EVALUATED]
    return [rows[i] for i in sorted(chosen)]
