"""The worker's limit on the arenas of glibc's allocator."""

import platform
import subprocess
import sys

import pytest

ARENAS_USED = """
import ctypes, re, sys, threading
if sys.argv[1] == "limited":
    from worker.process.allocator import limit_arenas
    assert limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
start = threading.Barrier(8)
def allocate():
    start.wait()
    libc.malloc(ctypes.c_size_t(1000))
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas for threads")
def test_threads_of_a_worker_share_one_arena() -> None:
    """A worker held 830 MB after three bulk files: what each of its threads had once allocated."""
    arenas = {}
    for name in ("usual", "limited"):
        done = subprocess.run([sys.executable, "-c", ARENAS_USED, name], capture_output=True, text=True, check=True)
        arenas[name] = done.stdout.count("<heap nr=")
    assert arenas["usual"] > arenas["limited"] == 1
