"""A study on this machine: one training, or the trials of a search one after another, rung by rung.

folder/search.json               the plan, the rung that runs, and what became of each trial so far
folder/<trial>/checkpoints/      where a trial goes on from, in its next rung or after an interruption
folder/<trial>/trained/          what the last rung left: the checkpoint that export takes
folder/<trial>/result.json       its Result
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from retrue import search
from retrue.errors import TrainingFailed, WrongSetting
from retrue.search import Plan, Search, Trial
from retrue.training.finetune import Progress, Result, finetune, never, silent
from retrue.training.settings import chosen

SEARCH, TRAINED, RESULT = "search.json", "trained", "result.json"
Heard = Callable[[Search], None]


def key(encoder: Path, dataset: Path, values: Mapping[str, str], plan: Plan) -> str:
    """The name of a study, from all that decides its outcome: the same wish finds its folder again."""
    facts = json.loads((encoder / "encoder.json").read_text())
    told = json.dumps([facts["sha256"], dataset.name, sorted(values.items()), json.loads(plan.to_json())])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def run(
    encoder: Path,
    dataset: Path,
    values: Mapping[str, str],
    plan: Plan,
    folder: Path,
    heard: Heard,
    progress: Progress = silent,
    stop: Callable[[], bool] = never,
) -> Search:
    """Train each trial of each rung and go on where a former run was interrupted; the search after its last rung.

    `values` are the settings that all trials share, `heard` gets the search before each trial and at the end. A trial
    whose settings do not fit or whose loss runs away only counts as failed. Raises what `finetune` raises of encoder
    and dataset, and KeyboardInterrupt when `stop` says so, with all that was reached kept in `folder`.
    """
    kept = folder / SEARCH
    found = Search.from_json(kept.read_text()) if kept.is_file() else Search.begin(plan)
    while found.running:
        for trial in [trial for trial in found.running if trial.rungs <= found.rung]:
            heard(found)
            found = found.replaced(_train(encoder, dataset, values, found, trial, folder, progress, stop))
            _write(kept, found.to_json())
        found = search.halve(found)
        _write(kept, found.to_json())
    heard(found)
    return found


def trained(folder: Path, trial: Trial) -> tuple[Path, Result]:
    """The checkpoint that a trial's last rung left, and its Result: what `export` wants."""
    return folder / trial.name / TRAINED, Result.from_json((folder / trial.name / RESULT).read_text())


def _train(
    encoder: Path,
    dataset: Path,
    values: Mapping[str, str],
    found: Search,
    trial: Trial,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool],
) -> Trial:
    """One trial through the rung that runs."""
    share, seconds = found.plan.shares[found.rung], found.plan.seconds[found.rung]
    own = {"until": str(share), **({"minutes": f"{seconds / 60:.2f}"} if seconds else {})}
    place = folder / trial.name
    place.mkdir(parents=True, exist_ok=True)
    try:
        settings = chosen({**values, **trial.settings, **own})
        result = finetune(
            encoder, dataset, settings, place / TRAINED, progress, checkpoints=place / "checkpoints", stop=stop
        )
    except (TrainingFailed, WrongSetting, torch.OutOfMemoryError) as error:
        return dataclasses.replace(trial, state="failed", error=str(error))
    if stop():
        raise KeyboardInterrupt("everything that was reached is kept: the same command goes on from there")
    _write(place / RESULT, result.to_json())
    return dataclasses.replace(
        trial,
        rungs=found.rung + 1,
        metric=result.metric,
        seconds=result.seconds,
        history=result.history,
        losses=result.losses,
    )


def _write(path: Path, text: str) -> None:
    """Whoever reads finds the old text or the new one, also when this process is killed here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)
