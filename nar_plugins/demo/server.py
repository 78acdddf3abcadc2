"""The server of ``nar-demo``: the page, the list of its models, and one translation at a time.

It answers this machine's browser only. Requests that name another host, or come from a page of another origin, are
refused: so no page of the web can use it (DNS rebinding, cross-site requests).
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, NamedTuple, Sequence
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from nar_plugins.demo.trace import Trace, trace
from nar_plugins.hub import Translator

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/demo.css": "demo.css", "/demo.js": "demo.js", "/icon.svg": "icon.svg"}
HOSTS = ["localhost", "127.0.0.1"]
MAX_CHARACTERS = 1000  # of a text
MAX_BYTES = 16_384  # of a request
WAITING = 16  # requests that wait for the models
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Model(NamedTuple):
    """One of the page's models."""

    name: str
    translator: Translator
    options: Dict[str, Any]  # the keywords that it was loaded with

    @property
    def about(self) -> str:
        """The generator and its options, for the page."""
        options = (f"{name.replace('_', ' ')} {value}" for name, value in self.options.items())
        return ", ".join([f"generator {self.translator.decoder.name}", *options])


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP. message: one line.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Server:
    """The page's requests.

    Args:
        models: at least one.
        thread: the one that loaded them, which decodes, too. Another that had computed before would make every small
            operation of the decoding slower while it lives (``findings/idle_thread_slows_every_product.sh``).
    """

    def __init__(self, models: Sequence[Model], thread: ThreadPoolExecutor):
        self.models, self.thread = models, thread
        self.turn, self.waiting = anyio.Lock(), 0

    def app(self) -> Starlette:
        """The application, for uvicorn."""
        routes = [Route(path, self.file, methods=["GET"]) for path in FILES]
        routes += [Route("/models", self.list), Route("/translate", self.translate, methods=["POST"])]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
        return Starlette(
            routes=routes, middleware=[Middleware(WithHeaders), hosts], exception_handlers={Refused: self.refused}
        )

    async def file(self, request: Request) -> Response:
        return FileResponse(PAGE / FILES[request.url.path])

    async def list(self, request: Request) -> Response:
        models = [{"name": model.name, "about": model.about} for model in self.models]
        return JSONResponse({"models": models, "max_characters": MAX_CHARACTERS})

    async def refused(self, request: Request, error: Refused) -> Response:
        return JSONResponse({"error": error.message}, error.status)

    async def translate(self, request: Request) -> Response:
        """Translate ``{"model": 0, "text": "..."}``, after the requests that came before."""
        model, text = self.asked(await self.body(request))
        if self.waiting >= WAITING:
            raise Refused(503, f"{WAITING} translations are waiting already: try again in a moment")
        self.waiting += 1
        try:
            async with self.turn:
                if await request.is_disconnected():  # nobody waits for it any more
                    return Response(status_code=499)
                found = await asyncio.wrap_future(self.thread.submit(trace, model.translator, text))
        except ValueError as error:
            raise Refused(422, str(error)) from error
        finally:
            self.waiting -= 1
        return JSONResponse(as_json(found))

    async def body(self, request: Request) -> Any:
        """The JSON of a request."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused(403, "the request comes from another page")
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise Refused(415, "send JSON, with the content type application/json")
        content = b""
        try:
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise Refused(413, f"the request is longer than {MAX_BYTES:,} bytes: shorten the text")
        except ClientDisconnect as error:
            raise Refused(400, "the request ended early") from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is no JSON") from error

    def asked(self, body: Any) -> tuple:
        """The model and the text of a request."""
        number, text = (body.get(name) for name in ("model", "text")) if isinstance(body, dict) else (None, None)
        if type(number) is not int or not 0 <= number < len(self.models):
            raise Refused(400, f"'model' must be a number from 0 to {len(self.models) - 1}")
        if not isinstance(text, str):
            raise Refused(400, "'text' must be a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refused(422, f"the text is no Unicode text (character {error.start}: {error.reason})") from error
        if len(text) > MAX_CHARACTERS:
            raise Refused(
                413, f"the text has {len(text):,} characters, the limit is {MAX_CHARACTERS:,}: give one sentence"
            )
        if not text.strip():
            raise Refused(422, "the text is empty: type a sentence")
        return self.models[number], text


class WithHeaders:
    """Middleware of ASGI: the security headers, on every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def as_json(found: Trace) -> Dict[str, Any]:
    """A trace as the page reads it."""
    return {
        "text": found.translation.text,
        "passes": found.translation.passes,
        "tokens": len(found.translation.tokens),
        "seconds": found.seconds,
        "source": found.source,
        "frames": [
            {
                **frame._asdict(),
                "cells": [cell._asdict() for cell in frame.cells],
                "arcs": [arc._asdict() for arc in frame.arcs],
            }
            for frame in found.frames
        ],
    }
