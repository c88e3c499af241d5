"""Before numpy and mlx load: threads for each rank of this host, and on Linux a fast BLAS for mlx, whose wheel carries the reference one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

LIBRARY = "libopenblas.so.0"  # Debian's libopenblas0-pthread, Fedora's openblas
FOLDERS = ("/usr/lib/*-linux-gnu/openblas-pthread", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
THREADS = ("RINGATTN_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
ADVICE = "apt-get install libopenblas0-pthread makes mlx's matrix products some 30 times faster"


def openblas() -> Path | None:
    """The installed OpenBLAS that mlx can be made to use; None where there is none, and on macOS, which needs none."""
    if sys.platform != "linux":
        return None
    found = (path for folder in FOLDERS for path in sorted(Path("/").glob(f"{folder[1:]}/{LIBRARY}")))
    return next(found, None)


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to a rank's environment: its share of this host's cores, and the preload. What is set already stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // _ranks_on_this_host(environ)))
    added = {name: threads for name in THREADS if name not in environ}
    library = openblas()
    preload = environ.get("LD_PRELOAD", "")
    if library is not None and "blas" not in preload:
        added["LD_PRELOAD"] = f"{library} {preload}".strip()
    return added


def restart_prepared() -> None:
    """Become this very program again with `rank_environment` in force, unless it is already or mlx has been loaded."""
    added = rank_environment(os.environ)
    if added and "mlx.core" not in sys.modules:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **added})


def describe(environ: Mapping[str, str]) -> str:
    """One line: which BLAS mlx's matrix products run on."""
    if sys.platform != "linux":
        return "BLAS: the system's own"
    library = next((path for path in environ.get("LD_PRELOAD", "").split() if "blas" in path), None)
    return f"BLAS: {library}" if library else f"BLAS: the reference one in mlx's wheel; {ADVICE}"


def _ranks_on_this_host(environ: Mapping[str, str]) -> int:
    """Ranks of the ring that have this rank's address; 1 where no ring is described or readable (`ringattn.init` says why)."""
    try:
        nodes = [host[0].rpartition(":")[0] for host in json.loads(Path(environ["MLX_HOSTFILE"]).read_text())]
        return max(1, nodes.count(nodes[int(environ["MLX_RANK"])]))
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return 1
