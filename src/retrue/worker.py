"""Training work on any machine: take a request, run the training program as SageMaker would, hand back the model.

The request has the shape of SageMaker's CreateTrainingJob and the answer that of DescribeTrainingJob, so the same
workflow runs on either. The program (functions/train/job.py) sees SageMaker's folders under RETRUE_ML_ROOT.
"""

import json
import os
import queue
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrue import lake
from retrue.errors import TrainingFailed
from retrue.lake import Lake
from retrue.workflow import Activity

HEARTBEAT_SECONDS = 20.0
TERM_SECONDS = 120  # what SageMaker gives a job between SIGTERM and SIGKILL

PROGRESS = re.compile(r"progress (\d(?:\.\d+)?) (.*)")
PROGRESS_SECONDS = 1.0


def progress_key(job: str) -> str:
    """Where a training job says how far it is."""
    return f"{lake.RUNS}{job}/progress.json"


def run(
    store: Lake, request: dict[str, Any], program: Path, alive: Callable[[], bool], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run one training job to its end and upload its model; TrainingFailed with the program's own reason.

    `alive` is asked every HEARTBEAT_SECONDS and ends the job when it answers False; `tell` gets each line printed.
    Lines such as "progress 0.42 epoch 1" are also kept at runs/<job>/progress.json, for whoever waits elsewhere.
    """
    told = 0.0

    def note(line: str) -> None:
        nonlocal told
        tell(line)
        match = PROGRESS.match(line)
        if match and (time.monotonic() - told > PROGRESS_SECONDS or match[1].startswith("1")):
            told = time.monotonic()
            store.put_json(progress_key(request["TrainingJobName"]), {"share": float(match[1]), "message": match[2]})

    with tempfile.TemporaryDirectory(prefix="retrue-job-") as folder:
        root = Path(folder)
        config = root / "input" / "config"
        config.mkdir(parents=True)
        (config / "hyperparameters.json").write_text(json.dumps(request["HyperParameters"]))
        for channel in request["InputDataConfig"]:
            _, prefix = lake.split_uri(channel["DataSource"]["S3DataSource"]["S3Uri"])
            store.download_folder(prefix, root / "input" / "data" / channel["ChannelName"])
        for name in ("model", "output"):
            (root / name).mkdir()
        seconds = request["StoppingCondition"]["MaxRuntimeInSeconds"]
        _supervise(program, root, time.monotonic() + seconds, alive, note)

        bucket, prefix = lake.split_uri(request["OutputDataConfig"]["S3OutputPath"])
        if bucket != store.bucket:
            raise TrainingFailed(f"this worker writes to {store.bucket} only, and was asked to write to {bucket}")
        key = f"{prefix}{request['TrainingJobName']}/output/model.tar.gz"
        # The graph hardly shrinks, so the archive is packed for speed.
        with tarfile.open(root / "model.tar.gz", "w:gz", compresslevel=1) as archive:
            for path in sorted((root / "model").iterdir()):
                archive.add(path, path.name)
        store.upload(root / "model.tar.gz", key)
    return {
        "TrainingJobName": request["TrainingJobName"],
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
            except TrainingFailed as error:
                tell(f"{job}: failed: {error}")
                activity.fail(task, "TrainingFailed", str(error))
            else:
                tell(f"{job}: done")
                activity.succeed(task, answer)
        if once:
            return


def _supervise(
    program: Path, root: Path, deadline: float, alive: Callable[[], bool], tell: Callable[[str], None]
) -> None:
    """Run the program, pass on its lines, keep the heart beating, and end it when nobody waits or time is up."""
    environ = {**os.environ, "RETRUE_ML_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(program)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    last: deque[str] = deque(maxlen=40)
    ended = threading.Event()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None  # noqa: S101 - Popen was given a pipe
        for raw in process.stdout:
            lines.put(raw.decode(errors="replace").rstrip())
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stopped = ""
    beat = time.monotonic() + HEARTBEAT_SECONDS
    try:
        while not (ended.is_set() and lines.empty()):
            try:
                line = lines.get(timeout=1.0)
                last.append(line)
                tell(line)
            except queue.Empty:
                pass
            now = time.monotonic()
            if not stopped and now >= deadline:
                stopped = "the job reached its time limit (MaxRuntimeInSeconds)"
            elif not stopped and now >= beat:
                beat = now + HEARTBEAT_SECONDS
                if not alive():
                    stopped = "the workflow no longer waits for this job"
            if stopped and process.poll() is None:
                _end(process)
        process.wait()
    finally:
        if process.poll() is None:
            _end(process)
    if stopped:
        raise TrainingFailed(stopped)
    if process.returncode:
        failure = root / "output" / "failure"
        reason = failure.read_text() if failure.is_file() else "\n".join(last)
        raise TrainingFailed(reason or f"the training program ended with exit code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(TERM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
