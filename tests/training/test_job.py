import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retrue.classifier import Classifier

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


def start(root: Path) -> "subprocess.Popen[str]":
    environ = os.environ | {"RETRUE_ML_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
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


def test_a_job_that_is_stopped_says_so_and_leaves_no_model(root: Path) -> None:
    configure(root, epochs="1000", patience="1000", max_tokens="32")
    with start(root) as job:
        assert job.stdout is not None
        assert PROGRESS.match(job.stdout.readline())
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)
    assert job.returncode == 1
    assert "SIGTERM" in (root / "output/failure").read_text()
    assert list((root / "model").iterdir()) == []
