"""Each function in its image, with a real event, a real model, and no more than what Lambda would give it."""

import io
import json
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrue.lake import CAPTURE

PROJECT = Path(__file__).resolve().parents[2]
INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
INIT_SECONDS = 5.0  # half of what Lambda allows, before it starts once more at the cost of the first request
FROM_SOURCE = re.compile(r"^# code object from (/\S+\.py)$", re.MULTILINE)
WARM = 20
RUN = "retrue-0123456789abcdef"


def event(name: str) -> Any:
    return json.loads((PROJECT / f"tests/events/{name}.json").read_text())


def asked(logical: str, world: Any, model: Path) -> tuple[dict[str, Any], Callable[[Any], object]]:
    """A real event for a function, and what must be true of its answer."""
    match logical:
        case "PredictFunction":
            return (
                event("api-predict-one"),
                lambda answer: (
                    answer["statusCode"] == 200
                    and json.loads(answer["body"])["model"] == world.model
                    and next(world.lake.keys(CAPTURE))
                ),
            )
        case "BatchFunction":
            dropped = event("s3-object-created")
            dropped["detail"]["bucket"]["name"] = world.lake.bucket
            world.lake.put(dropped["detail"]["object"]["key"], b"id,text\n1,A quiet film.\n2,\n")
            return dropped, lambda answer: (answer["state"], answer["accepted"], answer["rejected"]) == ("done", 1, 1)
        case "MonitorFunction":
            return event("schedule-hourly"), lambda answer: answer["model"] == world.model
        case "StepsFunction":
            body, key = io.BytesIO(), f"runs/{RUN}/output/model.tar.gz"
            with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as archive:
                for path in sorted(model.iterdir()):
                    archive.add(path, path.name)
            world.lake.put(key, body.getvalue())
            about = {"step": "evaluate", "run": RUN, "request": {"trigger": "person", "reason": "a test"}}
            wish = {"artifacts": world.lake.uri(key), "dataset": world.dataset, "feedback": {"rows": 0}}
            return about | wish, lambda answer: (answer["model"], answer["promote"]) == (world.model, False)
        case "ReleaseFunction":
            state = {"error": {"Error": "Test", "Cause": "{}"}}
            failed = {"step": "fail", "execution": "arn:one", "state": state}
            return failed, lambda answer: answer == {"action": "failed", "reason": "Test: {}"}
        case _:
            raise AssertionError(f"no event for {logical}")


FUNCTIONS = ["PredictFunction", "BatchFunction", "MonitorFunction", "StepsFunction", "ReleaseFunction"]


@pytest.mark.parametrize("logical", FUNCTIONS)
def test_a_function_answers_a_real_event_under_lambda_s_limits(
    logical: str, start: Callable[..., Any], world: Any, tiny_model: Path, report: dict[str, dict[str, str]]
) -> None:
    sent, right = asked(logical, world, tiny_model)
    function = start(logical)
    assert right(function.invoke(sent))
    first = time.perf_counter() - function.began
    (init,) = INIT.findall(function.log.read_text())
    seconds = []
    for _ in range(WARM):
        began = time.perf_counter()
        answer = function.invoke(sent)
        seconds.append(time.perf_counter() - began)
    assert right(answer)
    report.setdefault(logical, {}).update(
        {
            "start to first answer": f"{first:.2f} s",
            "INIT REPORT": f"{float(init) / 1000:.2f} s",
            "warm, median": f"{1000 * sorted(seconds)[WARM // 2]:.0f} ms",
            "peak memory": f"{function.peak_mb():.0f} MB",
        }
    )
    assert float(init) / 1000 < INIT_SECONDS


@pytest.mark.parametrize("logical", FUNCTIONS)
def test_nothing_is_compiled_while_a_function_runs(
    logical: str, start: Callable[..., Any], world: Any, tiny_model: Path
) -> None:
    sent, right = asked(logical, world, tiny_model)
    function = start(logical, PYTHONVERBOSE="1")
    assert right(function.invoke(sent))
    told = function.log.read_text(errors="replace")
    assert "/retrue/__pycache__/" in told
    assert sorted(set(FROM_SOURCE.findall(told))) == []


def test_a_container_may_write_nowhere_but_in_tmp(start: Callable[..., Any], world: Any, tiny_model: Path) -> None:
    sent, right = asked("PredictFunction", world, tiny_model)
    function = start("PredictFunction")
    assert right(function.invoke(sent))
    script = "import os, pathlib; print(os.getuid(), sorted(p.name for p in pathlib.Path('/tmp').iterdir()))"
    assert function.engine.ask("exec", function.name, "python", "-c", script) == "993 ['models']\n"
    script = """
import os
for folder in ("/", "/var/task", "/packages", "/usr/local/lib"):
    try:
        open(os.path.join(folder, "probe"), "w")
    except OSError as error:
        print(error.strerror)
"""
    told = function.engine.ask("exec", function.name, "python", "-c", script)
    assert told.splitlines() == ["Read-only file system"] * 4
