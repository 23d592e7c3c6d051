"""Least privilege: each function of the stack was allowed all that it called in these tests, and calls what it may.

Last of the tests on the local stack, since it reads what the others made the functions do.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from retrue.local import localize
from retrue.local.home import ENVIRONMENT
from retrue.stack import Stack

PROJECT = Path(__file__).resolve().parents[1]
RESOURCES: dict[str, Any] = localize.read(PROJECT / "template.yaml")["Resources"]
FUNCTIONS = {
    resource["Properties"]["FunctionName"]["Fn::Sub"].replace("${Environment}", ENVIRONMENT): resource["Properties"]
    for resource in RESOURCES.values()
    if resource["Type"] == "AWS::Serverless::Function"
}
SERVICES = {"stepfunctions": "states"}
# Where the permission is not called as the operation is.
ACTIONS = {
    "s3:HeadObject": "s3:GetObject",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "lambda:Invoke": "lambda:InvokeFunction",
}
# What the tests on the stack may leave a function without doing, and where it is tested.
UNUSED = {
    "predict s3:GetObject predictions/*": "feedback on a prediction that is batched already: tests/test_answers.py",
    "batch s3:GetObject models/*": "on this machine the functions share /tmp, and predict has fetched the model",
    "batch s3:GetObject predictions/*": "labels of predictions that are batched already: tests/test_jobs.py",
    "batch sqs:SendMessage": "Lambda sends dead letters in the function's name",
    "monitor s3:GetObject predictions/*": "a check that broke off while it batched: tests/test_intake.py",
    "monitor sqs:SendMessage": "Lambda sends dead letters in the function's name",
    "steps s3:GetObject feedback/*": "labels that came since the last check: tests/retraining/test_snapshot.py",
    "release s3:GetObject capture/*": "a canary that was asked something: tests/retraining/test_promotion.py",
    "release s3:GetObject predictions/*": "a canary that was asked something: tests/retraining/test_promotion.py",
}

Grants = dict[str, list[str]]


def granted(function: str) -> Grants:
    """What a function may do whatever the parameters are, as action: patterns of keys, "" where it is no object."""
    found: Grants = defaultdict(list)
    for policy in FUNCTIONS[function]["Policies"]:
        for statement in policy.get("Statement", ()):
            actions, places = (
                value if isinstance(value, list) else [value] for value in (statement["Action"], statement["Resource"])
            )
            for action in actions:
                for place in places:
                    whole = place.get("Fn::Sub", "") if isinstance(place, dict) else ""
                    found[action].append(whole.removeprefix("${Bucket.Arn}/") if whole.startswith("${Bucket") else "")
    return found


def named(function: str, action: str, pattern: str) -> str:
    return f"{function.rpartition('-')[2]} {action} {pattern}".rstrip()


def called(calls: Path) -> Iterator[tuple[str, str, str]]:
    """Each call as (function, action, key), the key "" where it is about no object."""
    for line in calls.read_text().splitlines():
        call = json.loads(line)
        operation = f"{SERVICES.get(call['service'], call['service'])}:{call['operation']}"
        for key in call["keys"] or [""]:
            yield call["function"], ACTIONS.get(operation, operation), key


@pytest.fixture(scope="module")
def used(stack: Stack, calls: Path) -> dict[str, dict[str, set[str]]]:
    """What each function did in this session: action: keys."""
    if not any(entry.action == "rolled-back" for entry in stack.lake.ledger()):
        pytest.skip("the circle did not run in this session (tests/test_loop.py)")
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for function, action, key in called(calls):
        found[function][action].add(key)
    return found


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_call_is_allowed(used: dict[str, dict[str, set[str]]], function: str) -> None:
    may = granted(function)
    refused = {
        (action, key)
        for action, keys in used[function].items()
        for key in keys
        if not any(fnmatchcase(key, pattern) for pattern in may.get(action, ()))
    }
    assert refused == set()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_permission_is_used(used: dict[str, dict[str, set[str]]], function: str) -> None:
    idle = {
        named(function, action, pattern)
        for action, patterns in granted(function).items()
        for pattern in patterns
        if not any(fnmatchcase(key, pattern) for key in used[function].get(action, ()))
    }
    assert idle <= UNUSED.keys()


def test_what_may_stay_unused_is_granted() -> None:
    grants = {
        named(function, action, pattern)
        for function in FUNCTIONS
        for action, patterns in granted(function).items()
        for pattern in patterns
    }
    assert UNUSED.keys() <= grants
