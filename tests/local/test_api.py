"""The deployed API over real HTTP: what API Gateway itself answers, and what comes from the function behind it."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from retrue.stack import Stack


def call(stack: Stack, method: str, path: str, key: str | None, body: bytes | None = None) -> tuple[int, str, Any]:
    """Status, content type and JSON of one request."""
    headers = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
    request = urllib.request.Request(stack.api_url + path, method=method, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], json.loads(error.read())


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key_there_is_a_problem_and_no_answer(stack: Stack, key: str | None) -> None:
    status, kind, problem = call(stack, "GET", "/v1/health", key)
    assert (status, kind) == (403, "application/problem+json")
    assert (problem["type"], problem["status"]) == ("urn:retrue:problem:forbidden", 403)
    assert problem["request_id"]


def test_a_path_that_is_not_there_is_a_problem(stack: Stack) -> None:
    status, kind, problem = call(stack, "GET", "/v2/nothing", stack.api_key)
    assert (status, kind) == (404, "application/problem+json")
    assert problem["type"] == "urn:retrue:problem:not-found"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"inputs": ', 400), (b'{"inputs": 3}', 422), (b'{"input": "secret words"}', 422), (b'{"inputs": []}', 422)],
)
def test_a_wrong_body_is_a_problem_that_does_not_repeat_it(stack: Stack, body: bytes, status: int) -> None:
    found, kind, problem = call(stack, "POST", "/v1/predict", stack.api_key, body)
    assert (found, kind) == (status, "application/problem+json")
    assert problem["request_id"]
    assert "secret" not in json.dumps(problem)


def test_an_unknown_job_is_not_found(stack: Stack) -> None:
    status, _, problem = call(stack, "GET", "/v1/jobs/0123456789abcdef0123", stack.api_key)
    assert status == 404
    assert "job" in problem["detail"]


def test_the_status_has_what_a_program_needs(stack: Stack) -> None:
    wanted = {"api_url", "api_key", "endpoint_url", "bucket", "state_machine_arn", "function", "alias_version"}
    assert wanted | {"model_version"} <= stack.status().keys()


def test_the_monitor_runs_before_the_first_model(stack: Stack) -> None:
    report = stack.check(request=False)
    assert report["decision"] in ("none", "wait", "retrain")
    assert report["requested"] is False
