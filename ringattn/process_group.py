"""Process group: join the ring with a deadline (rendezvous), and exit when it is broken.

`mx.distributed.init` waits for ever for a peer that never starts, and holds the interpreter's lock, so no thread of this
process could end it. `init` therefore first passes a barrier with the other ranks over plain sockets on the same ports,
with a deadline, and calls MLX only after every rank of the ring has answered.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NoReturn

import mlx.core as mx

from ringattn._errors import LaunchError, PeerLost, PeerStalled
from ringattn.liveness import Waits, start_heartbeat
from ringattn.macos import JACCL_REFUSAL, describes_jaccl, error_name, fast_synch_warning, local_network_hint

DEFAULT_TIMEOUT = 60.0  # seconds
EXIT_BROKEN = 75  # EX_TEMPFAIL of sysexits.h: incomplete, can be started again
_HELLO = b"ringattn"

_joined: mx.distributed.Group | None = None


def init(timeout: float = 30.0) -> mx.distributed.Group:
    """Join the group that MLX_RANK and MLX_HOSTFILE describe (mlx.launch and ringattn.launch set them).

    Without them this is a group of one, or that of MPI, which then has no deadline. Errors: PeerStalled after the timeout,
    PeerLost if a peer dies while joining, LaunchError if the hostfile or this rank's address is unusable, or if JACCL is asked for,
    which has no deadline either. A RuntimeWarning names MLX_METAL_FAST_SYNCH where it is set: it can lock GPUs.

    Args:
        timeout: seconds within which every rank must be started.

    Returns:
        The MLX group; the same one at each call.
    """
    global _joined
    if _joined is None:
        rank, nodes = _ring_of_environment()
        if len(nodes) > 1:
            _rendezvous_barrier(rank, nodes, time.monotonic() + timeout, timeout)
            start_heartbeat(rank, nodes)
            _joined = mx.distributed.init(strict=True, backend="ring")
        else:
            refuse_jaccl()
            _joined = mx.distributed.init()
        if _joined.size() > 1 and (danger := fast_synch_warning(os.environ)):
            warnings.warn(f"ringattn: {danger}; unset it on every host", RuntimeWarning, stacklevel=2)
    return _joined


def joined_group() -> mx.distributed.Group | None:
    """Return the group that `init` joined, None before."""
    return _joined


def refuse_jaccl() -> None:
    """Refuse a group that JACCL would make.

    Raises:
        LaunchError: if the environment describes one, and no TCP ring.
    """
    if describes_jaccl(os.environ) and not ring_ports():
        raise LaunchError(
            f'{JACCL_REFUSAL}. Start with `mlx.launch --backend ring`, and "backend": "ring" in the hostfile: TCP, over Thunderbolt too'
        )


def _ring_of_environment() -> tuple[int, list[tuple[str, int]]]:
    """Return this process's rank and the first address of every rank; no addresses if no ring is described.

    Raises:
        LaunchError: if the hostfile cannot be used.
    """  # noqa: DOC501  # the ValueError is caught here
    path, rank = os.environ.get("MLX_HOSTFILE"), os.environ.get("MLX_RANK")
    if not path or rank is None:
        return 0, []
    try:
        nodes = [_address(host[0]) for host in json.loads(Path(path).read_text("utf-8"))]
        if not 0 <= int(rank) < len(nodes):
            raise ValueError(f"MLX_RANK is {rank} but the file lists {len(nodes)} hosts")
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise LaunchError(f'MLX_HOSTFILE {path}: {error}; expected a JSON list like [["10.0.0.1:32323"], …]') from error
    return int(rank), nodes


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def waits_of(size: int) -> Waits:
    """Return how this process waits for the other ranks of a group: with signs of life if the environment describes its ring."""
    rank, nodes = _ring_of_environment()
    return start_heartbeat(rank, nodes) if size == len(nodes) else Waits()


def ring_ports() -> set[int]:
    """Return the ports of the MLX ring that this process belongs to; none if it belongs to none."""
    path = os.environ.get("MLX_HOSTFILE")
    if not path:
        return set()
    with contextlib.suppress(OSError, ValueError):
        return {_address(a)[1] for host in json.loads(Path(path).read_text("utf-8")) for a in host}
    return set()


def _rendezvous_barrier(rank: int, nodes: list[tuple[str, int]], deadline: float, timeout: float) -> None:
    """Return after every rank has reached this point: a byte goes round the ring as many times as there are ranks.

    Raises:
        LaunchError: if this rank's address cannot be used.
        PeerStalled: if a rank does not arrive before the deadline.
        PeerLost: if a neighbour leaves.
    """  # noqa: DOC501  # the ConnectionError is caught here
    size = len(nodes)
    doing = "joining the ring"
    left_rank, right_rank = (rank - 1) % size, (rank + 1) % size
    cause = f"rank {left_rank} did not connect to {nodes[rank]}"
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(nodes[rank], family=_family(nodes[rank])))
        except OSError as error:
            host, port = nodes[rank]
            raise LaunchError(
                f"rank {rank} cannot listen on {host}:{port}: {error}; fix its entry in the hostfile"
            ) from error
        try:
            right = stack.enter_context(_connect(nodes[right_rank], deadline))
            right.sendall(_HELLO)
            left = stack.enter_context(_accept(listener, deadline))
            # Closed on every rank before any rank continues: MLX must not connect to this listener.
            listener.close()
            cause = "a rank further on did not join"
            for _ in range(size):
                right.sendall(b".")
                left.settimeout(_left(deadline))
                if not left.recv(1):
                    raise ConnectionError("the connection was closed")
        except TimeoutError as error:
            if isinstance(error, _NeverConnectedError):
                cause = f"rank {rank} can't reach rank {right_rank} at {nodes[right_rank]}: {error}"
            raise PeerStalled(
                f"rank {rank} of {size}: not every rank joined within {timeout:g} s; {cause}. Is each host of the hostfile started?",
                rank=rank,
                doing=doing,
            ) from None
        except ConnectionError as error:
            raise PeerLost(
                f"rank {rank} of {size}: a neighbour left while joining ({error}); see its own error, then start again",
                rank=rank,
                doing=doing,
            ) from error


def _family(address: tuple[str, int]) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _left(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


class _NeverConnectedError(TimeoutError):
    """No connection before the deadline; the text is the last attempt's error."""


