"""The API without Lambda: the line before the handler, and the whole program over HTTP with real clients."""

import asyncio
import base64
import http.client
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retrue import artifact, settings
from retrue.lake import CAPTURE, Lake

ROOT = Path(__file__).parents[2]
PREDICT = ROOT / "functions" / "predict"
MODULES = ("app", "gateway", "problems", "server", "shapes")
PATHS = ["/v1/predict", "/v1/text-classification", "/v1/health", "/v1/jobs/{id}"]
SECRET = "Mellifluous aardvarks audited my pension on a Tuesday."
PATIENCE = 60.0
ATTEMPTS = 5
CLIENT = """
import json, sys
from huggingface_hub import InferenceClient

client = InferenceClient(model=sys.argv[1], headers={"x-api-key": "a-key"}, timeout=60)
told = [client.text_classification("A dull film."), client.text_classification("A dull film.", top_k=1)]
print(json.dumps([[[each.label, each.score] for each in one] for one in told]))
try:
    client.text_classification("A dull film.", function_to_apply="sigmoid")
except Exception as error:
    print(error)
"""


@dataclass
class Caller:
    """One HTTP request as an ASGI server brings it, and what is sent for an answer."""

    body: bytes = b'{"inputs": "fine"}'
    path: str = "/v1/predict"
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: int = 1
    slow: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    asked_before_the_answer: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def scope(self) -> dict[str, Any]:
        head = {"type": "http", "method": self.method, "path": self.path, "headers": self.headers}
        return {**head, "query_string": b"a=1&a=2&b="}

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.slow or self.asked > self.pieces:
            await self.left.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.body, "more_body": self.asked < self.pieces}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.asked_before_the_answer = self.asked
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def told(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def answer(self) -> Any:
        return json.loads(b"".join(message["body"] for message in self.sent[1:] if "body" in message))


@dataclass
class Work:
    """A handler that answers what it was given, while it is let."""

    events: list[dict[str, Any]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    side_by_side: int = 0
    most: int = 0

    def __call__(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        self.side_by_side += 1
        self.most = max(self.most, self.side_by_side)
        if context.aws_request_id != "start":
            self.events.append(event)
            self.begun.set()
            assert self.may_end.wait(PATIENCE)
        self.side_by_side -= 1
        body = json.dumps({"path": event["path"], "body": base64.b64decode(event["body"]).decode()})
        return {"statusCode": 200, "multiValueHeaders": {"Content-Type": ["application/json"]}, "body": body}


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleType]:
    """functions/predict/server.py, found as its own folder finds it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(PREDICT))
        for name in MODULES:
            patched.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("server")
        for name in MODULES:
            sys.modules.pop(name, None)


Made = Callable[..., Any]


@pytest.fixture
def made(server: ModuleType, work: Work) -> Made:
    """Makes the application with the handler above and with limits of one's own."""

    def make(**limits: Any) -> Any:
        return server.Server(work, server.gateway.Resources.of(PATHS), settings.Serve(**limits))

    return make


@pytest.fixture
def work() -> Iterator[Work]:
    found = Work()
    yield found
    found.may_end.set()


def call(application: Any, caller: Caller) -> "asyncio.Task[None]":
    return asyncio.create_task(application(caller.scope, caller.receive, caller.send))


async def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


# the line
def test_one_request_runs_at_a_time_in_the_order_of_their_coming(made: Made, work: Work) -> None:
    async def run() -> list[Caller]:
        application, callers = made(), [Caller(body=b"%d" % n) for n in range(5)]
        waiting = [call(application, caller) for caller in callers]
        await until(work.begun.is_set)
        work.may_end.set()
        await asyncio.gather(*waiting)
        return callers

    assert [caller.answer["body"] for caller in asyncio.run(run())] == ["0", "1", "2", "3", "4"]
    assert work.most == 1
    assert [base64.b64decode(event["body"]) for event in work.events] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_request_beyond_the_line_is_a_503_that_says_when_to_come_again(made: Made, work: Work) -> None:
    async def run() -> Caller:
        application, inside, late = made(serve_queue=2), [Caller(), Caller()], Caller()
        waiting = [call(application, caller) for caller in inside]
        await until(work.begun.is_set)
        await call(application, late)
        work.may_end.set()
        await asyncio.gather(*waiting)
        again = Caller()
        await call(application, again)
        assert [caller.status for caller in (*inside, again)] == [200, 200, 200]
        return late

    late = asyncio.run(run())
    assert (late.status, late.answer["type"], late.told["retry-after"]) == (503, "urn:retrue:problem:busy", "1")
    assert late.told["content-type"] == "application/problem+json"
    assert late.asked_before_the_answer == 0
    assert len(work.events) == 3


def test_a_caller_who_goes_before_the_turn_costs_nothing(made: Made, work: Work) -> None:
    async def run() -> Caller:
        application, first, leaving, last = made(serve_queue=2), Caller(), Caller(body=b"gone"), Caller(body=b"last")
        waiting = call(application, first)
        await until(work.begun.is_set)
        gone = call(application, leaving)
        await until(lambda: leaving.asked == 2)
        leaving.left.set()
        await gone
        following = call(application, last)  # in the place that has become free
        await until(lambda: last.asked == 2)
        work.may_end.set()
        await asyncio.gather(waiting, following)
        assert last.status == 200
        return leaving

    assert asyncio.run(run()).sent == []
    assert [base64.b64decode(event["body"]) for event in work.events] == [b'{"inputs": "fine"}', b"last"]


def test_a_request_that_waits_too_long_is_a_503_and_never_begun(made: Made, work: Work) -> None:
    async def run() -> tuple[Caller, Caller]:
        application, first, second = made(serve_seconds=0.2), Caller(), Caller(body=b"late")
        waiting = call(application, first)
        await until(work.begun.is_set)
        await call(application, second)
        await waiting
        work.may_end.set()
        third = Caller(body=b"next")
        await call(application, third)
        assert third.status == 200  # as soon as the thread is free again
        return first, second

    first, second = asyncio.run(run())
    assert (first.status, first.answer["type"]) == (504, "urn:retrue:problem:timeout")
    assert (second.status, second.answer["type"], second.told["retry-after"]) == (503, "urn:retrue:problem:busy", "1")
    assert [base64.b64decode(event["body"]) for event in work.events] == [b'{"inputs": "fine"}', b"next"]


def test_a_body_that_says_that_it_is_too_large_is_not_read(made: Made, work: Work) -> None:
    large = Caller(headers=[(b"content-length", b"1001")], slow=True)
    asyncio.run(asyncio.wait_for(made(serve_megabytes=0.001)(large.scope, large.receive, large.send), PATIENCE))
    assert (large.status, large.answer["type"]) == (413, "urn:retrue:problem:too-large")
    assert large.told["connection"] == "close"
    assert large.asked_before_the_answer == 0
    assert work.events == []


def test_a_body_without_a_length_is_read_no_further_than_the_limit(made: Made, work: Work) -> None:
    large = Caller(body=b"x" * 400, pieces=1_000_000)

    async def run() -> None:
        await call(made(serve_megabytes=0.001), large)

    asyncio.run(run())
    assert (large.status, large.asked_before_the_answer) == (413, 3)
    assert large.asked == 6  # and no more is thrown away
    assert work.events == []


def test_a_body_that_does_not_come_is_a_408(made: Made, work: Work) -> None:
    slow = Caller(slow=True)

    async def run() -> None:
        waiting = call(made(serve_seconds=0.05), slow)
        await until(lambda: slow.sent)
        slow.left.set()
        await waiting

    asyncio.run(run())
    assert (slow.status, slow.answer["type"]) == (408, "urn:retrue:problem:slow")


def test_a_caller_who_goes_while_sending_is_forgotten(made: Made, work: Work) -> None:
    gone = Caller(pieces=0)
    gone.left.set()
    asyncio.run(made()(gone.scope, gone.receive, gone.send))
    assert (gone.sent, work.events) == ([], [])


@pytest.mark.parametrize("path", ["/ping", "/v1/health"])
def test_health_is_told_while_a_text_is_scored(made: Made, work: Work, path: str) -> None:
    async def run() -> Caller:
        application, first, asking = made(serve_queue=1), Caller(), Caller(method="GET", path=path)
        waiting = call(application, first)
        await until(work.begun.is_set)
        await call(application, asking)
        work.may_end.set()
        await waiting
        return asking

    found = asyncio.run(run())
    assert (found.status, found.answer["path"]) == (200, "/v1/health")


# the event
@pytest.mark.parametrize(
    ("path", "body", "answered"),
    [
        ("/invocations", b'{"inputs": "fine"}', "/v1/predict"),
        ("/invocations", b'{"inputs": "fine", "parameters": {}}', "/v1/text-classification"),
        ("/invocations", b'{"inputs": "the \\"parameters\\": are fine"}', "/v1/predict"),
        ("/invocations", b'{"inputs": "parameters"}', "/v1/predict"),
        ("/v1/predict", b'{"inputs": "fine", "parameters": {}}', "/v1/predict"),
        ("/v1/text-classification", b"{}", "/v1/text-classification"),
    ],
)
def test_each_door_leads_to_a_route(made: Made, work: Work, path: str, body: bytes, answered: str) -> None:
    work.may_end.set()
    caller = Caller(path=path, body=body)
    asyncio.run(made()(caller.scope, caller.receive, caller.send))
    (event,) = work.events
    assert (event["path"], event["resource"], event["httpMethod"]) == (answered, answered, "POST")


def test_an_event_has_headers_and_query_as_api_gateway_gives_them(server: ModuleType) -> None:
    caller = Caller(headers=[(b"content-type", b"application/json"), (b"x-a", b"1"), (b"x-a", b"2")])
    event = server.gateway.event(caller.scope, "/v1/predict", "/v1/predict", b"\xff\xfe", "an-id")
    assert event["headers"] == {"content-type": "application/json", "x-a": "2"}
    assert event["multiValueHeaders"] == {"content-type": ["application/json"], "x-a": ["1", "2"]}
    assert event["queryStringParameters"] == {"a": "2", "b": ""}
    assert event["multiValueQueryStringParameters"] == {"a": ["1", "2"], "b": [""]}
    assert (base64.b64decode(event["body"]), event["isBase64Encoded"]) == (b"\xff\xfe", True)
    real = json.loads((ROOT / "tests/events/api-predict-one.json").read_text())
    assert set(event) == set(real)
    assert set(event["requestContext"]) <= set(real["requestContext"])


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/v1/jobs/a-job", "/v1/jobs/{id}"),
        (f"/v1/jobs/{SECRET}", "/v1/jobs/{id}"),
        ("/v1/jobs/a/b", "/{proxy+}"),
        (f"/{SECRET}", "/{proxy+}"),
        ("/v1/predictx", "/{proxy+}"),
    ],
)
def test_what_a_caller_puts_into_a_path_is_no_part_of_its_name(server: ModuleType, path: str, resource: str) -> None:
    assert server.gateway.Resources.of(PATHS).find(path) == resource


