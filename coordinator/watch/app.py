"""The page's server: the page, its events, `status.json` and `metrics`. It only reads, and only while somebody looks.

Each subscriber gets the newest content of the panels that have changed since it was last sent any: a slow one skips what lies
between, so nothing is queued for it, and one that reads nothing for a minute is dropped.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import uvicorn
from anyio import to_thread
from markupsafe import escape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Send

from coordinator.watch.access import COOKIE, HEADERS, PARAMETER, Address, allowed
from coordinator.watch.advice import advice
from coordinator.watch.assets import asset
from coordinator.watch.folder import FolderReader, View
from coordinator.watch.prometheus import CONTENT_TYPE, exposition
from coordinator.watch.views import Renderer, curve_points
from ingest.console import printable

EVERY_S = 1.0  # between two looks at the folder
PING_S = 15.0  # without a change, after which a subscriber is sent a ping: proxies close silent connections, and pages doubt them
STUCK_S = 60.0  # that a subscriber may take no byte
END_S = 5  # for subscribers to take the last state, at the page's low priority; then their streams are cut
MAX_SUBSCRIBERS = 128  # pages that are open at the same time
Handler = Callable[[Request], Awaitable[Response]]


class Hub:
    """Reads the folder while there are subscribers, and holds the newest content of each panel with its version."""

    def __init__(self, reader: FolderReader, every_s: float = EVERY_S) -> None:
        """Take the reader of the folder."""
        self._reader, self._every_s = reader, every_s
        self._renderer = Renderer()
        self._panels: dict[str, tuple[int, str]] = {}  # name → version, content
        self._version = 0
        self._encoded: dict[
            int, str
        ] = {}  # version that a subscriber has → its event: one text for all who have the same
        self._changed = asyncio.Event()  # set, and replaced, by the next change: no lock that a client could keep
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._view: View | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.subscribers = 0

    async def view(self) -> View:
        """Return the view of the folder, at most `EVERY_S` old."""
        async with self._reading:
            if self._view is None or time.monotonic() - self._read_at >= self._every_s:
                self._view = await to_thread.run_sync(self._reader.read)
                self._read_at = time.monotonic()
            return self._view

    async def page(self) -> str:
        """Return the page as it was seen last: opening it waits for no reading but the first. Its events bring what is new."""
        view = self._view or await self.view()
        drawn = {name: html for name, (_, html) in self._panels.items()}
        return await to_thread.run_sync(self._renderer.page, view, drawn)

    async def _refresh(self) -> None:
        while self.subscribers and not self._closing:
            try:
                await self._update()
            except (
                Exception
            ) as error:  # a file of a kind that nobody thought of must not stop the page: it says so and goes on
                await self._publish({"problem": str(escape(printable(f"{type(error).__name__}: {error}")))})
            await asyncio.sleep(self._every_s)

    async def _update(self) -> None:
        view = await self.view()
        panels = await to_thread.run_sync(self._renderer.panels, view)
        await self._publish({**panels, "problem": ""})

    async def _publish(self, panels: Mapping[str, str]) -> None:
        new = {name: html for name, html in panels.items() if self._panels.get(name, (0, None))[1] != html}
        if new:
            self._version += 1
            self._encoded = {}
            self._panels |= {name: (self._version, html) for name, html in new.items()}
            self._wake()

    async def close(self) -> None:
        """Send the last state, how a run ended, to all subscribers, and end their streams."""
        self._read_at = float("-inf")
        if self.subscribers:
            await self._update()
        self._closing = True
        self._wake()

    async def events(self) -> AsyncGenerator[str]:
        """Yield server-sent events: the panels that have changed, as one JSON object of name → HTML."""
        self.subscribers += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._refresh())
            seen = 0
            yield "retry: 2000\n\n"
            while True:
                if seen < self._version:
                    event, seen = self._event(seen), self._version
                    yield event
                    continue
                if self._closing:
                    yield "event: end\ndata:\n\n"
                    return
                if not await self._change(seen):
                    yield "event: ping\ndata:\n\n"
        finally:
            self.subscribers -= 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _change(self, seen: int) -> bool:
        """Wait for something newer than version `seen`, for at most `PING_S`; return whether there is."""
        if not self._closing and self._version <= seen:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), PING_S)
        return self._closing or self._version > seen

    def _event(self, seen: int) -> str:
        """Return the event of the panels that are newer than version `seen`."""
        if seen not in self._encoded:
            new = {name: html for name, (version, html) in self._panels.items() if version > seen}
            self._encoded[seen] = f"data: {json.dumps(new)}\n\n"
        return self._encoded[seen]


class EventStream(StreamingResponse):
    """Server-sent events; a client that takes nothing for `STUCK_S` is dropped, so that it keeps no other page out."""

    def __init__(self, events: AsyncGenerator[str]) -> None:
        """Take the events."""
        super().__init__(events, media_type="text/event-stream")
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events until the client is gone or stuck."""

        async def within(message: Message) -> None:
            await asyncio.wait_for(send(message), STUCK_S)

        with suppress(TimeoutError):
            await super().stream_response(within)
        await self._events.aclose()  # so that its place is free at once


