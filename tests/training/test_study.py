"""Trials on this machine: real trainings of a second or two, halved, interrupted, and exported."""

import dataclasses
from pathlib import Path

import pytest

from retrue import dataset, search
from retrue.dataset import Example
from retrue.errors import Interrupted, TrainingFailed, WrongSetting
from retrue.search import Plan, Search
from retrue.training import study

BASE = {"epochs": "3", "max_tokens": "16"}
# The last has more layers frozen than there are.
RATES = [{"learning_rate": rate, "frozen_layers": "0"} for rate in ("1e-7", "5e-3", "1e-6")]
TRIALS = [*RATES, {"learning_rate": "5e-3", "frozen_layers": "9"}]
CREATED = "2026-01-01T00:00:00.000Z"


def quiet(found: Search) -> None:
    """Hears nothing."""


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which one word is the label, so that a good rate learns in a few steps and a tiny one never."""
    words = {"bad": "dull", "good": "wonderful"}
    rows = [Example(f"a {word} film number {n}", label) for n in range(300) for label, word in words.items()]
    return dataset.write(tmp_path_factory.mktemp("datasets"), {"train": rows}, name="easy", source="made for a test")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return study.plan(BASE, TRIALS, 0)


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, easy: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran to its end at once."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    study.run(tiny_encoder, easy, BASE, plan, folder, quiet)
    return folder


def read(folder: Path) -> Search:
    return Search.from_json((folder / study.SEARCH).read_text())


def test_the_one_that_learns_wins_and_the_worst_is_not_trained_to_the_end(whole: Path) -> None:
    found = read(whole)
    ends = [(trial.state, trial.rungs) for trial in found.trials]
    assert (ends[1], ends[3]) == (("finished", 2), ("failed", 0))
    # Neither of the others learns anything, so it is chance which of them is second.
    assert sorted([ends[0], ends[2]]) == [("finished", 2), ("stopped early", 1)]
    winner = search.winner(found)
    assert winner.settings == TRIALS[1]
    assert winner.metric is not None
    assert winner.metric > 0.95
    assert "frozen_layers is 9, but the encoder has" in found.trials[3].error
    steps = sorted(trial.history[-1]["step"] for trial in found.trials[:3])
    assert steps[1] == steps[2]
    assert steps[0] == pytest.approx(steps[2] / 3, abs=1)
    assert not list(whole.glob("*/checkpoints")), "they are three times the size of a model"


def test_a_trial_that_paused_ends_as_one_that_never_did(
    whole: Path, tiny_encoder: Path, easy: Path, tmp_path: Path
) -> None:
    alone = study.plan(BASE, [TRIALS[1]], 0)
    assert alone.shares == [1.0]
    found = study.run(tiny_encoder, easy, BASE, alone, tmp_path, quiet)
    assert found.trials[0].metric == search.winner(read(whole)).metric
    assert found.trials[0].history == search.winner(read(whole)).history


@pytest.mark.parametrize("calls", [3, 20, 60])
def test_an_interrupted_search_goes_on_where_it_stopped(
    whole: Path, tiny_encoder: Path, easy: Path, plan: Plan, tmp_path: Path, calls: int
) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > calls

    with pytest.raises(Interrupted):
        study.run(tiny_encoder, easy, BASE, plan, tmp_path, quiet, stop=stop)
    heard: list[Search] = []
    found = study.run(tiny_encoder, easy, BASE, plan, tmp_path, heard.append)
    assert outcome(found) == outcome(read(whole))
    again: list[Search] = []
    assert study.run(tiny_encoder, easy, BASE, plan, tmp_path, again.append) == found
    assert len(again) == 1  # nothing was trained


def outcome(found: Search) -> list[tuple[str, float | None, list[dict[str, float]]]]:
    return [(trial.state, trial.metric, trial.history) for trial in found.trials]


def test_settings_that_are_none_are_told_before_anything_is_trained() -> None:
    with pytest.raises(WrongSetting, match="batch_size"):
        study.plan(BASE, [{"batch_size": "16"}, {"batch_size": "0"}], 0)
    with pytest.raises(WrongSetting, match="rate"):
        study.plan({"rate": "1"}, [{}], 0)


def test_hours_become_the_time_that_each_trial_gives_itself() -> None:
    plan = study.plan(BASE, TRIALS, 2.0)
    assert 1.9 < plan.hours <= 2.0
    assert study.plan(BASE, TRIALS, 0).seconds == [0, 0]


def test_a_study_of_other_data_or_settings_has_another_folder(
    tiny_encoder: Path, easy: Path, tmp_path: Path, plan: Plan
) -> None:
    names = {
        study.key(tiny_encoder, easy, BASE, plan),
        study.key(tiny_encoder, tmp_path / "other", BASE, plan),
        study.key(tiny_encoder, easy, {**BASE, "epochs": "4"}, plan),
        study.key(tiny_encoder, easy, BASE, dataclasses.replace(plan, settings=TRIALS[:3])),
    }
    assert len(names) == 4
    same = study.key(tiny_encoder, easy, dict(reversed(BASE.items())), plan)
    assert same == study.key(tiny_encoder, easy, BASE, plan)


def test_where_every_trial_fails_there_is_no_winner(tiny_encoder: Path, easy: Path, tmp_path: Path) -> None:
    bad = study.plan(BASE, [TRIALS[3]], 0)
    found = study.run(tiny_encoder, easy, BASE, bad, tmp_path, quiet)
    with pytest.raises(TrainingFailed, match=r"^frozen_layers is 9"):
        study.finish(easy, tmp_path, found, CREATED)
    # Asked once more it is tried once more.
    heard: list[Search] = []
    study.run(tiny_encoder, easy, BASE, bad, tmp_path, heard.append)
    assert [trial.state for trial in heard[0].trials] == ["running"]