def test_a_request_that_is_refused_is_a_line_without_the_caller_s_words(
    made: Made, work: Work, capsys: pytest.CaptureFixture[str], server: ModuleType
) -> None:
    server.logger.registered_handler.setStream(sys.stdout)
    large = Caller(path=f"/v1/jobs/{SECRET}", headers=[(b"content-length", b"99999999")], pieces=0)
    large.left.set()
    asyncio.run(made()(large.scope, large.receive, large.send))
    line = json.loads(capsys.readouterr().out)
    assert (line["message"], line["route"], line["status"]) == ("refused", "POST /v1/jobs/{id}", 413)
    assert SECRET not in json.dumps(line)


# the real handler
def test_the_paths_are_those_of_the_api(server: ModuleType) -> None:
    document = json.loads((ROOT / "docs/openapi.json").read_text())
    assert set(server.resources().patterns) == set(document["paths"])


def test_with_a_bucket_predictions_are_kept_as_in_lambda(model: str, api: ModuleType, lake: Lake) -> None:
    server = importlib.import_module("server")
    application = server.Server(api.handler, server.resources(), settings.Serve())
    caller = Caller(path="/invocations", headers=[(b"content-type", b"application/json")])
    asyncio.run(application(caller.scope, caller.receive, caller.send))
    assert (caller.status, caller.told["x-retrue-model"]) == (200, model)
    (answer,) = caller.answer["predictions"]
    assert lake.find_prediction(answer["id"]).label == answer["label"]
    assert len(list(lake.keys(CAPTURE))) == 1


