"""The native kernel's threads, memory, dispatch and build, and the choice of a kernel."""

import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from ringattn._errors import DTypeError, KernelError, ShapeError
from ringattn.kernels import Block, available, native, select
from ringattn.kernels.native import NativeKernel, best_isa, fma_peak, isas

ROOT = Path(__file__).parents[3]
needs_native = pytest.mark.skipif(available()["native"] is not None, reason=f"native kernel: {available()['native']}")


def block(q_len: int, k_len: int, **mask: object) -> Block:
    return Block(np.arange(q_len, dtype=np.int32), np.arange(k_len, dtype=np.int32), **mask)  # type: ignore[arg-type]


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(len(shape) + shape[1]).standard_normal(shape, dtype=np.float32))


@needs_native
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_same_bits_for_any_number_of_threads(heads: tuple[int, int]) -> None:
    q, k, v = normal(1, heads[0], 700, 40), normal(1, heads[1], 900, 40), normal(1, heads[1], 900, 40)
    do, mask = q * 0.5, block(700, 900, causal=True, window=600)
    results = []
    for threads in (1, 2, 3, 8, 8, 8):
        kernel = NativeKernel(threads=threads)
        o, lse = kernel.forward(q, k, v, mask, scale=0.2)
        results.append(
            [np.array(x) for x in (o, lse, *kernel.backward(q, k, v, do, lse, (do * o).sum(-1), mask, scale=0.2))]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_native
def test_thread_count_is_argument_then_environment_then_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGATTN_THREADS", "3")
    assert native.default_threads() == 3
    monkeypatch.delenv("RINGATTN_THREADS")
    assert 1 <= native.default_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("RINGATTN_THREADS", "many")
    with pytest.raises(KernelError, match="RINGATTN_THREADS"):
        native.default_threads()


@needs_native
def test_fma_peak_grows_with_work_done() -> None:
    assert fma_peak(threads=1, seconds=0.05) > 1e8


@pytest.mark.parametrize(
    ("source", "compiler", "fma", "chains"),
    [
        # fmla and vfmadd231 accumulate in place. Apple cores: 4 pipes of 4 cycles; x86: 2 of 4.
        pytest.param("neon.c", ("aarch64-linux-gnu-gcc", "aarch64"), "fmla", 16),
        pytest.param("avx512.c", ("cc", "x86_64"), "vfmadd231ps", 16, marks=pytest.mark.long),
        pytest.param("avx2.c", ("cc", "x86_64"), "vfmadd231ps", 8, marks=pytest.mark.long),
    ],
)
def test_fma_probe_fills_every_pipe_and_copies_nothing(
    source: str, compiler: tuple[str, str], fma: str, chains: int, tmp_path: Path
) -> None:
    """The probe's loop in the compiler's assembly: enough independent accumulators, and no other vector instruction."""
    name = "cc" if platform.machine() == compiler[1] else compiler[0]
    if shutil.which(name) is None or (name == "cc" and platform.machine() != compiler[1]):
        pytest.skip(f"no compiler for {compiler[1]}: {source} was not compiled")
    out = tmp_path / "probe.s"
    folder = ROOT / "ringattn" / "kernels" / "csrc"
    subprocess.run(
        [name, "-std=gnu11", "-O3", "-ffp-contract=fast", "-Wno-psabi", "-S", folder / source, "-o", out], check=True
    )
    text = out.read_text()
    body = re.search(r"^_?fma_rounds:\n(.*?)\n\s+ret\b", text, re.DOTALL | re.MULTILINE)
    assert body is not None
    blocks = [block for block in re.split(r"^\S+:.*\n", body[1], flags=re.MULTILINE) if fma in block]
    loop = [line.split(None, 1) for line in blocks[0].splitlines() if re.match(r"\s+[a-z]", line)]
    end = next(i for i, line in enumerate(loop) if re.match(r"b\.?ne|jne|subs", line[0]))
    registers = {
        re.findall(r"[zyv]m*m?\d+", operands)[-1 if fma.startswith("v") else 0]
        for op, operands in loop[:end]
        if op == fma
    }
    assert len(registers) >= chains
    others = [op for op, *_ in loop[:end] if op != fma and op not in {"add", "addq", "cmp", "cmpq", "subs", "subq"}]
    assert others == []


@needs_native
def test_isa_that_fails_parity_check_is_skipped_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = list(isas())[:2]
    monkeypatch.setattr(native, "_parity_error", lambda isa: 1.0 if isa == first else 0.0)
    best_isa.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=f"{first} code differs"):
            assert best_isa() == second
    finally:
        best_isa.cache_clear()


@needs_native
def test_parity_check_detects_a_difference() -> None:
    for softcap, isa in itertools.product((None, 2.0), isas()):
        assert 0 <= native._difference(isa, mx.float32, softcap) < 1e-5
        assert 0 <= native._difference(isa, mx.bfloat16, softcap) < (3e-2 if "bf16" in isa else 1e-5)