def _connect(address: tuple[str, int], deadline: float) -> socket.socket:
    last: OSError = TimeoutError("no answer")
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection(address, timeout=remaining)
        except OSError as error:  # not listening yet, or no route yet
            # The attempt that the deadline cuts short says less than the one before it.
            last = last if isinstance(error, TimeoutError) else error
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
    hint = local_network_hint(error_name(last))
    raise _NeverConnectedError(f"{last.strerror or last}{hint and f'; {hint}'}")


def _accept(listener: socket.socket, deadline: float) -> socket.socket:
    """Accept the left neighbour's connection; close connections that do not begin with the greeting."""
    while True:
        listener.settimeout(_left(deadline))
        peer, _ = listener.accept()
        peer.settimeout(_left(deadline))
        with contextlib.suppress(ConnectionError):
            if peer.recv(len(_HELLO), socket.MSG_WAITALL) == _HELLO:
                return peer
        peer.close()


_freed: threading.Event | None = None


def bound_exit_wait(freed: threading.Event) -> None:
    """Bound the interpreter's exit, which would hang on a transport thread that is still blocked in MLX.

    Args:
        freed: set when the thread is free.
    """
    global _freed
    _freed = freed


@atexit.register
def _exit_if_stuck() -> None:
    # Sockets were shut down when the group broke; normally the thread is free at once.
    if _freed is not None and not _freed.wait(2.0):
        abort(EXIT_BROKEN)


def abort(code: int = EXIT_BROKEN) -> NoReturn:
    """End this process now (as MPI_Abort does), without MLX's clean-up, which can wait for ever on a broken group.

    Args:
        code: exit code of the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
