"""Compile a generated Metal kernel as C++ that runs on the shim, and check its syntax with clang, address spaces included."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.metal.source import Generated

HERE = Path(__file__).parent
CACHE = Path(__file__).parents[3] / ".pytest_cache" / "metal"
"""Compiled kernels by the hash of what they were made of: a session compiles what changed."""
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
CLANG = next((path for name in ("clang++", "clang++-14", "clang-14", "clang") if (path := shutil.which(name))), None)
# Hidden: libraries of one kernel with different faults must not share its static arrays.
FLAGS = [
    "-std=c++14",
    "-pedantic-errors",
    "-Og",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-keyword-macro",
    f"-I{HERE / 'run'}",
]
ATTRIBUTES = {
    "threadgroup_position_in_grid": "uint3{shim::group_x, shim::group_y, shim::group_z}",
    "simdgroup_index_in_threadgroup": "uint(shim::now / shim::LANES)",
    "thread_index_in_simdgroup": "uint(shim::now % shim::LANES)",
    "thread_index_in_threadgroup": "uint(shim::now)",
}
SPACES = {"device": "shim::device_space", "constant": "shim::constant_space", "threadgroup": "shim::threadgroup_space"}


class RefusedByCompiler(Exception):
    """The source does not compile."""


def rewritten(source: str) -> str:
    """Return the source with checked pointers for MSL's; nothing else is touched.

    `threadgroup T name[N];` becomes a checked array, `const device T*` (also constant, threadgroup) a checked pointer that knows its space.
    """
    source = re.sub(
        r"^(\s*)threadgroup (\w+) (\w+)\[(.+?)\];",
        r'\1static shim::Shared<\2, (\4)> \3_memory("\3"); const shim::Pointer<shim::threadgroup_space, \2> \3 = \3_memory.all();',
        source,
        flags=re.MULTILINE,
    )
    return re.sub(
        r"(const )?\b(device|constant|threadgroup) (const )?(\w+(?:<\w+>)?)\s*\*",
        lambda m: f"shim::Pointer<{SPACES[m[2]]}, {'const ' if m[1] or m[3] else ''}{m[4]}>",
        source,
    )


def driver(kernel: Generated) -> str:
    """Return the C++ that binds the buffers and runs the grid."""
    memories = "\n".join(
        f'static shim::Memory m_{p.name} = {{nullptr, 0, "{p.name}", 1, nullptr, nullptr}};' for p in kernel.parameters
    )
    arguments = [
        f"shim::Pointer<{SPACES[p.space]}, {'const ' if p.const else ''}{p.type}>(&m_{p.name}, 0)"
        for p in kernel.parameters
    ] + [ATTRIBUTES[name] for name in kernel.attributes]
    binds = "\n".join(
        f"  m_{p.name}.bytes = buffers[{i}]; m_{p.name}.size = sizes[{i}]; m_{p.name}.granule = sizeof({p.type}); m_{p.name}.writers = writers[{i}];"
        for i, p in enumerate(kernel.parameters)
    )
    joined = ",\n    ".join(arguments)
    return f"""
{memories}
static void body() {{
  {kernel.function}(
    {joined});
}}
extern "C" __attribute__((visibility("default"))) int run(char **buffers, const long *sizes, long **writers, const unsigned *groups, unsigned threads, unsigned long seed, char *report, long *counts) {{
{binds}
  int length = shim::launch(body, groups, threads, seed);
  memcpy(report, shim::report, sizeof shim::report);
  memcpy(counts, &shim::counts, sizeof shim::counts);
  return length;
}}
"""


@functools.cache
def shim_digest() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted((HERE / "run").iterdir()))).hexdigest()


@functools.lru_cache(maxsize=256)
def compiled(kernel: Generated) -> ctypes.CDLL:
    """Return the kernel's library, compiled unless an earlier session did.

    Raises:
        RefusedByCompiler: with the compiler's first errors.
    """
    assert COMPILER is not None
    # Everything behind the kernel's own text is an explicit instantiation, which the driver's call makes too.
    text = kernel.text.split("\ntemplate [[host_name(")[0]
    source = f'#include "shim.h"\n#line 1 "kernel.metal"\n{rewritten(text)}\n{driver(kernel)}'
    key = hashlib.sha256("\0".join([source, shim_digest(), COMPILER, *FLAGS]).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f"{key}.{os.getpid()}.so"
        result = subprocess.run(
            [COMPILER, *FLAGS, "-x", "c++", "-", "-o", str(made)], input=source, capture_output=True, text=True
        )
        if result.returncode:
            raise RefusedByCompiler(errors_of(result.stderr))
        made.replace(library)
    return ctypes.CDLL(str(library))


def errors_of(stderr: str) -> str:
    return "\n".join(line for line in stderr.splitlines() if "error:" in line)[:1500]


def check_syntax(kernel: Generated) -> None:
    """Let clang read the source as C++14 with MSL's address spaces. What plain clang lacks is rewritten, see `for_clang`.

    Raises:
        RefusedByCompiler: with clang's first errors.
    """
    assert CLANG is not None
    flags = ["-std=c++14", "-fsyntax-only", "-pedantic-errors", "-Wno-unknown-attributes", "-Werror=c++17-extensions"]
    flags += ["-Werror=uninitialized", f"-I{HERE / 'syntax'}"]
    result = subprocess.run(
        [CLANG, *flags, "-x", "c++", "-"], input=f'#include "msl.h"\n#line 1 "kernel.metal"\n{for_clang(kernel.text)}', capture_output=True, text=True
    )  # fmt: skip
    if result.returncode:
        raise RefusedByCompiler(errors_of(result.stderr))


def for_clang(text: str) -> str:
    """Return the source in what plain clang knows of MSL.

    Arrays in threadgroup memory become static, structs are copied between address spaces by declared functions that take pointers
    to the same spaces, and the instance has no attributes.
    """
    text = re.sub(r"^(\s*)(threadgroup \w+ \w+\[.+?\];)", r"\1static \2", text, flags=re.MULTILINE)
    text = re.sub(r"\*\(const (?:device|threadgroup|constant) (\w+<\w+>)\*\)", r"msl_loaded<\1>", text)
    text = re.sub(r"\*\((?:device|threadgroup|constant) (\w+<\w+>)\*\)", r"msl_stored<\1>", text)
    return re.sub(r"^template (\[\[.+?\]\] )+decltype", "template decltype", text, flags=re.MULTILINE)


RUNS = COMPILER is not None and sys.platform != "win32"
