"""The native kernel of another architecture: built by a cross compiler, run by qemu, called as the one of this machine is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np

from ringattn.kernels.native import NativeKernel, _Problem
from tests.support.program import ROOT

HERE = Path(__file__).parent
SOURCES = ROOT / "ringattn" / "kernels" / "csrc"
INSTALL = "apt-get install qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross clang"
CLANG = next((name for name in ("clang", "clang-14") if shutil.which(name)), "clang")
COMPILERS = {"gcc": ("aarch64-linux-gnu-gcc",), "clang": (CLANG, "--target=aarch64-linux-gnu")}
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
ARRAYS = ("q_pos", "k_pos", "q_seg", "k_seg", "q", "k", "v", "dout", "o", "lse", "delta", "dq", "dk", "dv")
WRITTEN = {"ringattn_forward": ("o", "lse"), "ringattn_backward": ("dq", "dk", "dv")}


def emulator() -> str | None:
    """Return the qemu that runs programs of arm64, or None."""
    return next((found for name in EMULATORS if (found := shutil.which(name))), None)


def why_not(compiler: str) -> str:
    """Return why programs of arm64 cannot be built by `compiler` and run here, or ""."""
    if emulator() is None:
        return f"no qemu for arm64: `{INSTALL}`"
    if shutil.which(COMPILERS[compiler][0]) is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        return f"no {compiler} that builds for arm64: `{INSTALL}`"  # clang links with the libraries of GCC's package
    return ""


def build(compiler: str, folder: Path) -> Path:
    """Compile kernel and driver as the package does, with its own flags, and link them statically."""
    (native,) = (
        module
        for module in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
        if module["name"] == "ringattn.kernels._native"
    )
    program = folder / f"kernel-{compiler}"
    sources = [HERE / "driver.c", *(ROOT / source for source in native["sources"])]
    flags = [*native["extra-compile-args"], "-Wall", "-Werror", f"-I{SOURCES}", "-static"]
    subprocess.run([*COMPILERS[compiler], *flags, *sources, "-o", program, "-lm"], check=True)
    return program


class ForeignKernel(NativeKernel):
    """One instruction set of a program that `build` made. Close it to end the process."""

    def __init__(self, program: Path, isa: str, threads: int = 2) -> None:
        self._process = subprocess.Popen([str(emulator()), program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        names = list(iter(lambda: self._out.readline().decode().strip(), ""))
        self.threads, self.isa, self._isa_index = threads, isa, names.index(isa)

    def close(self) -> None:
        self._in.close()
        self._out.close()
        self._process.wait()

    def _invoke(self, function: str, problem: _Problem, arrays: dict[str, np.ndarray]) -> int:
        order = np.array([function == "ringattn_backward", self._isa_index], np.int32)
        parts = [order.tobytes(), ctypes.string_at(ctypes.addressof(problem), ctypes.sizeof(problem))]
        for name in ARRAYS:
            content = arrays[name].tobytes() if name in arrays else None
            parts += [np.int64(-1 if content is None else len(content)).tobytes(), content or b""]
        self._in.write(b"".join(parts))
        self._in.flush()
        rc = int(np.frombuffer(self._take(4), np.int32)[0])
        for name in WRITTEN[function]:
            arrays[name].reshape(-1).view(np.uint8)[:] = np.frombuffer(self._take(arrays[name].nbytes), np.uint8)
        return rc

    def _take(self, size: int) -> bytes:
        content = self._out.read(size)
        assert len(content) == size, (
            f"the program ended with {self._process.wait()}: a crash, or a write outside an array"
        )
        return content