# the whole program
@dataclass
class Program:
    """`retrue serve` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    def ask(self, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), dict(error.headers)

    def connect(self, body: bytes) -> socket.socket:
        """A connection over which a request was sent, whose answer nobody has read."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        head = f"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        return connection

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Callable[..., Program]]:
    """Starts `retrue serve` with a model folder and no AWS at all."""
    started: list[Program] = []
    cloudless = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}

    def run(*words: str, folder: Path = tiny_model, **environ: str) -> Program:
        log = tmp_path_factory.mktemp("serve") / "log"
        command = [sys.executable, "-m", "retrue.cli", "serve", "--model", str(folder), "--port", "0", *words]
        with log.open("w") as file:
            process = subprocess.Popen(command, env={**cloudless, **environ}, stdout=file, stderr=file, text=True)
        program = Program(process, "", log)
        started.append(program)
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r'"url":"([^"]+)"', log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        program.url = found[1]
        return program

    yield run
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def program(start: Callable[..., Program]) -> Program:
    return start()


def test_a_model_folder_alone_is_served_and_nothing_kept(program: Program, tiny_model: Path) -> None:
    model = artifact.identity(tiny_model)
    assert program.ask("/ping")[:2] == (200, {"status": "ok", "model": model})
    status, body, headers = program.ask("/v1/predict", {"inputs": ["A dull film.", SECRET]})
    assert (status, body["model"], headers["x-retrue-model"], len(body["predictions"])) == (200, model, model, 2)
    assert (
        program.ask("/invocations", {"inputs": "A dull film."})[1]["predictions"][0]["scores"]
        == (body["predictions"][0]["scores"])
    )
    id, label = body["predictions"][0]["id"], body["predictions"][0]["label"]
    for asked in (("/v1/feedback", {"id": id, "label": label}), ("/v1/jobs/a-job",)):
        status, problem, _ = program.ask(*asked)
        assert (status, problem["type"]) == (404, "urn:retrue:problem:no-lake")
        assert "BUCKET" in problem["detail"]
    assert program.ask("/v1/model")[1]["card"]["labels"] == ["negative", "positive"]
    assert program.ask(f"/v1/{SECRET.split()[0]}")[0] == 404
    assert SECRET.split()[0] not in program.log.read_text()


