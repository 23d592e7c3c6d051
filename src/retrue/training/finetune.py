"""Fine-tuning in one function with its loop in the open."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from retrue import dataset as datasets
from retrue import metrics
from retrue import settings as settings_of
from retrue.errors import BadDataset, TrainingFailed, WrongSetting
from retrue.records import Record
from retrue.training import encoder as encoders

Progress = Callable[[float, str], None]
CLIP = 1.0
LOG_SECONDS = 30.0
HELD_OUT = 20  # rows in validation and test together, out of which the drift reference is made
GROUP = 50  # so many batches are sorted by length together: little padding, and still well shuffled

log = logging.getLogger(__name__)


def silent(share: float, message: str) -> None:
    """The progress of somebody who does not look."""


@dataclass(frozen=True)
class Settings:
    """How to train; each may come from outside as a variable of the same name.

    `warmup` is a share of all steps. `frozen_layers` above 0 freezes the embeddings and that many of the lowest
    layers. `patience` is the number of epochs without gain that end the training. `max_rows` 0 takes every row,
    `minutes` 0 sets no limit.
    """

    encoder_name: str = encoders.DEFAULT
    learning_rate: float = 1e-4
    epochs: int = 3
    batch_size: int = 32
    max_tokens: int = 256
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    frozen_layers: int = 0
    patience: int = 2
    max_rows: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        least = {"learning_rate": 1e-12, "epochs": 1, "batch_size": 1, "max_tokens": 3, "patience": 1, "max_rows": 0}
        low = [f"{name} must be at least {value}" for name, value in least.items() if not getattr(self, name) >= value]
        if low:
            raise WrongSetting("; ".join(low))


def chosen(values: Mapping[str, str]) -> Settings:
    """Settings from texts by name, as a training job gets them; WrongSetting names each that is unknown or wrong."""
    own = {name: value for name, value in values.items() if not name.startswith("sagemaker_")}
    known = [field.name for field in fields(Settings)]
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise WrongSetting(f"unknown training settings {', '.join(unknown)}: there are {', '.join(known)}")
    return settings_of.read(Settings, {name.upper(): value for name, value in own.items()})


@dataclass(frozen=True, slots=True)
class Result(Record):
    """What one training did; `accuracy` is that of the kept epoch on the validation split.

    `tokens_per_second` counts the real tokens of the training passes. `history` has one entry an epoch.
    """

    encoder: str
    notice: str
    settings: dict[str, Any]
    labels: list[str]
    rows: int
    steps: int
    accuracy: float
    seconds: float
    tokens_per_second: float
    device: str
    bf16: bool
    history: list[dict[str, float]]
    metric: float = 0.0
    paused: bool = False
    padding: float = 0.0
    peak_memory_mb: float = 0.0
    code: str = ""
    losses: list[list[float]] = field(default_factory=list)
    encoder_sha256: str = ""


def finetune(encoder: Path, dataset: Path, settings: Settings, out: Path, progress: Progress = silent) -> Result:
    """Train a classifier on a prepared dataset; the epoch that is best on the validation split is kept in `out`.

    The same seed, data and settings give the same weights on the same device with the same number of threads.
    Raises BadDataset, WrongSetting, or TrainingFailed when the loss is no longer a number.
    """
    began = time.monotonic()
    manifest = datasets.read_manifest(dataset)
    labels = manifest.labels
    train, validation = datasets.read(dataset, "train"), datasets.read(dataset, "validation")
    if len(labels) < 2 or not train or not validation:
        raise BadDataset(
            f"dataset {manifest.id} has {len(labels)} labels, {len(train)} training rows and {len(validation)} "
            "validation rows: a classifier needs two labels or more, and rows in both splits"
        )
    held_out = sum(sum(manifest.counts[split].values()) for split in ("validation", "test"))
    if held_out < HELD_OUT:
        raise BadDataset(
            f"dataset {manifest.id} holds out {held_out} rows: {HELD_OUT} are the least that drift can be judged by"
        )
    if 0 < settings.max_rows < len(train):
        kept = np.random.default_rng(settings.seed).permutation(len(train))[: settings.max_rows]
        train = [train[i] for i in sorted(kept)]

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_truncation(settings.max_tokens)
    train_ids = [np.array(e.ids) for e in tokenizer.encode_batch([row.text for row in train])]
    validation_ids = [np.array(e.ids) for e in tokenizer.encode_batch([row.text for row in validation])]
    train_truth = torch.tensor([labels.index(row.label) for row in train])
    validation_truth = np.array([labels.index(row.label) for row in validation])

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    steps_per_epoch = math.ceil(len(train_ids) / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    warm = max(1, round(total * settings.warmup))
    history: list[dict[str, float]] = []
    curve: list[list[float]] = []
    best: dict[str, torch.Tensor] = {}
    best_accuracy, stale, step, tokens, training_seconds = -1.0, 0, 0, 0, 0.0
    limit = began + settings.minutes * 60 if settings.minutes else math.inf
    said = began

    with _reproducible(settings.seed, device), tqdm(total=total, unit="batch", disable=None) as bar:
        model = _classifier(encoder, labels, settings, device)
        trained = [p for p in model.parameters() if p.requires_grad]
        # Biases and layer norms are not decayed: decay would pull them from the scale that they set.
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        shuffle = np.random.default_rng(settings.seed)
        for epoch in range(settings.epochs):
            model.train()
            epoch_began, losses, seen = time.monotonic(), 0.0, 0
            for rows in _batches([len(ids) for ids in train_ids], settings.batch_size, shuffle):
                rate = (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * rate
                ids, mask = _padded([train_ids[i] for i in rows], model.config, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = model(input_ids=ids, attention_mask=mask).logits
                loss = nn.functional.cross_entropy(logits.float(), train_truth[rows].to(device))
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, CLIP)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingFailed(f"the loss is {value} after {step} steps: lower learning_rate")
                losses, seen = losses + value * len(rows), seen + len(rows)
                curve.append([step, value])
                tokens += sum(len(train_ids[i]) for i in rows)
                now = time.monotonic()
                speed = tokens / (training_seconds + now - epoch_began)
                message = f"epoch {epoch + 1} of {settings.epochs}, loss {value:.3f}, {speed:.0f} tokens/s"
                bar.update()
                bar.set_postfix_str(message, refresh=False)
                progress(step / total, message)
                if bar.disable and now - said >= LOG_SECONDS:
                    said = now
                    log.info("step %d of %d: %s", step, total, message)
                if now > limit:
                    break
            training_seconds += time.monotonic() - epoch_began
            predicted = _predict(model, validation_ids, settings.batch_size, device, bf16)
            accuracy = float((predicted == validation_truth).mean())
            f1 = metrics.quality([labels[i] for i in validation_truth], [labels[i] for i in predicted], labels).f1_macro
            measured = {"loss": losses / seen, "accuracy": accuracy, "f1_macro": f1}
            history.append({"step": step, "epoch": epoch + 1, **measured})
            log.info("epoch %d: validation accuracy %.4f", epoch + 1, accuracy)
            stale += 1
            if accuracy > best_accuracy:
                best_accuracy, stale = accuracy, 0
                best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if stale >= settings.patience or time.monotonic() > limit:
                break
        model.load_state_dict(best)
        encoders.save(model, out)

    for file in ("tokenizer.json", "NOTICE", "LICENSE"):
        if (encoder / file).is_file():
            shutil.copyfile(encoder / file, out / file)
    facts = json.loads((encoder / encoders.FACTS).read_text())
    return Result(
        encoder=facts["name"],
        notice=facts["notice"],
        settings=asdict(settings),
        labels=labels,
        rows=len(train),
        steps=step,
        accuracy=best_accuracy,
        seconds=round(time.monotonic() - began, 3),
        tokens_per_second=round(tokens / training_seconds, 1),
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        bf16=bf16,
        history=history,
        metric=best_accuracy,
        losses=curve,
        encoder_sha256=facts["sha256"],
    )


def _classifier(
    encoder: Path, labels: list[str], settings: Settings, device: torch.device
) -> transformers.PreTrainedModel:
    """The encoder with a fresh head, its lowest layers frozen as asked."""
    with quiet():
        config = transformers.AutoConfig.from_pretrained(encoder)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
        # Dropout of the attention draws a random number for each pair of tokens: a quarter of the time on a CPU.
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        # Fused attention has no deterministic backward pass on a GPU, and the slower one on a CPU.
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            encoder, config=config, attn_implementation="eager"
        )
    positions = model.config.max_position_embeddings
    if settings.max_tokens > positions:
        raise WrongSetting(f"max_tokens is {settings.max_tokens}, but the encoder has {positions} positions")
    base = model.base_model
    layers = (base.transformer if hasattr(base, "transformer") else base.encoder).layer
    if not 0 <= settings.frozen_layers <= len(layers):
        raise WrongSetting(f"frozen_layers is {settings.frozen_layers}, but the encoder has {len(layers)} layers")
    if settings.frozen_layers:
        for part in (base.embeddings, *layers[: settings.frozen_layers]):
            part.requires_grad_(False)
    return model.to(device)


def _predict(
    model: transformers.PreTrainedModel, texts: list[NDArray[Any]], size: int, device: torch.device, bf16: bool
) -> NDArray[np.int64]:
    model.eval()
    predicted = np.zeros(len(texts), dtype=np.int64)
    order = np.argsort([len(ids) for ids in texts], kind="stable")
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            ids, mask = _padded([texts[i] for i in rows], model.config, device)
            predicted[rows] = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).cpu().numpy()
    return predicted


def _batches(lengths: list[int], size: int, shuffle: np.random.Generator) -> Iterator[NDArray[Any]]:
    """Row numbers of one epoch's batches, in random order, rows of like length together."""
    order = shuffle.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), size * GROUP):
        block = order[start : start + size * GROUP]
        block = block[np.argsort(np.array(lengths)[block], kind="stable")]
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    for i in shuffle.permutation(len(batches)):
        yield batches[i]


def _padded(
    texts: list[NDArray[Any]], config: transformers.PreTrainedConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # Each new width makes the CPU's matrix library compile its kernels anew; with multiples of 8 there are few.
    width = min(-(-max(len(text) for text in texts) // 8) * 8, config.max_position_embeddings)
    ids = np.full((len(texts), width), config.pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and ask a GPU for deterministic kernels, and leave both as they were found."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if device.type == "cuda":  # the CPU's kernels that are used here are deterministic, and the check costs time
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting that the head is new, which is meant, and from drawing bars into a log."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
