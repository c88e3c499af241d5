"""The page's server: the page, its events, `status.json` and `metrics`. It only reads, and only while somebody looks.

Each subscriber gets the newest content of the panels that have changed since it was last sent any: a slow one skips what lies
between, so nothing is queued for it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from coordinator.watch.access import COOKIE, HEADERS, PARAMETER, Address, allowed
from coordinator.watch.assets import asset
from coordinator.watch.folder import FolderReader, View
from coordinator.watch.prometheus import CONTENT_TYPE, exposition
from coordinator.watch.views import Renderer, curve_points

EVERY_S = 1.0  # between two looks at the folder
PING_S = 15.0  # without a change, after which a subscriber is sent a comment: proxies close silent connections
MAX_SUBSCRIBERS = 32  # pages that are open at the same time
Handler = Callable[[Request], Awaitable[Response]]


class Hub:
    """Reads the folder while there are subscribers, and holds the newest content of each panel with its version."""

    def __init__(self, reader: FolderReader, every_s: float = EVERY_S) -> None:
        """Take the reader of the folder."""
        self._reader, self._every_s = reader, every_s
        self._renderer = Renderer()
        self._panels: dict[str, tuple[int, str]] = {}  # name → version, content
        self._version = 0
        self._changed = asyncio.Condition()
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
        return await to_thread.run_sync(self._renderer.page, view)

    async def _refresh(self) -> None:
        while self.subscribers and not self._closing:
            await self._update()
            await asyncio.sleep(self._every_s)

    async def _update(self) -> None:
        view = await self.view()
        panels = await to_thread.run_sync(self._renderer.panels, view)
        new = {name: html for name, html in panels.items() if self._panels.get(name, (0, ""))[1] != html}
        if new:
            self._version += 1
            self._panels |= {name: (self._version, html) for name, html in new.items()}
            async with self._changed:
                self._changed.notify_all()

    async def close(self) -> None:
        """Send the last state, how a run ended, to all subscribers, and end their streams."""
        self._read_at = float("-inf")
        if self.subscribers:
            await self._update()
        self._closing = True
        async with self._changed:
            self._changed.notify_all()

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events: the panels that have changed, as one JSON object of name → HTML."""
        self.subscribers += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._refresh())
            seen = 0
            yield "retry: 2000\n\n"
            while True:
                new = {name: html for name, (version, html) in self._panels.items() if version > seen}
                if new:
                    seen = self._version
                    yield f"data: {json.dumps(new)}\n\n"
                    continue
                if self._closing:
                    yield "event: end\ndata:\n\n"
                    return
                async with self._changed:
                    try:
                        await asyncio.wait_for(self._changed.wait(), PING_S)
                    except TimeoutError:
                        yield ": still here\n\n"
        finally:
            self.subscribers -= 1


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
                response = await handler(request)
            response.headers.update(HEADERS)
            return response

        return answer

    async def page(request: Request) -> Response:
        return Response(await hub.page(), media_type="text/html")

    async def events(request: Request) -> Response:
        if hub.subscribers >= MAX_SUBSCRIBERS:
            return PlainTextResponse(f"{MAX_SUBSCRIBERS} pages are open already.\n", 503)
        return StreamingResponse(hub.events(), media_type="text/event-stream")

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
                log_level="error",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=1,
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
        "now": view.now,
        "running": view.running,
        "state": view.state,
        "stages": view.stages,
        "tasks": {one.kind: one.counts for one in view.tasks.kinds},
        "given_up": view.tasks.failed,
        "loss": curve_points(training.loss) if training else [],
        "skill": {name: curve_points(one) for name, one in training.skill.items()} if training else {},
        "pop": curve_points(control.history) if control else [],
        "log": view.log,
    }
