"""The harness for Metal kernels finds planted faults: each changes the source of one kernel, as a slip of its author would."""

import re
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest

from ringattn.kernels.metal import kernel as metal_kernel
from ringattn.kernels.metal.tiling import Tiling
from tests.support.attention import Case, assert_close, draw, oracle
from tests.support.metal.cases import KERNELS, emulate, needs_compiler, outputs
from tests.support.metal.compiler import CLANG, RefusedByCompiler, check_syntax

pytestmark = needs_compiler

# Small, so that it compiles in a fraction of a second: two groups of 8 rows, tiles of 16, the head dimension in two parts.
SMALL = Tiling(16, streamed=16, blocks=1, groups=2, parts=2)
# Partial last tiles; hidden, full and mixed tiles; both edges of the window inside; two batches and two kv heads.
CASE = Case(kv_heads=2, group=2, q_len=75, k_len=44, dim=16, causal=True, window=30, batch=2)
SEGMENTED = replace(CASE, causal=False, window=None, segments=3)
WRONG = "wrong result"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
STAGED = "thread_index);\n  " + BARRIER


@dataclass(frozen=True)
class Fault:
    """A change of a source, and what must be said of it: a finding, WRONG, or a compiler's words."""

    what: str
    kernel: str
    old: str
    new: str
    found: str
    file: str = ""
    """where `old` is, if not in the kernel's own file"""
    case: Case = CASE


FAULTS = (
    Fault("no barrier before a tile is overwritten", "forward", f"continue;\n\n  {BARRIER}", "continue;\n", "race of a write after a read"),
    Fault("no barrier before a tile is read", "forward", STAGED, "thread_index);", "race of a read after a write"),
    Fault("barrier for no memory", "backward_q", STAGED, STAGED.replace("mem_threadgroup", "mem_none"), "race of a read after a write"),
    Fault("barrier of the SIMD group only", "backward_kv", "  }\n  " + BARRIER, "  }\n  simdgroup_barrier(mem_flags::mem_threadgroup);", "race of a read after a write"),
    Fault("no barrier between partial sums", "backward_q", BARRIER, "", "race of a read after a write", file="common"),
    Fault("barrier in a branch of one SIMD group", "forward", STAGED, STAGED.replace("threadgroup_b", "if (simd != 1) threadgroup_b"), "never come to a collective|divergent collective"),
    Fault("barrier after a return of unused rows", "forward", "clear<BLOCKS * DEPTH>(out);", "clear<BLOCKS * DEPTH>(out);\nif (own >= q_len) return;", "never come to a collective|divergent collective"),
    Fault("collective in a branch of one lane", "forward", "const float new_top = row_max(highest);", "float new_top = highest; if (lane != 5) new_top = row_max(highest);", "never come to a collective|divergent collective"),
    Fault("shuffle with the wrong lane", "forward", "return x + simd_shuffle_xor(x, 8);", "return x + simd_shuffle_xor(x, 4);", WRONG, file="common"),
    Fault("wrong column of a lane", "backward_kv", "(lane / 4 & 2) * 2", "(lane / 4 & 2) * 3", "out of bounds|output|" + WRONG, file="common"),
    Fault("keys read past their end", "forward", "first + row < length", "true", "out of bounds: [kv]", file="common"),
    Fault("queries read past their end", "backward_q", "if (exists) from =", "from =", "out of bounds: (q|dout)", file="common"),
    Fault("rows written past the end", "forward", "  if (own + r * 8 < q_len) {", "  {", "out of bounds|output touched by two threads"),
    Fault("tile of threadgroup memory too small", "forward", "float Vs[STREAMED * LD]", "float Vs[STREAMED * D]", "out of bounds: Vs"),
    Fault("too much threadgroup memory", "backward_kv", "float Ds[STREAMED]", "float Ds[8192]", "threadgroup memory over 32 KB"),
    Fault("stale tile of values", "forward", "stage<STREAMED, D, LD, THREADS>(Vs", "if (i < 2) stage<STREAMED, D, LD, THREADS>(Vs", WRONG),
    Fault("rows past the end are not cleared", "forward", "    *(threadgroup Four<float>*)", "    if (first + row < length) *(threadgroup Four<float>*)", "read of what nobody wrote|" + WRONG, file="common"),
    Fault("accumulator not cleared", "backward_kv", "clear<BLOCKS * DEPTH>(v_sum);", "", WRONG),
    Fault("causal mask hides the diagonal", "forward", "k.position <= q.last", "k.position < q.last", WRONG, file="common"),
    Fault("window a key too wide", "backward_q", "q.first <= k.position", "q.first - 1 <= k.position", WRONG, file="common"),
    Fault("segments are not compared", "backward_kv", " && q.segment == k.segment", "", WRONG, file="common", case=SEGMENTED),
    Fault("tile at the window's edge is skipped", "forward", "k.x[1] < q.sees.x[0]", "k.x[1] < q.sees.x[1]", WRONG, file="common"),
    Fault("tile at the diagonal is not masked", "backward_kv", "k.x[1] <= q.sees.x[2]", "k.x[1] <= q.sees.x[3]", WRONG, file="common"),
    Fault("keys past the end are not hidden", "forward", "col >= k_len || ", "", WRONG),
    Fault("scale is lost", "backward_q", "* scales[0]", "", WRONG),
    Fault("log-sum-exp stays in base 2", "forward", " * 0.69314718f", "", WRONG),
    Fault("query heads read another kv head", "forward", "keys = k + ulong(batch * kv_heads + head / (heads / kv_heads))", "keys = k + ulong(batch * kv_heads + head % kv_heads)", WRONG),
    Fault("both parts write the log-sum-exp", "forward", "if (part == 0 && fcol == 0)", "if (fcol == 0)", "output touched by two threads"),
    Fault("a part of the output is not written", "backward_kv", "*(device Two<float>*)(dv + at) = v_pair;", "if (part == 0) *(device Two<float>*)(dv + at) = v_pair;", "output never written"),
    Fault("write to an input", "forward", "const int lane =", "k_mask[0] = 1; const int lane =", "error"),
    Fault("write to constant memory", "forward", "const int lane =", "scales[0] = 1.0f; const int lane =", "error"),
    Fault("device memory as threadgroup memory", "forward", "const int lane =", "threadgroup float* tiles = o; const int lane =", "error"),
    Fault("C++17", "forward", "if (PARTS == 1)", "if constexpr (PARTS == 1)", "error", file="common"),
)  # fmt: skip

