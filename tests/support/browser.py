"""Drive Debian's Chromium, headless, over its DevTools pipe: screenshots, layout, console messages."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
TIMEOUT_S = 120.0
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Page:
    """One tab. Messages are JSON followed by a zero byte, as `--remote-debugging-pipe` requires."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.messages: list[str] = []  # errors on the console, and failed requests
        self.requested: list[str] = []  # URLs
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; record the events that arrive before it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            assert select.select([self._back], [], [], deadline - time.monotonic())[0], "Chromium does not answer"
            self._buffer += os.read(self._back, 1 << 20)
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        params = message.get("params", {})
        failed = message.get("method") == "Network.loadingFailed" and not params.get("canceled")  # by the page itself
        if failed or message.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] in ("error", "warning"):
            self.messages.append(message["params"]["entry"]["text"])
        return message

    def open(self, path: Path | str, width: int, height: int, scheme: str) -> None:
        """Load a file or a URL at this size, with the `scheme` light or dark, and wait until it is laid out."""
        self.resize(width, height, scheme)
        self.call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        loaded = "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        self.call("Runtime.evaluate", expression=loaded, awaitPromise=True)

    def resize(self, width: int, height: int, scheme: str) -> None:
        """Take this size, and the `scheme` light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression as plain data."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Start a browser with a new profile in `folder`; the end of the block stops it."""
    assert CHROMIUM
    read, to = os.pipe()
    back, write = os.pipe()
    # Chromium reads commands from descriptor 3 and writes answers to 4; the pipes have other numbers here.
    shell = f'exec "$0" "$@" 3<&{read} 4>&{write}'
    command = ["bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with (folder.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=(read, write), stdout=log, stderr=log)
    os.close(read)
    os.close(write)
    try:
        yield Page(to, back)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
