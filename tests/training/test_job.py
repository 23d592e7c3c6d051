import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retrue.classifier import Classifier
from retrue.training.finetune import Result, finetune
from retrue.training.settings import chosen

PROGRAM = Path(__file__).resolve().parents[2] / "functions" / "train" / "job.py"
PROGRESS = re.compile(r"progress (\d\.\d\d) \S.*")


@pytest.fixture
def root(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> Path:
    """SageMaker's folders as a job finds them."""
    for folder in ("input/config", "input/data", "model", "output"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "input/data/encoder").symlink_to(tiny_encoder)
    (tmp_path / "input/data/dataset").symlink_to(tiny_dataset)
    configure(tmp_path, epochs="1", max_tokens="32", max_rows="64", learning_rate="0.001", encoder_name="tiny")
    return tmp_path


def configure(root: Path, **values: str) -> None:
    (root / "input/config/hyperparameters.json").write_text(json.dumps(values))


def start(root: Path, **more: str) -> "subprocess.Popen[str]":
    environ = os.environ | {"RETRUE_ML_ROOT": str(root), "PYTHONUNBUFFERED": "1"} | more
    return subprocess.Popen(
        [sys.executable, str(PROGRAM)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_job_writes_a_sealed_model_and_says_how_far_it_is(root: Path) -> None:
    with start(root) as job:
        out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert not (root / "output/failure").exists()
    card = Classifier.open(root / "model").card
    assert card.run["rows"] == 64
    assert card.settings["max_tokens"] == 32
    shares = [float(match[1]) for match in map(PROGRESS.fullmatch, out.splitlines()) if match]
    assert len(shares) == len(out.splitlines())
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_job_with_a_wrong_setting_leaves_its_reason_and_no_model(root: Path) -> None:
    configure(root, epoch="1")
    with start(root) as job:
        job.communicate(timeout=300)
    assert job.returncode == 1
    assert (root / "output/failure").read_text().startswith("unknown training settings epoch")
    assert list((root / "model").iterdir()) == []


def test_a_job_that_is_killed_goes_on_to_the_weights_of_one_that_was_not(
    root: Path, tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    # A pause near the end, which spares the export.
    values = {"epochs": "2", "max_tokens": "32", "max_rows": "512", "batch_size": "4", "until": "0.9"}
    configure(root, **values)
    whole = finetune(tiny_encoder, tiny_dataset, chosen(values), tmp_path / "out", checkpoints=tmp_path / "whole")
    step = 0
    for share, name in (("0.20", signal.SIGTERM), ("0.50", signal.SIGINT)):
        with start(root) as job:
            assert job.stdout is not None
            while PROGRESS.match(job.stdout.readline())[1] < share:  # type: ignore[index]
                pass
            job.send_signal(name)
            job.communicate(timeout=60)
        assert job.returncode == 1
        reason = (root / "output/failure").read_text()
        before = step
        step = int(re.fullmatch(r"the training was stopped from outside after step (\d+) of 256", reason)[1])  # type: ignore[index]
        assert before < step < whole.steps
        assert list((root / "model").iterdir()) == []
    with start(root) as job:
        _, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert f"going on after step {step} of 256" in err
    assert not (root / "output/failure").exists()
    assert Result.from_json((root / "model/trial.json").read_text()).history == whole.history
    states = [
        torch.load(folder / "state.pt", weights_only=True)["state"]["learner"]["model"]
        for folder in (root / "checkpoints", tmp_path / "whole")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_job_that_pauses_leaves_its_result_in_place_of_a_model(root: Path) -> None:
    configure(root, epochs="2", max_tokens="32", max_rows="64", learning_rate="0.001", until="0.5")
    with start(root) as job:
        _, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert [path.name for path in (root / "model").iterdir()] == ["trial.json"]
    result = Result.from_json((root / "model/trial.json").read_text())
    assert (result.paused, result.steps) == (True, 2)
    assert result.metric == result.history[-1]["accuracy"]


def test_a_job_on_two_processors_starts_itself_for_each_and_one_of_them_speaks(root: Path) -> None:
    configure(root, epochs="2", max_tokens="32", max_rows="64", until="0.5")
    with start(root, RETRUE_PROCESSES="2") as job:
        out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err[-3_000:]
    assert Result.from_json((root / "model/trial.json").read_text()).device.startswith("cpu, 2 ×")
    shares = [float(match[1]) for match in map(PROGRESS.fullmatch, out.splitlines()) if match]
    assert shares == sorted(set(shares))


def test_of_two_processes_the_first_to_fail_gives_the_reason(root: Path) -> None:
    configure(root, epoch="1")
    with start(root, RETRUE_PROCESSES="2") as job:
        job.communicate(timeout=300)
    assert job.returncode == 1
    assert (root / "output/failure").read_text().startswith("unknown training settings epoch")
    assert list((root / "model").iterdir()) == []
