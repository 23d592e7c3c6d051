"""The model that learns: one step over its passes, what it predicts, and what a checkpoint has to hold of it.

Several processes may hold a copy each (retrue.training.cluster); every method is then called by all of them.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retrue.errors import WrongSetting
from retrue.training import batches
from retrue.training.cluster import Cluster
from retrue.training.settings import Settings
from retrue.training.tokens import Tokens

CLIP = 1.0
# Tokens of a pass: on a CPU what the caches hold, since a larger one is slower; on a GPU what fills it.
BUDGETS = {"cpu": 1_024, "cuda": 32_768}
VALIDATED = 2  # passes without gradients are so many times larger


@dataclass(frozen=True)
class Seen:
    """One step: its mean loss, the tokens of its texts, and those that were fed, padding included."""

    loss: float
    real: int
    fed: int


class Learner:
    """An encoder with a fresh head, its optimiser, and where they run."""

    def __init__(self, encoder: Path, labels: list[str], settings: Settings, cluster: Cluster) -> None:
        self.settings, self.cluster = settings, cluster
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", cluster.local) if cuda else torch.device("cpu")
        self.budget = settings.batch_tokens or BUDGETS[self.device.type]
        self.bf16 = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        self.model = _classifier(encoder, labels, settings).to(self.device)
        self.optimizer = torch.optim.AdamW(_groups(self.model, settings), lr=settings.learning_rate, fused=True)
        if settings.compile:
            self.model.compile(dynamic=True)
        self.copies: nn.Module = self.model
        if cluster.size > 1:
            self.copies = DistributedDataParallel(self.model, [cluster.local] if cuda else None)
        torch.manual_seed(settings.seed + cluster.rank)  # each process drops other numbers

    def learn(self, tokens: Tokens, truth: torch.Tensor, rows: batches.Rows, rate: float) -> Seen:
        """Take one step on these rows, at a share `rate` of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * group["scale"] * rate
        mine = rows[self.cluster.rank :: self.cluster.size]
        # The processes wait for each other's gradients, so one without a row lends a hand that weighs nothing.
        weight = 1 / len(rows) if len(mine) else 0.0
        passes = batches.passes(mine if len(mine) else rows[:1], tokens.lengths, self.budget)
        self.model.train()
        sums = torch.zeros(3, dtype=torch.float64)
        for number, part in enumerate(passes, 1):
            ids, mask = batches.padded(tokens, part, self.model.config.pad_token_id, self.device)
            with self._alone(number < len(passes)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.copies(input_ids=ids, attention_mask=mask).logits
                loss = weight * nn.functional.cross_entropy(
                    logits.float(), truth[part], reduction="sum", label_smoothing=self.settings.label_smoothing
                )
                # The processes' gradients are averaged.
                (loss * self.cluster.size).backward()  # type: ignore[no-untyped-call]
            if len(mine):
                sums += torch.tensor([loss.item(), tokens.lengths[part].sum(), ids.numel()], dtype=torch.float64)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        total, real, fed = self.cluster.total(sums.to(self.device)).tolist()
        return Seen(total, round(real), round(fed))

    def predict(self, tokens: Tokens) -> NDArray[np.int64]:
        """The column of the likeliest label for each text."""
        self.model.eval()
        predicted = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
        mine = np.arange(len(tokens))[self.cluster.rank :: self.cluster.size]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for part in batches.passes(mine, tokens.lengths, VALIDATED * self.budget):
                ids, mask = batches.padded(tokens, part, self.model.config.pad_token_id, self.device)
                predicted[part] = self.model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        return self.cluster.total(predicted).cpu().numpy()

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the model's parameters."""
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Parameters, the optimiser's moments, and each process's random numbers."""
        numbers = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            numbers["cuda"] = torch.cuda.get_rng_state(self.device)
        random = self.cluster.gather(numbers)
        return {"model": self.weights(), "optimizer": self.optimizer.state_dict(), "random": random}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        numbers = state["random"][self.cluster.rank]
        torch.set_rng_state(numbers["cpu"])
        if "cuda" in numbers:
            torch.cuda.set_rng_state(numbers["cuda"], self.device)

    def leave(self) -> None:
        """Learn no more, so that the processes can part.

        The copies' last reference to the group of processes would end it while Python's lock is held, for which the
        group's own thread may be waiting.
        """
        self.copies = self.model

    def peak_memory_mb(self) -> float:
        """The most memory that was used: the GPU's where there is one, else this process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"{self.cluster.size} × {torch.cuda.get_device_name(self.device)}"
        return f"cpu, {self.cluster.size} × {torch.get_num_threads()} threads"

    def _alone(self, more: bool) -> Any:
        """Gradients of all passes but the last stay with their process until then."""
        return self.copies.no_sync() if more and isinstance(self.copies, DistributedDataParallel) else nullcontext()


def _classifier(encoder: Path, labels: list[str], settings: Settings) -> transformers.PreTrainedModel:
    """The encoder with a fresh head, its lowest layers frozen as asked."""
    with quiet():
        config = transformers.AutoConfig.from_pretrained(encoder)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
        # Dropout of the attention draws a random number for each pair of tokens: up to 40 % of the time on a CPU.
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            encoder, config=config, attn_implementation="sdpa"
        )
    positions = model.config.max_position_embeddings
    if settings.max_tokens > positions:
        raise WrongSetting(f"max_tokens is {settings.max_tokens}, but the encoder has {positions} positions")
    levels = _levels(model)
    if settings.frozen_layers >= len(levels):
        raise WrongSetting(f"frozen_layers is {settings.frozen_layers}, but the encoder has {len(levels) - 1} layers")
    if settings.frozen_layers:
        for part in levels[: settings.frozen_layers + 1]:
            part.requires_grad_(False)
    return model


def _levels(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """The embeddings, and the layers from the lowest up."""
    base = model.base_model
    return [base.embeddings, *(base.transformer if hasattr(base, "transformer") else base.encoder).layer]


def _groups(model: transformers.PreTrainedModel, settings: Settings) -> list[dict[str, Any]]:
    """Parameters by their decay and by their share of the learning rate."""
    levels = _levels(model)
    level_of = {id(p): level for level, part in enumerate(levels) for p in part.parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        scale = settings.layer_decay ** (len(levels) - level_of.get(id(parameter), len(levels)))
        # Biases and layer norms are not decayed: decay would pull them from the scale that they set.
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and ask a GPU for deterministic kernels, and leave both as they were found."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if torch.cuda.is_available():  # the CPU's kernels that are used are deterministic, and the check costs time
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
