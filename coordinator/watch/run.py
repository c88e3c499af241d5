"""Run the page's server for `coordinator watch`, or in a separate process for `coordinator start --http`."""

from __future__ import annotations

import os
import platform
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from coordinator.stages.stage import OutputMode
from coordinator.watch.access import Address
from coordinator.watch.app import PageServer, create_app
from coordinator.watch.folder import FolderReader
from ingest.console import printable
from ingest.errors import UsageError

NICENESS = 19  # of the page's process while a run is under way: the run has the processors first
STOP_S = 15.0  # for the process to tell open pages how the run ended, at its low priority; it takes milliseconds on an idle machine
SWITCH_S = 0.0005  # for which the thread that reads the folder may keep the one that answers waiting; Python's own 5 ms are long at a low priority


def listen(address: Address) -> tuple[socket.socket, Address]:
    """Return a socket that listens there, and the address with its port.

    Raises:
        UsageError: this host has no such address, or another program listens there.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UsageError(
            f"http {address.host}:{address.port}: cannot listen there ({error.strerror}). Give --http another HOST:PORT; port 0 takes a free one."
        ) from None
    return listening, replace(address, port=listening.getsockname()[1])


def serve(
    data_dir: Path,
    address: Address,
    opened_at: Callable[[str], None],
    say: Callable[[str], None],
    *,
    with_stdin: bool = False,
) -> None:
    """Serve the page of a folder until Ctrl-C.

    Args:
        data_dir: the folder.
        address: where to listen. Off loopback a new token is asked for.
        opened_at: receives the page's URL.
        say: receives a line about a folder that is not there yet.
        with_stdin: end when stdin ends too. A run starts the page in this way, and creates its folder itself.

    Raises:
        UsageError: the address cannot be listened at.
    """
    listening, address = listen(address)
    token = "" if address.loopback else secrets.token_urlsafe(24)
    opened = replace(address, host=platform.node() or address.host) if address.every else address
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has ended
        opened_at(f"{opened.url}{f'?token={token}' if token else ''}")
        if not with_stdin and not data_dir.is_dir():
            say(f"{printable(str(data_dir))}: there is no such folder yet; the page waits for it")
        server = PageServer(create_app(FolderReader(data_dir), address, token))
        sys.setswitchinterval(SWITCH_S)
        if with_stdin:
            threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
        server.run(sockets=[listening])


def _end_with_stdin(server: PageServer) -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    server.should_exit = True


@contextmanager
def page_process(data_dir: Path, address: Address, mode: OutputMode) -> Iterator[None]:
    """Serve the page in a separate process while the context is open, so that it takes no time from the run's server. It ends with this process.

    Raises:
        UsageError: the address cannot be listened at.
    """
    listen(address)[0].close()  # an error is this command's, before the run begins
    command = [sys.executable, "-m", "coordinator", "watch", "--data", str(data_dir), "--with-stdin"]
    host = f"[{address.host}]" if ":" in address.host else address.host
    command += ["--http", f"{host}:{address.port}", *(["--json"] if mode.as_json else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if mode.quiet else None,
        start_new_session=True,  # Ctrl-C is for the run; the page shows how it ends
    )
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
