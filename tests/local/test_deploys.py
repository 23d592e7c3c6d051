"""A deployment changes the code, a promotion the model: whatever comes after what, both serve as they should."""

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrue import artifact, promotion
from retrue.local import machine
from retrue.local.home import Home, stop
from retrue.stack import Stack

PROJECT = Path(__file__).resolve().parents[2]
HEALTH = 'return answer(Health(status="ok"'


class Deployment:
    """A copy of the project whose code may change, on a local cloud of its own."""

    def __init__(self, root: Path) -> None:
        self.home, self.project = Home(root / "home"), root / "project"
        for name in ("src", "functions", "infra"):
            shutil.copytree(PROJECT / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PROJECT / "template.yaml", self.project)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.deploy()

    def deploy(self, **parameters: str) -> None:
        python = PROJECT / ".venv-cloud/bin/python"
        self.stack: Stack = machine.up(self.home, self.project, python, self.port, parameters, print)

    def rewrite(self, status: str) -> None:
        """Change the predict function's code, so that it tells another status."""
        app = self.project / "functions/predict/app.py"
        was = (PROJECT / "functions/predict/app.py").read_text()
        assert was.count(HEALTH) == 1
        app.write_text(was.replace(HEALTH, HEALTH.replace("ok", status)))

    def promote(self, model: str) -> None:
        """What the workflow's last steps do."""
        stack, run = self.stack, f"run-{model}"
        version = promotion.publish(stack.lake, stack.release, model, run)["version"]
        promotion.validate(stack.lake, stack.release, model, version)
        request, candidate = {"reason": "a test"}, {"model": model, "reason": "better"}
        live = stack.release.live_version()
        promotion.promote(
            stack.lake, stack.release, run, request, candidate, version, live, time.time_ns() // 1_000_000
        )

    def serving(self) -> tuple[str, str, str]:
        """Code, model, and a parameter as the alias has them."""
        health = self.stack.http("GET", "/v1/health")
        release = self.stack.release
        config = release.client.get_function_configuration(
            FunctionName=release.function, Qualifier=release.live_version()
        )
        assert self.stack.serving().rstrip("/").endswith(health["model"])
        return health["status"], health["model"], config["Environment"]["Variables"]["CAPTURE_RATE"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("deploys")
    try:
        yield Deployment(root)
    finally:
        stop(Home(root / "home"))


@pytest.mark.slow
def test_deployments_and_promotions_leave_each_other_alone(
    deployment: Deployment, tiny_model: Path, contrary: Path
) -> None:
    first, second = (artifact.identity(folder) for folder in (tiny_model, contrary))
    for folder, model in ((tiny_model, first), (contrary, second)):
        deployment.stack.lake.upload_folder(folder, f"models/{model}/")

    deployment.promote(first)
    deployment.promote(second)
    assert deployment.serving() == ("ok", second, "1")

    deployment.rewrite("fine")
    deployment.deploy()
    assert deployment.serving() == ("fine", second, "1")

    deployment.deploy(CaptureRate="0.5")
    assert deployment.serving() == ("fine", second, "0.5")

    live = deployment.stack.release.live_version()
    deployment.deploy(CaptureRate="0.5")
    assert deployment.stack.release.live_version() == live
    assert deployment.serving() == ("fine", second, "0.5")

    # Back to a model that only versions of other code and settings carry.
    entry = promotion.roll_back(deployment.stack.lake, deployment.stack.release, "a test", time.time_ns() // 1_000_000)
    assert (entry.model, entry.previous_version) == (first, live)
    assert deployment.serving() == ("fine", first, "0.5")

    # After that a promotion and a way back need no new version: one that is just so is there.
    deployment.promote(second)
    back = promotion.roll_back(deployment.stack.lake, deployment.stack.release, "a test", time.time_ns() // 1_000_000)
    assert back.version == entry.version
    deployment.rewrite("well")
    deployment.deploy(CaptureRate="0.5")
    assert deployment.serving() == ("well", first, "0.5")
