"""`sam build` and `sam local start-api` on the engine of this machine.

The function's container cannot reach a cloud that listens on the loopback, so it is asked what it answers before there
is a model; predictions by the same image are in test_functions.py.
"""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 600


@pytest.fixture(scope="module")
def environ(docker_host: dict[str, str]) -> dict[str, str]:
    return docker_host | {"SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "eu-central-1"}


@pytest.fixture(scope="module")
def built(
    environ: dict[str, str], sam: Path, image: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that `sam build` leaves for the API's function."""
    image("predict")  # its layers, so that nothing is fetched twice
    folder = tmp_path_factory.mktemp("sam") / "build"
    words = [sam / "sam", "build", "PredictFunction", "--build-dir", folder]
    done = subprocess.run(words, cwd=PROJECT, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def api(environ: dict[str, str], sam: Path, built: Path, free_port: Any, wait: Any) -> Iterator[str]:
    """Address of the API that `sam local start-api` serves."""
    (built / "variables.json").write_text(json.dumps({"PredictFunction": {"MODEL_URI": "none"}}))
    port, log = free_port(), built / "start-api.log"
    words = [sam / "sam", "local", "start-api", "--template", built / "template.yaml", "--port", str(port)]
    words += ["--env-vars", built / "variables.json", "--skip-pull-image", "--warm-containers", "LAZY"]
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=PROJECT, env=environ, stdout=file, stderr=file, start_new_session=True)
    try:
        wait(lambda: process.poll() is not None or b"Running on" in log.read_bytes())
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # on a busy machine it once did not come to its end, which nobody tests here
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("path", "body", "status", "slug"),
    [
        ("/v1/health", None, 503, "no-model"),
        ("/v1/predict", b'{"inputs": "A quiet film."}', 503, "no-model"),
        ("/v1/predict", b'{"inputs": 3}', 422, "invalid"),
    ],
)
def test_the_api_answers_from_the_image(api: str, path: str, body: bytes | None, status: int, slug: str) -> None:
    found, problem = ask(api + path, body)
    assert (found, problem["status"], problem["type"]) == (status, status, f"urn:retrue:problem:{slug}")


def test_a_route_that_the_template_lacks_never_reaches_the_image(api: str) -> None:
    assert ask(f"{api}/v2/nothing") == (403, {"message": "Missing Authentication Token"})
