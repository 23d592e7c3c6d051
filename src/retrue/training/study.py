"""A study on this machine: one training, or the trials of a search one after another, rung by rung.

folder/search.json               the plan, the rung that runs, and what became of each trial so far
folder/tokens/                   token ids, made once for trials that share them
folder/<trial>/checkpoints/      where a trial goes on from, in its next rung or after an interruption
folder/<trial>/trained/          what the last rung left: the checkpoint that export takes
folder/<trial>/result.json       its Result
folder/model/                    the winner's sealed model folder
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from retrue import search
from retrue.errors import TrainingFailed, WrongSetting
from retrue.search import Plan, Search, Trial
from retrue.training.export import export
from retrue.training.finetune import Progress, Result, finetune, never, silent
from retrue.training.settings import chosen

SEARCH, TOKENS, MODEL = "search.json", "tokens", "model"
CHECKPOINTS, TRAINED, RESULT = "checkpoints", "trained", "result.json"
START_SECONDS = 20.0  # what a rung takes before its first step
Heard = Callable[[Search], None]


def plan(values: Mapping[str, str], trials: Sequence[dict[str, str]], hours: float) -> Plan:
    """The rungs of trials that share `values`; WrongSetting where the settings of one are none."""
    for trial in trials:
        chosen({**values, **trial})
    return search.plan(trials, hours * 3600, START_SECONDS, hours * 3600)


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
    whose settings do not fit, whose loss runs away or which needs more memory than there is only counts as failed.
    Raises what else `finetune` raises, Interrupted among it; all that was reached is kept in `folder`.
    """
    kept = folder / SEARCH
    found = Search.from_json(kept.read_text()) if kept.is_file() else Search.begin(plan)
    if not any(trial.state in ("running", "finished") for trial in found.trials):
        found = Search.begin(plan)  # nothing came of it, and whoever asks again has changed something
    while found.running:
        for trial in [trial for trial in found.running if trial.rungs <= found.rung]:
            heard(found)
            found = found.replaced(_train(encoder, dataset, values, found, trial, folder, progress, stop))
            _write(kept, found.to_json())
        found = search.halve(found)
        _write(kept, found.to_json())
        for trial in found.trials:
            if trial.state != "running":  # a checkpoint is three times the size of its model
                shutil.rmtree(folder / trial.name / CHECKPOINTS, ignore_errors=True)
    heard(found)
    return found


def finish(dataset: Path, folder: Path, found: Search, created: str) -> Path:
    """Export the winner just as its last rung left it; the sealed model folder. Raises what `export` raises."""
    winner = folder / search.winner(found).name
    result = Result.from_json((winner / RESULT).read_text())
    shutil.rmtree(folder / MODEL, ignore_errors=True)  # of an export that was interrupted
    return export(winner / TRAINED, dataset, result, folder / MODEL, created=created)


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
    # The training counts its minutes since its very beginning.
    own = {"until": str(share), **({"minutes": f"{(trial.seconds + seconds) / 60:.2f}"} if seconds else {})}
    place = folder / trial.name
    place.mkdir(parents=True, exist_ok=True)
    try:
        settings = chosen({**values, **trial.settings, **own})
        result = finetune(
            encoder, dataset, settings, place / TRAINED, progress,
            checkpoints=place / CHECKPOINTS, cache=folder / TOKENS, stop=stop,
        )  # fmt: skip
    except (TrainingFailed, WrongSetting, torch.OutOfMemoryError) as error:
        return dataclasses.replace(trial, state="failed", error=str(error))
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
