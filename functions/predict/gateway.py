"""What API Gateway does before the handler, done here: an HTTP request becomes its event, and a reply HTTP again."""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

# What SageMaker asks for, by the path that answers it.
DOORS = {"/ping": "/v1/health", "/invocations": "/v1/predict"}
# Inside a JSON text quotes are escaped, so this is a key.
PARAMETERS = re.compile(rb'"parameters"\s*:')
NOWHERE = "/{proxy+}"

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Context:
    """What Lambda tells a handler about its call."""

    aws_request_id: str
    function_name: str = "predict"
    function_version: str = "serve"
    invoked_function_arn: str = "serve"
    memory_limit_in_mb: int = 0


@dataclass(frozen=True)
class Resources:
    """The API's own paths, such as /v1/jobs/{id}: logs name these and not what a caller has put into a path."""

    patterns: Mapping[str, re.Pattern[str]]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Resources":
        return cls({path: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in paths})

    def find(self, path: str) -> str:
        return next((each for each, pattern in self.patterns.items() if pattern.fullmatch(path)), NOWHERE)


def door(path: str, body: bytes) -> str:
    """The API's path behind a path: a body with `parameters` comes from a Hugging Face client."""
    if path == "/invocations" and PARAMETERS.search(body):
        return "/v1/text-classification"
    return DOORS.get(path, path)


def event(scope: Mapping[str, Any], path: str, resource: str, body: bytes, id: str) -> dict[str, Any]:
    """The event of a REST API with proxy integration; the body goes in base64, whatever it holds."""
    headers = _lists((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    query = _lists(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    return {
        "resource": resource,
        "path": path,
        "httpMethod": scope["method"],
        "headers": _last(headers),
        "multiValueHeaders": headers,
        "queryStringParameters": _last(query) or None,
        "multiValueQueryStringParameters": query or None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "requestId": id,
            "resourcePath": resource,
            "httpMethod": scope["method"],
            "path": path,
            "stage": "serve",
        },
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def http(reply: Mapping[str, Any]) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a handler's reply."""
    body = reply["body"].encode()
    headers = [(name, value) for name, values in reply["multiValueHeaders"].items() for value in values]
    named = [(name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in headers]
    return reply["statusCode"], [*named, (b"content-length", str(len(body)).encode())], body


def _lists(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _last(lists: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: values[-1] for name, values in lists.items()}
