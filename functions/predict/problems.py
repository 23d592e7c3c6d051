"""Errors as answers: RFC 9457 problem+json, none of which repeats a word that the caller sent."""

import base64
import json
import traceback
from collections.abc import Sequence
from email.message import Message
from functools import partial
from typing import Any, NamedTuple

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestUnsupportedContentType, RequestValidationError

from retrue.errors import BadInput, ModelRefused, NoLake, NoModel, NotFound, RetrueError, TooLarge, UnknownLabel
from shapes import Problem, Reason

MEDIA_TYPE = "application/problem+json"


TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Kind(NamedTuple):
    """One sort of problem; without a detail of its own it gives the error's message, which retrue wrote."""

    status: int
    slug: str
    detail: str = ""


MALFORMED = Kind(400, "malformed", "The body is not JSON in UTF-8.")
MEDIA = Kind(415, "media-type", "Send the body as application/json in UTF-8.")
INVALID = Kind(422, "invalid", "The request is not what this path takes; errors say where.")

KINDS: dict[type[Exception], Kind] = {
    BadInput: Kind(422, "invalid"),
    TooLarge: Kind(413, "too-large"),
    UnknownLabel: Kind(422, "unknown-label"),
    NotFound: Kind(404, "not-found"),
    NoLake: Kind(404, "no-lake"),
    NotFoundError: Kind(404, "not-found", "There is no such path, or not with this method."),
    RequestUnsupportedContentType: MEDIA,
    NoModel: Kind(503, "no-model"),
    ModelRefused: Kind(503, "model-refused", "The model that should serve cannot be loaded; the log says why."),
    Exception: Kind(500, "internal", "The request failed; the log has the request id."),
}
REASONS = {
    "missing": "is required",
    "string_type": "must be a text",
    "list_type": "must be a text or a list of texts",
    "too_short": "must hold at least one text",
    "extra_forbidden": "has a key that is not known here",
    "dict_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "int_type": "must be a whole number",
    "greater_than_equal": "is too small",
    "literal_error": "must be softmax: the scores are calibrated probabilities and no others are given",
}


def register(app: APIGatewayRestResolver, logger: Logger) -> None:
    """Give the app one handler for each sort of error."""
    for error, kind in KINDS.items():
        app.exception_handler(error)(partial(_answer, app, logger, kind))
    app.exception_handler(RequestValidationError)(partial(_invalid, app))


def unreadable(event: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a POST whose body is no JSON object in UTF-8; None where it is one, or there is nothing to read.

    Powertools would take forms as well, and the first object of a list.
    """
    if event["httpMethod"] != "POST":
        return None
    id = event["requestContext"]["requestId"]
    header = Message()
    header["content-type"] = _content_type(event)
    if header.get_content_type() != "application/json" or header.get_content_charset("utf-8") != "utf-8":
        return raw(id, MEDIA)
    body = event.get("body") or ""
    try:
        text = base64.b64decode(body, validate=True).decode() if event.get("isBase64Encoded") else body
        value = json.loads(text)
    except (ValueError, RecursionError):
        return raw(id, MALFORMED)
    return None if isinstance(value, dict) else raw(id, INVALID, [Reason(at="", reason=REASONS["dict_type"])])


def _content_type(event: dict[str, Any]) -> str:
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    return headers.get("content-type") or "application/json"


def _answer(app: APIGatewayRestResolver, logger: Logger, kind: Kind, error: Exception) -> Response[str]:
    if kind.status >= 500:
        # The message of an error that is not retrue's may hold the caller's text: its type and its place must do.
        known = isinstance(error, RetrueError)
        facts = {"kind": type(error).__name__, "detail": str(error)} if known else {"kind": type(error).__name__}
        logger.error("failed", extra={**facts, "stack": traceback.format_tb(error.__traceback__)})
    return _response(kind, app.current_event.request_context.request_id, str(error))


def _invalid(app: APIGatewayRestResolver, error: RequestValidationError) -> Response[str]:
    return _response(INVALID, app.current_event.request_context.request_id, errors=reasons(error.errors()))


def reasons(errors: Sequence[Any]) -> list[Reason]:
    """Where and why in our own words: pydantic's messages and the names of unknown keys are the caller's words."""
    found = []
    for error in errors:
        code, place = error["type"], list(error["loc"][1:])
        if code == "extra_forbidden":
            place.pop()
        found.append(Reason(at="".join(f"/{part}" for part in place), reason=REASONS.get(code, code.replace("_", " "))))
    return list(dict.fromkeys(found))


def _response(kind: Kind, request_id: str, message: str = "", errors: list[Reason] | None = None) -> Response[str]:
    problem = Problem(
        type=f"urn:retrue:problem:{kind.slug}",
        title=TITLES[kind.status],
        status=kind.status,
        detail=kind.detail or message,
        request_id=request_id,
        errors=errors,
    )
    return Response(kind.status, MEDIA_TYPE, problem.model_dump_json(exclude_none=True))


def raw(request_id: str, kind: Kind, errors: list[Reason] | None = None) -> dict[str, Any]:
    """A problem as Lambda's reply, where no route was asked."""
    response = _response(kind, request_id, errors=errors)
    headers = {"Content-Type": [MEDIA_TYPE]}
    return {"statusCode": kind.status, "multiValueHeaders": headers, "body": response.body, "isBase64Encoded": False}


def documented(
    shape: type, *statuses: int, body: bool = False, headers: dict[str, str] | None = None
) -> dict[int, Any]:
    """The answers of one route for the OpenAPI document: its shape and headers, and the problems that it can have."""
    expected = {401, 403, 429, 500, *statuses, *((400, 415, 422) if body else ())}
    problem = {MEDIA_TYPE: {"model": Problem}}
    good: dict[str, Any] = {"description": shape.__doc__, "content": {"application/json": {"model": shape}}}
    if headers:
        good["headers"] = {n: {"description": text, "schema": {"type": "string"}} for n, text in headers.items()}
    return {200: good, **{s: {"description": TITLES[s], "content": problem} for s in sorted(expected)}}
