"""The BLAS of mlx's products: chosen before mlx loads, checked, and named by what answers. Each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringattn.blas import loader as blas
from ringattn.blas.library import wheel_library

ROOT = Path(__file__).resolve().parents[3]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux loads a BLAS for mlx")
REFERENCE = wheel_library("mlx", "mlx*.libs/libblas*")
OPENBLAS = wheel_library("scipy", "scipy.libs/libscipy_openblas-*")


def built() -> bool:
    try:
        blas.open_shim()
    except blas.BlasError:
        return False
    return True


shim = pytest.mark.skipif(not (sys.platform == "linux" and built()), reason="the shim was not built: no C compiler")

PROGRAM = """
import json, sys
from ringattn.blas import loader as blas
{before}
blas.prepare()
import mlx.core as mx, numpy as np
draw = np.random.default_rng(0)
a, b = (draw.standard_normal((40, 40)).astype(np.float32) for _ in range(2))
with mx.stream(mx.cpu):
    x, y = mx.array(a), mx.array(b)
    errors = {{
        "product": np.array(x @ y) - a @ b,
        "solve": np.array(mx.linalg.inv(x)) @ a - np.eye(40),
        "svd": np.array(mx.linalg.svd(x)[1]) - np.linalg.svd(a)[1],
        "eigh": np.array(mx.linalg.eigvalsh(x + x.T)) - np.linalg.eigvalsh(a + a.T),
        "cholesky": np.array(mx.linalg.cholesky(x @ x.T + 40 * mx.eye(40))) - np.linalg.cholesky(a @ a.T + 40 * np.eye(40)),
        "qr": np.array(mx.linalg.qr(x)[0] @ mx.linalg.qr(x)[1]) - a,
    }}
used = blas.in_use()
print(json.dumps({{
    "build": used.build, "kernel": used.kernel, "path": used.path, "line": blas.describe(), "record": blas.record(),
    "why": blas.choose().why, "errors": {{name: float(np.abs(error).max()) for name, error in errors.items()}},
}}))
"""


def run(before: str = "", **environ: str) -> tuple[dict[str, Any], str]:
    """Multiply matrices in a new process; return what it found, and its stderr."""
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "OPENBLAS_CORETYPE")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        env={**env, **environ}, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert max(found["errors"].values()) < 1e-2, found["errors"]
    return found, done.stderr


@shim
def test_openblas_of_scipys_wheel_answers_mlx_with_nothing_installed() -> None:
    found, stderr = run(OPENBLAS_NUM_THREADS="1")
    assert Path(found["path"]).samefile(OPENBLAS)
    assert found["build"].startswith("OpenBLAS ") and found["kernel"] and stderr == ""
    assert found["record"]["mlx"] == f"{found['build']}, kernel {found['kernel']}, threads 1"
    assert found["record"]["numpy"].endswith("threads 1")


@shim
def test_kernel_of_the_environment_is_the_one_that_is_named() -> None:
    other = "Nehalem" if os.uname().machine == "x86_64" else "ARMV8"  # every CPU of the kind runs it
    found, _ = run(OPENBLAS_CORETYPE=other)
    assert found["kernel"].upper() == other.upper() and other.upper() in found["record"]["numpy"].upper()


@linux
def test_without_a_compiler_one_line_names_the_reason() -> None:
    found, stderr = run("blas.SHIM = 'ringattn.blas._missing'; blas.FOLDERS = ()")
    assert found["build"] == "reference BLAS" and Path(found["path"]).samefile(REFERENCE)
    (line,) = stderr.splitlines()
    assert line.startswith("BLAS: reference BLAS of mlx's wheel") and "no working C compiler" in line
    assert "uv sync --reinstall-package" in line and len(line) <= 256


@shim
def test_library_that_multiplies_wrongly_is_not_loaded() -> None:
    wrong = (
        "import numpy as np; blas.FOLDERS = (); right = np.linalg.cholesky; np.linalg.cholesky = lambda m: 2 * right(m)"
    )
    found, stderr = run(wrong + "; blas.choose(); np.linalg.cholesky = right")
    assert found["build"] == "reference BLAS" and "its dpotrf differs from numpy's by" in found["why"]
    assert len(stderr.splitlines()) == 1


@linux
@pytest.mark.skipif(not REFERENCE, reason="mlx is not from the wheel")
def test_library_that_was_preloaded_by_hand_is_kept() -> None:
    found, stderr = run(LD_PRELOAD=REFERENCE)
    assert Path(found["path"]).samefile(REFERENCE) and stderr == ""


@shim
def test_systems_openblas_is_taken_where_the_shim_is_missing(tmp_path: Path) -> None:
    compiled = tmp_path / blas.SYSTEM_LIBRARY  # CBLAS's names on scipy's OpenBLAS: a system's library in small
    source = tmp_path / "system.c"
    forward = (ROOT / "ringattn" / "blas" / "csrc" / "shim.c").read_text()
    source.write_text(
        forward + f'__attribute__((constructor)) static void open_it(void) {{ ringattn_blas_open("{OPENBLAS}"); }}\n'
    )
    subprocess.run(
        [
            "cc",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(compiled),
            "-Wl,--no-as-needed",
            OPENBLAS,
            f"-Wl,-rpath,{Path(OPENBLAS).parent}",
            "-ldl",
        ],
        check=True,
    )
    found, stderr = run(f"blas.SHIM = 'ringattn.blas._missing'; blas.FOLDERS = ({str(tmp_path)!r},)")
    assert found["build"].startswith("OpenBLAS ") and stderr == ""


@shim
def test_module_that_loads_mlx_first_has_the_fast_blas(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import mlx.core, sys\nfrom ringattn.blas.loader import in_use\nprint(in_use().build, *sys.argv[1:], __name__)"
    )
    out = subprocess.run(
        [sys.executable, "-m", "ringattn.blas", "program", "word"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith("OpenBLAS ") and out.split()[2:] == ["word", "__main__"]


@shim
def test_check_sees_a_wrong_product() -> None:
    library, _ = blas.open_shim()
    blas.check(library)
    with pytest.raises(blas.BlasError, match="sgemm differs from numpy's by nan"):
        blas._compare("sgemm", np.full((2, 2), np.nan), np.ones((2, 2)))


def test_loader_comes_before_mlx_and_every_public_name_after_it() -> None:
    code = (
        "import sys, ringattn, ringattn.blas.loader\n"
        "assert not {'mlx.core', 'numpy'} & set(sys.modules)\n"
        "assert all(getattr(ringattn, name).__module__.startswith('ringattn.') for name in ringattn.__all__)\n"
        "assert not hasattr(ringattn, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_threads_are_this_ranks_share_of_the_cores(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["10.0.0.1:1"], ["10.0.0.2:1"], ["10.0.0.1:2"]]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environ = {"MLX_HOSTFILE": str(hosts), "MLX_RANK": "2", "OMP_NUM_THREADS": "7", blas.SPIN: "26"}
    assert blas.thread_settings(environ) == {
        "RINGATTN_THREADS": str(max(1, cores // 2)), "OPENBLAS_NUM_THREADS": str(max(1, cores // 2)),
    }  # fmt: skip
    assert blas._place_on_host(environ) == (1, 2)  # the second one on its host says nothing
    assert blas.thread_settings({})["OMP_NUM_THREADS"] == str(cores)