def create_app(reader: FolderReader, address: Address, token: str = "", every_s: float = EVERY_S) -> Starlette:
    """Return the application.

    Args:
        reader: of the folder that it shows.
        address: where it listens.
        token: that requests must have; "": none, on loopback.
        every_s: seconds between two looks at the folder.
    """
    hub = Hub(reader, every_s)

    def guarded(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            given = request.query_params.get(PARAMETER, "")
            if not allowed(address, token, request.headers, request.cookies.get(COOKIE, ""), given):
                text = "The token is missing or wrong: open the address that `coordinator watch` printed.\n"
                response: Response = PlainTextResponse(
                    text if token else "Open the page by a name of this host's loopback.\n", 403
                )
            elif token and given and request.url.path == "/":  # so that the token is in no history and no bookmark
                response = RedirectResponse("/", 303)
                response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            else:
                try:
                    response = await handler(request)
                except Exception as error:  # e.g. a folder that may not be read
                    text = f"The data folder cannot be shown: {type(error).__name__}: {printable(str(error))}\n"
                    response = PlainTextResponse(text, 500)
            response.headers.update(HEADERS)
            return response

        return answer

    async def page(request: Request) -> Response:
        return Response(await hub.page(), media_type="text/html")

    async def events(request: Request) -> Response:
        if hub.subscribers >= MAX_SUBSCRIBERS:
            return PlainTextResponse(f"{MAX_SUBSCRIBERS} pages are open already.\n", 503, {"Retry-After": "5"})
        return EventStream(hub.events())

    async def status(request: Request) -> Response:
        return Response(msgspec.json.encode(document(await hub.view())), media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(exposition((await hub.view()).state, time.time()), media_type=CONTENT_TYPE)

    async def file(request: Request) -> Response:
        content, kind = asset(request.url.path.lstrip("/"))
        return Response(content, media_type=kind)

    handlers = {"/": page, "/events": events, "/status.json": status, "/metrics": metrics}
    handlers |= {"/watch.css": file, "/watch.js": file}
    app = Starlette(routes=[Route(path, guarded(handler)) for path, handler in handlers.items()])
    app.state.hub = hub
    return app


class PageServer(uvicorn.Server):
    """Serves an application of `create_app`; at its end the open pages are told so."""

    def __init__(self, app: Starlette) -> None:
        """Configure uvicorn for it."""
        self._hub: Hub = app.state.hub
        super().__init__(
            uvicorn.Config(
                app,
                log_level="critical",  # a client that is dropped is no error of the run, in whose terminal this would stand
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=END_S,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then the server."""
        await self._hub.close()
        await super().shutdown(sockets)


def document(view: View) -> dict[str, Any]:
    """Return a view as plain data, for `status.json`."""
    training, control = view.training, view.control
    return {
        "data": view.data,
        "host": view.host,
        "now": view.now,
        "running": view.running,
        "missing": view.missing,
        "advice": advice(view),
        "state": view.state,
        "stages": view.stages,
        "tasks": {one.kind: one.counts for one in view.tasks.kinds},
        "given_up": view.tasks.failed,
        "workers": {name: {"rows_per_s": one[0], "requests_per_s": one[1]} for name, one in view.worker_rates.items()},
        "loss": curve_points(training.loss) if training else [],
        "skill": {name: curve_points(one) for name, one in training.skill.items()} if training else {},
        "pop": curve_points(control.history) if control else [],
        "log": view.log,
    }
