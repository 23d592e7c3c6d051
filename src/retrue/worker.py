"""Training work on any machine: take a request, run the training program as SageMaker would, hand back the model.

The request has the shape of SageMaker's CreateTrainingJob and the answer that of DescribeTrainingJob, so the same
workflow runs on either. The program (functions/train/job.py) sees SageMaker's folders under RETRUE_ML_ROOT. As with
SageMaker, what it keeps in checkpoints/ travels to S3 while it runs and is there again when the job is taken once more:
by the next attempt after a spot instance was taken away, or by another worker.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import ConnectionError as Unreachable
from botocore.exceptions import HTTPClientError

from retrue import lake
from retrue.errors import Interrupted, RetrueError, TrainingFailed
from retrue.lake import Lake
from retrue.workflow import Activity

HEARTBEAT_SECONDS = 20.0
SYNC_SECONDS = 30.0  # between two looks at the checkpoints
TERM_SECONDS = 120  # what SageMaker gives a job between SIGTERM and SIGKILL
POLL_SECONDS = 0.2
LAST_SECONDS = 5.0  # for the last lines of a program that has ended
AWAY = (Unreachable, HTTPClientError)  # a network that is away for a moment ends no work of hours

TRAIN = "train"  # the word that SageMaker appends to the image's entry point

PROGRESS = re.compile(r"progress (\d(?:\.\d+)?) (.*)")
PROGRESS_SECONDS = 1.0


def progress_key(job: str) -> str:
    """Where a training job says how far it is."""
    return f"{lake.RUNS}{job}/progress.json"


def run(
    store: Lake,
    request: dict[str, Any],
    program: Path,
    alive: Callable[[], bool],
    tell: Callable[[str], None],
    *,
    leads: bool = True,
) -> dict[str, Any]:
    """Run one training job to its end and upload its model; TrainingFailed with the program's own reason.

    Checkpoints are kept under the request's CheckpointConfig, where it has one.

    `alive` is asked every HEARTBEAT_SECONDS, also while files travel, from a thread of its own; the job ends when it
    answers False. `tell` gets each line printed. Lines such as "progress 0.42 epoch 1" are also kept at
    runs/<job>/progress.json, for whoever waits elsewhere. Of several nodes that train together one `leads`, and only
    its program makes a model.
    """
    told = 0.0

    def note(line: str) -> None:
        nonlocal told
        tell(line)
        match = PROGRESS.match(line)
        if match and (time.monotonic() - told > PROGRESS_SECONDS or match[1].startswith("1")):
            told = time.monotonic()
            with suppress(*AWAY):
                store.put_json(progress_key(job), {"share": float(match[1]), "message": match[2]})

    job = request["TrainingJobName"]
    channels = {
        channel["ChannelName"]: _key(store, channel["DataSource"]["S3DataSource"]["S3Uri"])
        for channel in request["InputDataConfig"]
    }
    key = f"{_key(store, request['OutputDataConfig']['S3OutputPath'])}{job}/output/model.tar.gz"
    with tempfile.TemporaryDirectory(prefix="retrue-job-") as folder, _beating(alive) as beat:
        root = Path(folder)
        config = root / "input" / "config"
        config.mkdir(parents=True)
        (config / "hyperparameters.json").write_text(json.dumps(request["HyperParameters"]))
        for name, prefix in channels.items():
            store.download_folder(prefix, root / "input" / "data" / name)
        for name in ("model", "output", "checkpoints"):
            (root / name).mkdir()
        seconds = request["StoppingCondition"]["MaxRuntimeInSeconds"]
        with _kept(store, root / "checkpoints", request.get("CheckpointConfig")):
            _supervise(program, root, time.monotonic() + seconds, beat, note)

        if leads:
            # The graph hardly shrinks, so the archive is packed for speed.
            with tarfile.open(root / "model.tar.gz", "w:gz", compresslevel=1) as archive:
                for path in sorted((root / "model").iterdir()):
                    archive.add(path, path.name)
            store.upload(root / "model.tar.gz", key)
    return {
        "TrainingJobName": job,
        "TrainingJobStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": store.uri(key)},
    }


def serve(store: Lake, activity: Activity, program: Path, name: str, tell: Callable[[str], None], once: bool) -> None:
    """Take work until told to stop; a job that fails is answered, and the next one is taken."""
    while True:
        task = activity.take(name)
        if task is not None:
            job = task.request["TrainingJobName"]
            tell(f"{job}: taken")
            try:
                answer = run(store, task.request, program, lambda task=task: activity.heartbeat(task), tell)  # type: ignore[misc]
            except RetrueError as error:
                tell(f"{job}: failed: {error}")
                heard = activity.fail(task, type(error).__name__, str(error))
            except (SystemExit, KeyboardInterrupt):
                # The workflow gives the job to the next worker, which goes on from the last checkpoint.
                activity.fail(task, Interrupted.__name__, "the worker was stopped")
                raise
            else:
                tell(f"{job}: done")
                heard = activity.succeed(task, answer)
            if not heard:
                tell(f"{job}: nobody waits for its answer any more")
        if once:
            return


def _key(store: Lake, uri: str) -> str:
    bucket, key = lake.split_uri(uri)
    if bucket != store.bucket:
        raise TrainingFailed(f"this worker reads and writes {store.bucket} only, and was asked to use {bucket}")
    return key


@contextmanager
def _beating(alive: Callable[[], bool]) -> Iterator[Future[None]]:
    """Ask `alive` all through the block; the future is done once it answered False, or could not be asked."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS) and alive():
            pass

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(beat)
        finally:
            over.set()


