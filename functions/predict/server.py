"""The API without Lambda: the same handler behind a socket, for `retrue serve`, SageMaker, or any place for containers.

One request runs at a time, as in Lambda: a text takes all of a CPU, and two side by side would only both come later.
What comes meanwhile waits in a line of bounded length, and costs nothing once its caller has gone.
"""

import argparse
import asyncio
import math
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import uvicorn
from aws_lambda_powertools import Logger

import app
import gateway
import problems
from problems import Kind
from retrue import settings
from retrue.errors import RetrueError

# What Lambda's variables say where there is none: SageMaker's folder, and no lake.
ALONE = {"BUCKET": settings.NO_BUCKET, "ENVIRONMENT": "serve", "MODEL_URI": "file:///opt/ml/model"}
MEGABYTE = 1_000_000
LINGER_SECONDS = 1.0  # for what a refused caller still sends
KEEP_ALIVE_SECONDS = 75  # longer than a load balancer keeps a connection that it has not used

RETRY_SECONDS = "1"

BUSY = Kind(503, "busy", "As many requests wait already as may: wait a second and send it again.")
LATE = Kind(503, "busy", "The request waited for as long as one may, and was not begun: send it again later.")
OVERRUN = Kind(504, "timeout", "The request took longer than one may: send fewer or shorter texts.")
SLOW = Kind(408, "slow", "The body did not arrive in time.")
LARGE = Kind(413, "too-large", "The body is larger than one may be: send fewer or shorter texts at a time.")

logger = Logger(service="serve")  # the handler's own carries the facts of the request that runs

Reply = dict[str, Any]
Handler = Callable[[dict[str, Any], Any], Reply]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):
    """A request that the handler never answers; `unread` where some of its body may still be under way."""

    def __init__(self, kind: Kind, unread: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.unread = kind, unread


class Gone(Exception):
    """The caller has gone."""


class Server:
    """The ASGI application: one thread runs the handler, and `limits` bound what waits for it."""

    def __init__(self, handler: Handler, resources: gateway.Resources, limits: settings.Serve) -> None:
        self.handler, self.resources, self.limits = handler, resources, limits
        self._thread, self._turn, self._inside = ThreadPoolExecutor(1, "handler"), asyncio.Lock(), 0
        self._most = int(limits.serve_megabytes * MEGABYTE)
        # Told at once while texts are scored: the model that serves now does so until the process ends.
        self._health = self._run({"method": "GET", "headers": [], "query_string": b""}, "/v1/health", b"", "start")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        began, id, unread = time.perf_counter(), str(uuid.uuid4()), False
        try:
            reply = await self._answer(scope, receive, id)
        except Gone:
            self._log(scope, began, 499)  # nginx's number for it
            return
        except Refused as refused:
            reply, unread = problems.raw(id, refused.kind), refused.unread
            if refused.kind.status == 503:
                reply["multiValueHeaders"]["Retry-After"] = [RETRY_SECONDS]
            self._log(scope, began, refused.kind.status)
        await _send(reply, receive, send, self._most if unread else 0)

    async def _answer(self, scope: dict[str, Any], receive: Receive, id: str) -> Reply:
        if scope["method"] == "GET" and gateway.DOORS.get(scope["path"], scope["path"]) == "/v1/health":
            return self._health
        if self._inside >= self.limits.serve_queue:
            raise Refused(BUSY, unread=True)
        deadline = asyncio.get_running_loop().time() + self.limits.serve_seconds
        self._inside += 1
        try:
            body = await _read(scope, receive, self._most, deadline)
            gone = asyncio.create_task(_gone(receive))
            try:
                return await self._in_turn(scope, body, id, gone, deadline)
            finally:
                gone.cancel()
        finally:
            self._inside -= 1

    async def _in_turn(
        self, scope: dict[str, Any], body: bytes, id: str, gone: "asyncio.Task[None]", deadline: float
    ) -> Reply:
        loop = asyncio.get_running_loop()
        turn = asyncio.create_task(self._turn.acquire())
        await asyncio.wait({turn, gone}, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        if not turn.done():
            turn.cancel()
            raise Gone if gone.done() else Refused(LATE)
        if gone.done():
            self._turn.release()
            raise Gone
        run = loop.run_in_executor(self._thread, self._run, scope, gateway.door(scope["path"], body), body, id)
        # The thread cannot be stopped, so the turn ends with it and not with the time.
        run.add_done_callback(lambda _: self._turn.release())
        await asyncio.wait({run}, timeout=deadline - loop.time())
        if not run.done():
            raise Refused(OVERRUN)
        return run.result()

    def _run(self, scope: Mapping[str, Any], path: str, body: bytes, id: str) -> Reply:
        event = gateway.event(scope, path, self.resources.find(path), body, id)
        return self.handler(event, gateway.Context(id))

    def _log(self, scope: Mapping[str, Any], began: float, status: int) -> None:
        resource = self.resources.find(gateway.DOORS.get(scope["path"], scope["path"]))
        facts = {"status": status, "ms": round(1000 * (time.perf_counter() - began), 1)}
        logger.info("refused", extra={"route": f"{scope['method']} {resource}", **facts})


async def _read(scope: Mapping[str, Any], receive: Receive, most: int, deadline: float) -> bytes:
    """The body; Refused where it is longer than `most` bytes, as soon as that is known, or comes too slowly."""
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if int(told) > most:
        raise Refused(LARGE, unread=True)
    found = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                found += message["body"]
                if len(found) > most:
                    raise Refused(LARGE, unread=True)
                if not message["more_body"]:
                    return bytes(found)
    except TimeoutError:
        raise Refused(SLOW, unread=True) from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(reply: Reply, receive: Receive, send: Send, unread: int) -> None:
    """Send a reply; where a body was not read, throw away up to `unread` bytes of it before the connection is closed.

    Many a client sends to the end before it reads an answer, and finds none in a connection that was closed.
    """
    status, headers, body = gateway.http(reply)
    if unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread > 0})
    if unread:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while unread > 0 and (message := await receive()).get("more_body"):
                    unread -= len(message["body"])
        await send({"type": "http.response.body"})


def resources() -> gateway.Resources:
    """The paths that the API has."""
    return gateway.Resources.of(app.app.get_openapi_schema(title="retrue", version="1").paths or ())


def main(words: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what waits then is answered before the end."""
    asked = arguments(words)
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    try:
        limits, model = settings.read(settings.Serve, os.environ), app.serving().classifier.model
        listening = socket.create_server((asked.host, asked.port))
        # asyncio does this for sockets of its own making; without it the second piece of an answer waits for 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (RetrueError, OSError) as error:
        sys.exit(f"error: {error}")
    host, port = listening.getsockname()
    logger.info("serving", extra={"model": model, "url": f"http://{host}:{port}"})
    # uvicorn gives the signal back when it has ended, and that is a good end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        Server(app.handler, resources(), limits), http="h11", ws="none", loop="asyncio", lifespan="off",
        log_config=None, access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(limits.serve_seconds),
    )  # fmt: skip
    uvicorn.Server(config).run([listening])


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve", description="Serve the API over HTTP.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at")  # noqa: S104 - a container's own
    parser.add_argument("--port", type=int, default=8080, help="port; 0 picks a free one")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