def test_the_client_of_hugging_face_gets_its_answer(program: Program, tmp_path: Path) -> None:
    quiet = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for path in ("/v1/text-classification", "/invocations"):
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, program.url + path],
            env={**os.environ, **quiet}, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        first, *rest = done.stdout.splitlines()
        every, one = json.loads(first)
        scores = program.ask("/v1/predict", {"inputs": "A dull film."})[1]["predictions"][0]["scores"]
        assert dict(every) == pytest.approx(scores)
        assert [score for _, score in every] == sorted(scores.values(), reverse=True)
        assert one == every[:1]
        assert "422" in " ".join(rest)
        assert "must be softmax" in " ".join(rest)


def test_a_body_over_the_limit_is_refused_to_a_client_that_sends_it_all(program: Program) -> None:
    status, problem, _ = program.ask("/v1/predict", b"x" * 7_000_000)
    assert (status, problem["type"]) == (413, "urn:retrue:problem:too-large")
    assert program.ask("/v1/predict", {"inputs": "fine"})[0] == 200


def test_requests_of_many_clients_are_all_answered_or_told_to_come_again(start: Callable[..., Program]) -> None:
    program, statuses = start(SERVE_QUEUE="4"), []
    body = json.dumps({"inputs": ["a dull film, and a long one"] * 64}).encode()

    def ask() -> None:
        statuses.append(program.ask("/v1/predict", body)[0])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(statuses) == 16
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 4
    assert program.ask("/v1/predict", {"inputs": "fine"})[0] == 200


