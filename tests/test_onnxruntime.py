"""onnxruntime reports its use to its maker unless it is told not to, and retrue tells it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Tells the sockets that are open after a session has answered.
SCRIPT = """
import os, sys
from pathlib import Path
if sys.argv[1] == "retrue":
    from retrue.classifier import Classifier
    Classifier.open(Path(sys.argv[2])).score("A quiet film.")
else:
    import onnxruntime
    onnxruntime.InferenceSession(sys.argv[2] + "/model.onnx", providers=["CPUExecutionProvider"])
links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
print([link for link in links if "/socket:" in link])
"""


def left(who: str, model: Path, home: Path) -> tuple[str, list[str]]:
    """What a program says of its sockets, and the files that it left in its home."""
    # Nothing else of this environment: onnxruntime is silent where CI, TF_BUILD or the like is set.
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, who, str(model)],
        env=environ, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip(), sorted(path.name for path in home.rglob("*") if path.is_file())


def test_retrue_leaves_no_telemetry_file_and_opens_no_socket(tiny_model: Path, tmp_path: Path) -> None:
    assert left("retrue", tiny_model, tmp_path) == ("[]", [])


@pytest.mark.skipif(sys.platform != "linux", reason="only the builds for Linux were looked at")
def test_onnxruntime_alone_leaves_a_telemetry_file(tiny_model: Path, tmp_path: Path) -> None:
    _, files = left("onnxruntime", tiny_model, tmp_path)
    assert "deviceid" in files
