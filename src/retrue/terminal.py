"""Long work shown in a terminal: steps of the local stack, a workflow's states, a job's rows."""

import csv
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from retrue import jobs, trials, workflow
from retrue.errors import BadInput, NotFound, StackError
from retrue.lake import Lake
from retrue.records import Job
from retrue.search import Search
from retrue.stack import Stack
from retrue.worker import progress_key
from retrue.workflow import REQUESTED, run_of

POLL_SECONDS = 1.0
START_SECONDS = 60.0  # between a request on the bus and its execution
JOB_SECONDS = 1_000.0  # without any news of a job; a little more than one run of the batch function may take
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
err = Console(stderr=True)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner with what is being done now; each step stays behind as a line."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err) as bars:
        task = bars.add_task("", total=None)
        before = ""

        def tell(line: str) -> None:
            nonlocal before
            if before:
                bars.console.print(f"  {before}", highlight=False)
            before = line
            bars.reset(task, description=line)

        yield tell
        if before:
            bars.console.print(f"  {before}", highlight=False)
        bars.remove_task(task)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM asked for an end, so that the work can keep what it has; the second one ends it."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trials_shown(searched: bool) -> Callable[[Search], None]:
    """Tells a search while it goes on: each trial as it begins, and a table whenever a rung is done."""
    shown = -1

    def show(found: Search) -> None:
        nonlocal shown
        if not searched:
            return
        if shown < 0:
            err.print(found.plan.told(), **PLAIN)
        elif found.rung > shown:
            err.print(trials_table(found))
            for trial in found.trials:
                if trial.error and trial.rungs == shown:
                    err.print(f"trial {trial.name} failed: {trial.error}", **PLAIN)
        shown = found.rung
        for trial in found.running:
            if trial.rungs == found.rung:
                chosen = ", ".join(f"{name}={value}" for name, value in trial.settings.items())
                share = found.plan.shares[found.rung]
                where = f"rung {shown + 1} of {len(found.plan.shares)}, trial {trial.name} to {share:.0%}"
                err.print(f"{where}: {chosen}", **PLAIN)
                break

    return show


def trials_table(found: Search) -> Table:
    """The trials of a search, the best first."""
    names = list(found.plan.settings[0])
    table = Table("trial", *names, "trained", "validation", "seconds", Column("state", no_wrap=True))
    for trial in sorted(found.trials, key=lambda trial: (-trial.rungs, -(trial.metric or 0.0))):
        share = found.plan.shares[trial.rungs - 1] if trial.rungs else 0.0
        metric = "-" if trial.metric is None else f"{trial.metric:.4f}"
        chosen = [trial.settings[name] for name in names]
        table.add_row(trial.name, *chosen, f"{share:.0%}", metric, f"{trial.seconds:.0f}", trial.state)
    return table


def ask(stack: Stack, detail: dict[str, Any]) -> str:
    """Put retrain.requested on the bus and find the execution that it starts."""
    mark = secrets.token_hex(8)
    events = stack.session.client("events")
    whole = {"trigger": "person", **detail, "mark": mark}
    workflow.tell("default", stack.outputs["EnvironmentName"], REQUESTED, whole, events)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for execution in stack.workflow.executions():
            arn = execution["executionArn"]
            if mark in stack.workflow.describe(arn).get("input", ""):
                return str(arn)
        time.sleep(POLL_SECONDS)
    raise StackError("the request was sent but no execution began: look at the rule of the state machine")


def follow(stack: Stack, execution: str) -> dict[str, Any]:
    """Show the states and the training's progress until the execution ends."""
    run = run_of(execution)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:
        task = bars.add_task("waiting", total=1.0)
        seen: list[str] = []
        while True:
            # Asked before the states: those of an execution that had ended by then are its last.
            found = stack.workflow.describe(execution)
            states = stack.workflow.states(execution)
            if states != seen:
                for name in states[max(len(seen) - 1, 0) : -1]:
                    bars.console.print(f"  {name}", highlight=False)
                seen = states
                bars.reset(task, total=1.0, description=states[-1])
            if seen and seen[-1] == "Train":
                share, message = _progress(stack.lake, run)
                bars.update(task, completed=share, description=f"{seen[-1]}: {message}")
            if found["status"] != "RUNNING":
                bars.remove_task(task)
                break
            time.sleep(POLL_SECONDS)
    err.print(f"  {seen[-1] if seen else found['status']}", highlight=False)
    if found["status"] != "SUCCEEDED":
        reasons = [entry.reason for entry in stack.lake.ledger() if entry.run == run]
        raise StackError(f"the workflow ended as {found['status']}: {(reasons or ['see its execution history'])[-1]}")
    if searched := trials.read(stack.lake, run):
        err.print(trials_table(searched))
    entries = [entry for entry in stack.lake.ledger() if entry.run == run]
    outcome = seen[-1] if seen else ""
    return {"execution": execution, "outcome": outcome, **(json.loads(entries[-1].to_json()) if entries else {})}


def _progress(store: Lake, run: str) -> tuple[float, str]:
    """How far the trainings of a run are: one, or those of the rung that its search is in."""
    found = trials.read(store, run)
    names = [trials.job_name(run, found.rung, trial) for trial in found.running] if found else [run]
    notes: list[dict[str, Any]] = []
    for name in names:
        with suppress(NotFound):  # its program has not said anything yet
            notes.append(store.get_json(progress_key(name)))
    share = sum(note["share"] for note in notes) / max(1, len(names))
    told = [note["message"] for note in sorted(notes, key=lambda note: note["share"] < 1)] or ["not begun"]
    where = f"rung {found.rung + 1} of {len(found.plan.shares)}, {len(names)} trials: " if found else ""
    return share, where + told[-1]


def drop(stack: Stack, file: Path, prefix: str, wait: bool) -> dict[str, Any]:
    """Put a file under a prefix of the bucket and, if asked, wait for the job that it starts."""
    if jobs.kind_of(prefix + file.name) is None:
        raise BadInput(f"{file.name} is neither .csv nor .csv.gz")
    # A folder of its own, so that the job with this input is the one that this very file started.
    key = f"{prefix}{secrets.token_hex(4)}/{file.name}"
    stack.lake.upload(file, key)
    if not wait:
        return {"input": stack.lake.uri(key), "state": "running"}
    total = 0
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8", errors="replace") as lines:
            total = max(sum(1 for _ in csv.reader(lines)) - 1, 0)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} rows"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(file.name, total=total or None)
        deadline = time.monotonic() + JOB_SECONDS
        found: Job | None = None
        before = 0
        while time.monotonic() < deadline:
            found = stack.lake.read_job(found.id) if found else stack.lake.job_of(key)
            if found:
                if found.rows > before:
                    before, deadline = found.rows, time.monotonic() + JOB_SECONDS
                bars.update(task, completed=found.rows)
                if found.state != "running":
                    result: dict[str, Any] = json.loads(found.to_json())
                    return result
            time.sleep(POLL_SECONDS)
    raise StackError(f"no job for {key} has ended: look at the log of the batch function and at its dead letters")