def test_clients_that_go_away_are_not_scored(program: Program) -> None:
    long = json.dumps({"inputs": ["a dull film, and a long one " * 600] * 64}).encode()
    body = json.dumps({"inputs": "a dull film"}).encode()
    # On a busy machine the long one may be over before they have come and gone, and then one of them is scored.
    for _ in range(ATTEMPTS):
        before = len(program.lines())
        with program.connect(long) as first:  # this one runs, while the others wait
            for connection in [program.connect(body) for _ in range(6)]:
                connection.close()
            assert program.ask("/v1/predict", {"inputs": "fine"})[0] == 200
            assert first.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        new = program.lines()[before:]
        gone = [line["status"] for line in new].count(499)
        # The large body may take longer to arrive than the last small one.
        scored = sorted(line["inputs"] for line in new if "inputs" in line)
        assert scored == [1] * (1 + 6 - gone) + [64]
        if gone == 6:
            return
    pytest.fail(f"in none of {ATTEMPTS} attempts all six were left out")


def test_what_waits_at_sigterm_is_answered_before_the_end(start: Callable[..., Program]) -> None:
    program = start()
    body = json.dumps({"inputs": ["a dull film, and a long one " * 60] * 64}).encode()
    with program.connect(body) as first, program.connect(body) as second:
        deadline = time.monotonic() + PATIENCE
        while program.ask("/ping")[0] != 200:
            assert time.monotonic() < deadline
        assert program.stop() == 0
        for connection in (first, second):
            assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(urllib.error.URLError):
        program.ask("/ping")


@pytest.fixture
def connection(program: Program) -> Iterator[http.client.HTTPConnection]:
    """One connection for many requests."""
    found = http.client.HTTPConnection(program.url.removeprefix("http://"), timeout=PATIENCE)
    yield found
    found.close()


def ask_over(connection: http.client.HTTPConnection, text: str) -> float:
    """Seconds until the answer is there."""
    began = time.perf_counter()
    connection.request("POST", "/v1/predict", json.dumps({"inputs": text}), {"content-type": "application/json"})
    assert connection.getresponse().read().startswith(b'{"model"')
    return time.perf_counter() - began


def test_an_answer_leaves_at_once(connection: http.client.HTTPConnection) -> None:
    # What is sent in two pieces would wait for 40 ms, until the client has confirmed the first (Nagle's algorithm).
    assert min(ask_over(connection, "A dull film.") for _ in range(20)) < 0.035


def test_memory_stays_where_it_is(program: Program, connection: http.client.HTTPConnection) -> None:
    def resident() -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{program.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])

    for n in range(300):
        ask_over(connection, f"film number {n}")
    before = resident()
    for n in range(1_500):
        ask_over(connection, f"film number {n}")
    assert resident() - before < 4_000  # kB


@pytest.mark.parametrize("wrong", ["empty", "altered"])
def test_a_folder_that_is_no_model_ends_the_program_with_a_sentence(
    wrong: str, tiny_model: Path, tmp_path: Path
) -> None:
    if wrong == "altered":
        shutil.copytree(tiny_model, tmp_path / "model")
        (tmp_path / "model" / artifact.GOLDEN).write_text("[]")
    else:
        (tmp_path / "model").mkdir()
    words = [sys.executable, "-m", "retrue.cli", "serve", "--model", str(tmp_path / "model"), "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert re.match(r"error: (model holds no manifest\.json|model \w+ is not whole \(golden\.json\))", done.stderr)
    assert "Traceback" not in done.stderr
