"""Fine-tuning in one function with its loop in the open."""

import hashlib
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

import retrue
from retrue import dataset as datasets
from retrue import metrics, replay
from retrue.dataset import Example, Manifest
from retrue.errors import BadDataset, Interrupted, TrainingFailed, WrongSetting
from retrue.records import Record
from retrue.training import batches, checkpoint, tokens
from retrue.training import encoder as encoders
from retrue.training.cluster import joined
from retrue.training.learner import Learner, reproducible
from retrue.training.settings import Settings
from retrue.training.tokens import Tokens

Progress = Callable[[float, str], None]
LOG_SECONDS = 60.0
CURVE = 500  # points of the loss curve that are kept at most
HELD_OUT = 20  # rows in validation and test together, out of which the drift reference is made
# Settings that may differ between the training that left a state and the one that takes it up.
INDIFFERENT = {"encoder_name", "until", "minutes", "checkpoint_minutes", "compile"}

log = logging.getLogger(__name__)


def silent(share: float, message: str) -> None:
    """The progress of somebody who does not look."""


def never() -> bool:
    """The wish to stop of somebody who has none."""
    return False


@dataclass(frozen=True, slots=True)
class Result(Record):
    """What one training did; `metric` and `accuracy` are those of the kept state on the validation split.

    `tokens_per_second` counts the real tokens of the training steps, `padding` is the share of the others among all.
    `history` has one entry an evaluation, `losses` pairs of step and mean loss since the pair before. With `paused` the
    training has not ended: its state lies in the checkpoints, and there is no model yet.
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
    encoder_sha256: str = ""
    losses: list[list[float]] = field(default_factory=list)


@dataclass
class State:
    """How far a training is: what a checkpoint has to hold beside the learner."""

    step: int = 0
    real: int = 0  # tokens of texts
    fed: int = 0  # the same with padding
    learning: float = 0.0  # seconds in steps
    seconds: float = 0.0  # all of them
    best: float = -1.0
    accuracy: float = 0.0  # of the best
    mark: float = -1.0  # what counts as the last gain
    stale: int = 0  # evaluations since
    over: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    lost: float = 0.0  # losses since the last point of the curve
    summed: int = 0  # steps since


def finetune(
    encoder: Path,
    dataset: Path,
    settings: Settings,
    out: Path,
    progress: Progress = silent,
    *,
    checkpoints: Path | None = None,
    cache: Path | None = None,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train a classifier on a prepared dataset; what is best on the validation split is kept in `out`.

    The same seed, data and settings give the same weights on the same device with the same number of threads, also
    where the training was stopped between: what lies in `checkpoints` is taken up, if it is of this very training.
    `cache` keeps token ids for trainings that share them. `stop` is asked after each step. Under torchrun every
    process calls this, and the first one writes. Raises BadDataset, WrongSetting, Interrupted after `stop` said yes,
    or TrainingFailed when the loss is no longer a number.
    """
    began = time.monotonic()
    if settings.until < 1 and checkpoints is None:
        raise WrongSetting("until is below 1, which needs a folder for checkpoints to pause in")
    manifest = datasets.read_manifest(dataset)
    train, validation = _examples(dataset, manifest, settings)
    facts = json.loads((encoder / encoders.FACTS).read_text())
    with joined() as cluster, _kept(cache) as folder, reproducible(settings.seed):
        with cluster.first_on_each_node():
            own, held = (_tokens(encoder, settings, folder, rows) for rows in (train, validation))
        learner = Learner(encoder, manifest.labels, settings, cluster)
        truth = torch.tensor([manifest.labels.index(row.label) for row in train], device=learner.device)
        recent = np.array([row.source == "feedback" for row in train])
        per_epoch = math.ceil(len(train) / settings.batch_size)
        total = per_epoch * settings.epochs
        goal = math.ceil(total * settings.until)
        due = {math.ceil(per_epoch * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}

        decisive = {name: value for name, value in asdict(settings).items() if name not in INDIFFERENT}
        name = checkpoint.fingerprint(
            settings=decisive, dataset=manifest.id, encoder=facts["sha256"], processes=cluster.size, code=code()
        )
        state, best = State(), learner.weights()
        if found := cluster.share(checkpoint.load(checkpoints, name) if checkpoints and cluster.leads else None):
            state, best = State(**found["state"]), found["best"]
            learner.restore(found["learner"])
            log.info("going on after step %d of %d", state.step, total)
        before = state.seconds

        def save() -> None:
            kept = {"state": asdict(state), "best": best, "learner": learner.state()}
            if checkpoints and cluster.leads:
                checkpoint.save(checkpoints, name, kept)

        def evaluated() -> dict[str, float]:
            entry = _evaluated(learner, held, validation, manifest.labels, state.step, per_epoch)
            since = state.history[-1]["step"] if state.history else 0
            losses = [loss for step, loss in state.losses if step > since] or [state.lost / state.summed]
            return entry | {"loss": sum(losses) / len(losses)}

        saved = said = time.monotonic()
        plan = _plan(settings, own.lengths, recent, state.step)
        with tqdm(total=goal, initial=state.step, unit="step", disable=None if cluster.leads else True) as bar:
            while not state.over and state.step < goal:
                ticked = time.monotonic()
                seen = learner.learn(own, truth, next(plan), _rate(state.step, total, settings.warmup))
                now = time.monotonic()
                state.step += 1
                state.learning += now - ticked
                state.seconds = before + now - began
                state.real, state.fed = state.real + seen.real, state.fed + seen.fed
                state.lost, state.summed = state.lost + seen.loss, state.summed + 1
                if not math.isfinite(seen.loss):
                    raise TrainingFailed(f"the loss is {seen.loss} after {state.step} steps: lower learning_rate")
                if state.summed >= total / CURVE or state.step == total:
                    state.losses.append([state.step, state.lost / state.summed])
                    state.lost, state.summed = 0.0, 0

                late, ripe, stopped = cluster.any_of(
                    bool(settings.minutes) and state.seconds > settings.minutes * 60,
                    now - saved > settings.checkpoint_minutes * 60,
                    stop(),
                )
                if (state.step - 1) % per_epoch + 1 in due or late:
                    state.history.append(evaluated())
                    value = state.history[-1][settings.metric]
                    if value >= state.best:  # of equals the one that has learned for longer
                        state.best, state.accuracy, best = value, state.history[-1]["accuracy"], learner.weights()
                    state.stale += 1
                    if value > state.mark and value >= state.mark + settings.min_gain:
                        state.mark, state.stale = value, 0
                    exhausted = state.stale >= settings.patience * len(due)
                    state.over = exhausted or late or state.step == total
                if checkpoints and (ripe or stopped or state.over or state.step == goal):
                    save()
                    saved = time.monotonic()
                if stopped and not state.over and state.step < goal:
                    raise Interrupted(f"the training was stopped from outside after step {state.step} of {total}")

                message = (
                    f"epoch {(state.step - 1) // per_epoch + 1} of {settings.epochs}, loss {seen.loss:.3f}, "
                    f"{state.real / state.learning:.0f} tokens/s"
                )
                bar.update()
                bar.set_postfix_str(message, refresh=False)
                progress(state.step / goal, message)
                if bar.disable and cluster.leads and now - said >= LOG_SECONDS:
                    said = now
                    log.info("step %d of %d: %s", state.step, total, message)

        history, metric, accuracy = state.history, state.best, state.accuracy
        if not state.over and (not history or history[-1]["step"] < state.step):
            # The pause is no evaluation that the settings ask for: it is told, and the training that goes on knows
            # nothing of it.
            entry = evaluated()
            history = [*history, entry]
            if entry[settings.metric] >= metric:
                metric, accuracy = entry[settings.metric], entry["accuracy"]
        learner.leave()
        if state.over and cluster.leads:
            learner.model.load_state_dict(best)
            encoders.save(learner.model, out)
            for file in ("tokenizer.json", "NOTICE", "LICENSE"):
                if (encoder / file).is_file():
                    shutil.copyfile(encoder / file, out / file)
        return Result(
            encoder=facts["name"],
            notice=facts["notice"],
            settings=asdict(settings) | {"encoder_name": facts["name"]},  # whatever it was called where it was chosen
            labels=manifest.labels,
            rows=len(train),
            steps=state.step,
            accuracy=accuracy,
            seconds=round(before + time.monotonic() - began, 3),
            tokens_per_second=round(state.real / state.learning, 1),
            device=str(learner),
            bf16=learner.bf16,
            history=history,
            metric=metric,
            paused=not state.over,
            padding=round(1 - state.real / state.fed, 4),
            peak_memory_mb=round(learner.peak_memory_mb(), 1),
            code=code(),
            encoder_sha256=facts["sha256"],
            losses=state.losses,
        )


def code() -> str:
    """What names the version of this program: the hash of its files."""
    root = Path(retrue.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _examples(dataset: Path, manifest: Manifest, settings: Settings) -> tuple[list[Example], list[Example]]:
    """The rows to train on and those to validate on."""
    train, validation = datasets.read(dataset, "train"), datasets.read(dataset, "validation")
    if len(manifest.labels) < 2 or not train or not validation:
        raise BadDataset(
            f"dataset {manifest.id} has {len(manifest.labels)} labels, {len(train)} training rows and "
            f"{len(validation)} validation rows: a classifier needs two labels or more, and rows in both splits"
        )
    held_out = sum(sum(manifest.counts[split].values()) for split in ("validation", "test"))
    if held_out < HELD_OUT:
        raise BadDataset(
            f"dataset {manifest.id} holds out {held_out} rows: {HELD_OUT} are the least that drift can be judged by"
        )
    if 0 < settings.max_rows < len(train):
        kept = np.random.default_rng(settings.seed).permutation(len(train))[: settings.max_rows]
        train = [train[i] for i in sorted(kept)]
    return train, validation


def _tokens(encoder: Path, settings: Settings, folder: Path, rows: list[Example]) -> Tokens:
    """The token ids of rows, made once for all trainings that share tokenizer, cut and texts."""
    file = encoder / "tokenizer.json"
    digest = hashlib.sha256(file.read_bytes() + f" {settings.max_tokens} {settings.cut}".encode())
    for row in rows:
        digest.update(row.text.encode() + b"\0")
    texts = [row.text for row in rows]
    return tokens.write(
        folder / digest.hexdigest()[:16], Tokenizer.from_file(str(file)), texts, settings.max_tokens, settings.cut
    )


def _plan(
    settings: Settings, lengths: NDArray[np.int64], recent: NDArray[np.bool_], done: int
) -> Iterator[batches.Rows]:
    """The rows of each step after those that are done; every epoch is shuffled by its own number."""
    per_epoch = math.ceil(len(lengths) / settings.batch_size)
    for epoch in range(done // per_epoch, settings.epochs):
        shuffle = np.random.default_rng([settings.seed, epoch])
        rows = replay.epoch(recent, settings.replay_share, shuffle)
        steps = batches.steps(rows, lengths, settings.batch_size, shuffle)
        yield from steps[max(0, done - epoch * per_epoch) :]


def _rate(step: int, total: int, warmup: float) -> float:
    """The share of the learning rate in a step: up in a line over the warm-up, then down in a line to nothing."""
    warm = max(1, round(total * warmup))
    return (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)


def _evaluated(
    learner: Learner, held: Tokens, rows: list[Example], labels: list[str], step: int, per_epoch: int
) -> dict[str, float]:
    predicted = [labels[column] for column in learner.predict(held)]
    found = metrics.quality([row.label for row in rows], predicted, labels)
    epoch = round(step / per_epoch, 3)
    if learner.cluster.leads:
        log.info("epoch %g: validation accuracy %.4f, macro F1 %.4f", epoch, found.accuracy, found.f1_macro)
    return {"step": step, "epoch": epoch, "accuracy": found.accuracy, "f1_macro": found.f1_macro}


@contextmanager
def _kept(cache: Path | None) -> Iterator[Path]:
    """The folder of the caller, or one for the time being."""
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