# One of most kinds of finding; the others are compiled and run by the long tests.
BY_DEFAULT = {
    "no barrier before a tile is read",
    "barrier in a branch of one SIMD group",
    "shuffle with the wrong lane",
    "keys read past their end",
    "tile of threadgroup memory too small",
    "both parts write the log-sum-exp",
    "device memory as threadgroup memory",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal_kernel, "DIMS", (SMALL.dim,))
    for table in ("FORWARD", "BACKWARD_Q", "BACKWARD_KV"):
        monkeypatch.setattr(metal_kernel, table, {SMALL.dim: SMALL})


def plant(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = metal_kernel.source, fault.file or fault.kernel
    assert fault.old in right(wrong), f"{fault.what}: the source has no {fault.old!r} any more"
    monkeypatch.setattr(
        metal_kernel,
        "source",
        lambda name: right(name).replace(fault.old, fault.new, 1) if name == wrong else right(name),
    )


def findings(which: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a kernel as the proofs do; return all that is wrong."""
    arrays, block = draw(case)
    truth = oracle(arrays, block, case.scale)
    kernel, emulator = emulate(monkeypatch, seed=1)
    try:
        got = outputs(kernel, which, arrays, block, truth, scale=case.scale)
    except RefusedByCompiler as error:
        return [f"error: {error}"]
    try:
        for name, x in got.items():
            assert_close(np.array(x), truth[name], name)
    except AssertionError:
        return [*emulator.findings, WRONG]
    return emulator.findings


@pytest.mark.parametrize("case", [CASE, SEGMENTED], ids=["window", "segments"])
@pytest.mark.parametrize("which", KERNELS)
def test_kernel_without_a_fault_has_no_finding(
    which: str, case: Case, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(which, case, monkeypatch) == []


def name_of(fault: Fault) -> str:
    return fault.what.replace(" ", "-")


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[] if f.what in BY_DEFAULT else pytest.mark.long, id=name_of(f)) for f in FAULTS]
)
def test_harness_finds_the_fault(fault: Fault, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(fault, monkeypatch)
    said = findings(fault.kernel, fault.case, monkeypatch)
    assert any(re.search(fault.found, line) for line in said), f"found only {said}"


@pytest.mark.skipif(CLANG is None, reason="no clang: the syntax check with address spaces was not made")
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.found == "error"], ids=name_of)
def test_clang_refuses_the_fault(fault: Fault, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(fault, monkeypatch)
    kernel, emulator = emulate(monkeypatch, runs=False)
    q, rows = mx.zeros((1, 1, 8, 16)), np.zeros((1, 1, 8))
    outputs(
        kernel,
        fault.kernel,
        [q, q, q, q],
        draw(Case(q_len=8, k_len=8, dim=16, batch=1))[1],
        {"lse": rows, "delta": rows},
        scale=1.0,
    )
    with pytest.raises(RefusedByCompiler):
        check_syntax(emulator.generated[f"ringattn_{fault.kernel}"])
