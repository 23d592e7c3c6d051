"""Brings the local stack up: the cloud, the deployment, a base encoder, a dataset, and a first model that serves."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from retrue import corpus, dataset, lake
from retrue.artifact import NONE
from retrue.errors import StackError
from retrue.local.deploy import deploy
from retrue.local.home import STACK, Home, session
from retrue.stack import Stack

START_SECONDS = 90.0
Tell = Callable[[str], None]


def up(home: Home, project: Path, python: Path, port: int, parameters: dict[str, str], tell: Tell) -> Stack:
    """Start what does not run yet and deploy what has changed; the stack, with whatever serves in it."""
    if home.supervisor() is None:
        tell("starting the local cloud")
        _start(home, project, python, port)
    endpoint = home.endpoint
    if endpoint is None:
        raise StackError(f"the local cloud ended; see {home.logs}")
    clients = session(endpoint)
    deploy(home, clients, project, parameters, tell)
    stack = Stack(clients, STACK)
    home.write("stack", {"stack": STACK, "outputs": stack.outputs})
    return stack


def provide(home: Home, stack: Stack, tell: Tell) -> None:
    """Put a base encoder and a first dataset into the lake, where there are none."""
    name = stack.outputs["EncoderName"]
    if next(stack.lake.keys(f"{lake.ENCODERS}{name}/"), None) is None:
        from retrue.training import encoder  # torch takes seconds to import, and is needed only once

        tell(f"fetching the base encoder {name}")
        stack.lake.upload_folder(encoder.resolve(name, home.encoders), f"{lake.ENCODERS}{name}/")
    if next(stack.lake.keys(lake.CURRENT_DATASET), None) is None:
        tell("writing the synthetic corpus")
        root = home.root / "datasets"
        folder = dataset.write(
            root, corpus.splits(), name="synthetic-films", source=corpus.__name__, synthetic=True, notice=corpus.NOTICE
        )
        use(stack, folder)


def use(stack: Stack, folder: Path) -> str:
    """Upload a prepared dataset and make it the base set of the next retraining; its id."""
    manifest = dataset.read_manifest(folder)
    stack.lake.upload_folder(folder, f"{lake.DATASETS}{manifest.id}/")
    stack.lake.put(lake.CURRENT_DATASET, manifest.id.encode(), "text/plain")
    return manifest.id


def has_model(stack: Stack) -> bool:
    return stack.serving() != NONE


def _start(home: Home, project: Path, python: Path, port: int) -> None:
    """Start the supervisor in a session of its own, so that it outlives this command and its terminal."""
    home.logs.mkdir(parents=True, exist_ok=True)
    (home.root / "stack.json").unlink(missing_ok=True)
    words = [sys.executable, "-m", "retrue.local.supervisor", str(home.root), str(project), str(python), str(port)]
    log = (os.POSIX_SPAWN_OPEN, 1, str(home.logs / "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    quiet = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    both = (os.POSIX_SPAWN_DUP2, 1, 2)
    pid = os.posix_spawn(sys.executable, words, os.environ, file_actions=[quiet, log, both], setsid=True)
    deadline = time.monotonic() + START_SECONDS
    while home.supervisor() != pid:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise StackError(f"the local cloud did not start; see {home.logs / 'supervisor.log'}")
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGTERM)
            raise StackError(f"the local cloud did not answer in {START_SECONDS:.0f} s; see {home.logs}")
        time.sleep(0.1)