@contextmanager
def _kept(store: Lake, folder: Path, config: Mapping[str, str] | None) -> Iterator[None]:
    """Bring back the checkpoints that an earlier attempt left, and send away each new one, the last one too."""
    if config is None:
        yield
        return
    prefix = _key(store, config["S3Uri"])
    if next(store.keys(prefix), None) is not None:
        store.download_folder(prefix, folder)
    over, sent = threading.Event(), _stamps(folder)

    def send() -> None:
        nonlocal sent
        found = _stamps(folder)
        for path in [path for path, written in found.items() if written != sent.get(path)]:
            # A second name for the same bytes: the program may put the next checkpoint in its place meanwhile.
            second = folder.parent / f"sending-{path.name}"
            os.link(path, second)
            try:
                store.upload(second, prefix + path.relative_to(folder).as_posix())
            finally:
                second.unlink()
        sent = found

    def watch() -> None:
        while not over.wait(SYNC_SECONDS):
            with suppress(*AWAY):  # the next look sends it
                send()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
            watching.result()
            send()


def _stamps(folder: Path) -> dict[Path, int]:
    """The whole files of a folder with the times they were written; those that begin with a dot are being written."""
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    }


def _supervise(program: Path, root: Path, deadline: float, beat: Future[None], tell: Callable[[str], None]) -> None:
    """Run the program, pass on its lines, and end it when nobody waits or time is up."""
    environ = {**os.environ, "RETRUE_ML_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(program)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    last: deque[str] = deque(maxlen=40)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None  # noqa: S101 - Popen was given a pipe
        with process.stdout as printed:
            for raw in printed:
                lines.put(raw.decode(errors="replace").rstrip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stopped = ""
    running = True
    try:
        while running or not lines.empty():
            with suppress(queue.Empty):
                line = lines.get(timeout=POLL_SECONDS)
                last.append(line)
                tell(line)
            if running and process.poll() is None:
                if beat.done():
                    beat.result()
                    stopped = "the workflow no longer waits for this job"
                elif time.monotonic() >= deadline:
                    stopped = "the job reached its time limit (MaxRuntimeInSeconds)"
                if stopped:
                    _end(process)
            elif running:
                running = False
                # Not for ever: what the program started and left behind may hold the pipe open.
                reader.join(LAST_SECONDS)
    finally:
        if process.poll() is None:
            _end(process)
    if stopped:
        raise TrainingFailed(stopped)
    if process.returncode:
        failure = root / "output" / "failure"
        reason = failure.read_text(errors="replace") if failure.is_file() else "\n".join(last)
        raise TrainingFailed(reason or f"the training program ended with exit code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(TERM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(program: Path, environ: Mapping[str, str], asked: str = TRAIN) -> None:
    """What the training image starts: the request that AWS Batch hands on, or the program, as SageMaker wants it."""
    if asked == TRAIN:
        os.execv(sys.executable, [sys.executable, str(program)])  # noqa: S606 - the same interpreter, no shell
    # As the first process of a container it would not hear SIGTERM without a handler. SystemExit runs the finally
    # clauses, which let the program write a last checkpoint and send it away; Batch then starts the next attempt.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    request = json.loads(asked)
    bucket, _ = lake.split_uri(request["OutputDataConfig"]["S3OutputPath"])
    leads = environ.get("AWS_BATCH_JOB_NODE_INDEX") == environ.get("AWS_BATCH_JOB_MAIN_NODE_INDEX")
    run(Lake(bucket), request, program, lambda: True, lambda line: print(line, flush=True), leads=leads)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ, *sys.argv[2:])
