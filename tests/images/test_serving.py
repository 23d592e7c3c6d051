"""The predict image as SageMaker runs it: the word serve, a model in /opt/ml/model, and no variable of Lambda."""

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrue import artifact

HF = {"inputs": "A dull film.", "parameters": {"top_k": 1}}


@pytest.fixture
def url(
    image: Callable[[str], str], engine: Any, free_port: Any, wait: Any, tiny_model: Path, tmp_path: Path
) -> Iterator[str]:
    own, name, port = image("predict"), f"retrue-{uuid.uuid4().hex[:12]}", free_port()
    words = ["run", "--rm", "--name", name, "--network", "host", "--pull", "never", "--read-only"]
    words += ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--volume", f"{tiny_model}:/opt/ml/model:ro"]
    process = engine.start(*words, own, "serve", "--host", "127.0.0.1", "--port", str(port), log=tmp_path / "log")

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return ask(f"http://127.0.0.1:{port}/ping")[0] == 200
        except urllib.error.URLError:
            return False

    try:
        wait(answers)
        yield f"http://127.0.0.1:{port}"
        engine.ask("stop", "--time", "20", name)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            engine.ask("rm", "--force", name)
            process.wait(60)


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_image_is_an_endpoint_for_sagemaker(url: str, tiny_model: Path) -> None:
    assert ask(f"{url}/ping") == (200, {"status": "ok", "model": artifact.identity(tiny_model)})
    status, answer = ask(f"{url}/invocations", {"inputs": ["A dull film.", "A moving film."]})
    assert (status, len(answer["predictions"])) == (200, 2)
    status, labels = ask(f"{url}/invocations", HF)
    assert (status, labels[0][0]["label"]) == (200, answer["predictions"][0]["label"])
    assert ask(f"{url}/invocations", {"inputs": 7})[0] == 422
    assert ask(f"{url}/v1/explain", {"inputs": "A dull film."})[0] == 200
