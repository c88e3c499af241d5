"""BLAS and thread settings of a rank, made before numpy and mlx load.

On Linux mlx's wheel carries the reference BLAS, which is slow; a preloaded OpenBLAS replaces it.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

LIBRARY = "libopenblas.so.0"  # Debian's libopenblas0-pthread, Fedora's openblas
FOLDERS = ("/usr/lib/*-linux-gnu/openblas-pthread", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
THREADS = ("RINGATTN_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
ADVICE = "apt-get install libopenblas0-pthread makes mlx's matrix products about 30 times faster"


def openblas() -> Path | None:
    """Return the installed OpenBLAS that mlx can use; None where there is none, and on macOS, which needs none."""
    if sys.platform != "linux":
        return None
    found = (path for folder in FOLDERS for path in sorted(Path("/").glob(f"{folder[1:]}/{LIBRARY}")))
    return next(found, None)


def blas_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to a rank's environment: its share of this host's cores, and the preloaded OpenBLAS.

    Thread counts and a BLAS that `environ` already sets are kept.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // _ranks_on_this_host(environ)))
    added = {name: threads for name in THREADS if name not in environ}
    library = openblas()
    preload = environ.get("LD_PRELOAD", "")
    if library is not None and "blas" not in preload:
        added["LD_PRELOAD"] = f"{library} {preload}".strip()
    return added


def restart_prepared() -> None:
    """Replace this process by the same program with `blas_environment` set, unless it is set or mlx has been loaded."""
    added = blas_environment(os.environ)
    if added and "mlx.core" not in sys.modules:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **added})


def describe(environ: Mapping[str, str]) -> str:
    """Return one line that names the BLAS of mlx's matrix products."""
    if sys.platform != "linux":
        return "BLAS: the system's"
    library = next((path for path in environ.get("LD_PRELOAD", "").split() if "blas" in path), None)
    return f"BLAS: {library}" if library else f"BLAS: the reference BLAS of mlx's wheel; {ADVICE}"


def _ranks_on_this_host(environ: Mapping[str, str]) -> int:
    """Return the number of ranks that share this rank's address.

    Returns 1 where the environment describes no ring or an invalid one; `ringattn.init` reports what is wrong with it.
    """
    try:
        nodes = [host[0].rpartition(":")[0] for host in json.loads(Path(environ["MLX_HOSTFILE"]).read_text())]
        return max(1, nodes.count(nodes[int(environ["MLX_RANK"])]))
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return 1