@needs_native
def test_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    native.library.cache_clear()
    try:
        with pytest.raises(KernelError, match="built from other sources than these; build it again: `uv sync"):
            native.library()
    finally:
        native.library.cache_clear()


@needs_native
def test_missing_isa_is_named() -> None:
    with pytest.raises(KernelError, match="'sve2'"):
        NativeKernel(isa="sve2")


MEMORY_SCRIPT = """
import resource, sys
import mlx.core as mx, numpy as np
from ringattn.kernels import Block, select
kernel, n, dim = select(sys.argv[1]), int(sys.argv[2]), 8
def step(n):
    q = mx.random.normal((1, 1, n, dim)); pos = np.arange(n, dtype=np.int32); block = Block(pos, pos, causal=True)
    o, lse = kernel.forward(q, q, q, block, scale=1.0)
    mx.eval(kernel.backward(q, q, q, o, lse, (o * o).sum(-1), block, scale=1.0))
step(512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize(("name", "length"), [("native", 16384), ("mlx", 6144)])
def test_memory_is_not_quadratic(name: str, length: int) -> None:
    if available()[name] is not None:
        pytest.skip(f"{name}: {available()[name]}")
    out = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, name, str(length)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    scores_kb = length * length * 4 // 1024
    assert int(out.stdout) < 0.3 * scores_kb


def test_kernel_is_argument_then_environment_then_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGATTN_KERNEL", raising=False)
    best = "native" if available()["native"] is None else "mlx"
    assert select(device=mx.Device(mx.cpu)).name == best
    assert select(device=mx.Device(mx.gpu)).name == ("metal" if available()["metal"] is None else "mlx")
    monkeypatch.setenv("RINGATTN_KERNEL", "reference")
    assert select().name == "reference"
    assert select("mlx").name == "mlx"


def test_unknown_kernel_lists_available_ones() -> None:
    with pytest.raises(KernelError, match=r"'cuda'.*no kernel has this name.*mlx: usable"):
        select("cuda")


def test_missing_library_states_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringattn.kernels._made", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    native.library.cache_clear()
    best_isa.cache_clear()
    try:
        reason = available()["native"]
        assert reason is not None and "uv sync --reinstall-package" in reason and "\n" not in reason
        monkeypatch.delenv("RINGATTN_KERNEL", raising=False)
        assert select(device=mx.Device(mx.cpu)).name == "mlx"
        with pytest.raises(KernelError, match="uv sync"):
            select("native")
    finally:
        native.library.cache_clear()
        best_isa.cache_clear()


@pytest.mark.parametrize("name", [n for n, why in available().items() if why is None])
def test_invalid_inputs_are_refused(name: str) -> None:
    kernel, q, k, mask = select(name), normal(1, 4, 5, 8), normal(1, 2, 6, 8), block(5, 6)
    for bad in (
        (q[0], k, k, mask),
        (q, k, k[:, :, :5], mask),
        (q, k[..., :4], k[..., :4], mask),
        (q[:, :3], k, k, mask),
        (q, k, k, block(4, 6)),
        (q, k, k, block(5, 6, window=0)),
        (q, k, k, block(5, 6, q_seg=np.zeros(5, np.int32))),
        (q, k, k, block(5, 6, q_seg=np.zeros(5, np.int64), k_seg=np.zeros(6, np.int64))),
    ):
        with pytest.raises(ShapeError):
            kernel.forward(*bad, scale=1.0)
    with pytest.raises(DTypeError):
        kernel.forward(q.astype(mx.int32), k, k, mask, scale=1.0)


@needs_native
def test_native_kernel_limits_are_checked() -> None:
    kernel, wide = NativeKernel(), normal(1, 1, 2, 257)
    with pytest.raises(ShapeError, match="256"):
        kernel.forward(wide, wide, wide, block(2, 2), scale=1.0)
    q, short = normal(1, 1, 5, 8), mx.zeros((1, 1, 4))
    with pytest.raises(ShapeError, match="lse"):
        kernel.backward(q, q, q, q, short, short, block(5, 5), scale=1.0)


@pytest.mark.long
def test_install_succeeds_without_compiler_and_builds_with_one(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.so", "build", "*.egg-info", "data", "runs"))
    for compiler, expected in (("/bin/false", "uv sync"), ("cc", "None")):
        target = tmp_path / Path(compiler).name
        subprocess.run(
            [uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", target, source],
            check=True,
            env={**os.environ, "CC": compiler},
        )
        code = "from ringattn.kernels import available; print(available()['native'])"
        out = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(target)},
        )
        assert expected in out.stdout


@pytest.mark.parametrize(
    ("system", "hint"),
    [
        ("linux", "install gcc or clang"),
        ("darwin", "`xcode-select --install` (until then macOS's own `clang` is a stub"),
    ],
)
def test_missing_library_names_the_compiler_of_the_system(
    system: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(KernelError, match=rf"was not built at install .*{re.escape(hint)}.*, then run `uv sync"):
        native.library.__wrapped__()
