"""What the commands of this package share: a fault is one line, which one rank says for all."""

import contextlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TypeVar

import mlx.core as mx
import numpy as np

from ringattn._errors import ArgumentError, PeerError, RingError
from ringattn.transport import Group, transport_of, wait_limit

USAGE = 2  # exit code of a command that was given something unusable
T = TypeVar("T")


def cause(error: BaseException) -> str:
    """Return what an error says, without its number, shortened to one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, KeyError):
        said = f"it has no {said}"
    return textwrap.shorten(said, 240, placeholder=" …").rstrip(".;:?") or type(error).__name__


@contextlib.contextmanager
def refused(problem: str, advice: str) -> Iterator[None]:
    """Turn what MLX, the file system and mlx-lm raise for a file into one sentence.

    Args:
        problem: the subject and what cannot be done with it.
        advice: what to do.

    Raises:
        ArgumentError: in the place of the error.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises plain ones
        if isinstance(error, (RingError, ImportError, MemoryError)):
            raise
        raise ArgumentError(f"{problem}: {cause(error)}; {advice}") from error


def together(program: str, prepare: Callable[[], T], group: Group, timeout: float | None) -> T:
    """Run a rank's own preparation; if it fails on some ranks, the first of them says why, and all exit.

    Args:
        program: name for the message.
        prepare: uses this rank's files only, and exchanges nothing.
        group: all its ranks call this function.
        timeout: seconds that a rank may be silent.

    Returns:
        What `prepare` returned on this rank.

    Raises:
        SystemExit: with USAGE, on every rank.
    """
    transport, limit = transport_of(group), wait_limit(timeout)
    fault = None
    try:
        result = prepare()
    except (ArgumentError, OSError) as error:
        fault = error
    flags = mx.array([int(fault is not None)])
    if transport.size() > 1:
        (flags,) = transport.all_gather(flags, "agreeing that every rank is prepared").wait(limit)
    failed = np.flatnonzero(np.array(flags))
    if not len(failed):
        return result
    if fault is not None and transport.rank() == failed[0]:
        print(f"{program}: {fault}", file=sys.stderr, flush=True)
    if transport.size() > 1:  # a launcher ends all ranks when the first has ended: not before the line is out
        with contextlib.suppress(PeerError):
            transport.all_gather(flags[:1], "ending together").wait(limit)
    raise SystemExit(USAGE)


def need_mlx_lm(program: str) -> None:
    """Exit with USAGE and one line where mlx-lm is not installed.

    Args:
        program: name for the message.

    Raises:
        SystemExit: if it is not.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        print(
            f"{program}: mlx-lm is not installed: `uv sync --extra lm` in a clone, else `pip install mlx-lm`",
            file=sys.stderr,
        )
        raise SystemExit(USAGE)
