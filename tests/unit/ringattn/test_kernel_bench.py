"""The kernels' benchmark: parity first, times in turns, what is left out and why, the line and the page that it fills."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ringattn import kernels
from ringattn.kernels import Block, Kernel, bench
from ringattn.kernels.bench import FAST, Setting, Time, Work
from scripts.bench import kernels as page
from tests.support.metal.cases import emulate, needs_compiler

ROOT = Path(__file__).parents[3]


class Wrong:
    """The mlx kernel with a wrong dV, or one that does not run."""

    name = "wrong"

    def __init__(self, *, fails: bool = False) -> None:
        self._right, self._fails = kernels.select("mlx"), fails

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        if self._fails:
            raise RuntimeError("error: unknown type name 'simdgroup'")
        return self._right.forward(q, k, v, block, scale=scale, softcap=softcap)

    def backward(
        self, *tensors: Any, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        dq, dk, dv = self._right.backward(*tensors, scale=scale, softcap=softcap)
        return dq, dk, dv * 1.01


def test_parity_names_the_output_that_differs_and_the_kernel_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Kernel] = {"wrong": Wrong(), "broken": Wrong(fails=True)}
    real = kernels.select
    monkeypatch.setattr(kernels, "select", lambda name: made.get(name) or real(name))
    found = bench.agreement(["mlx", "wrong", "broken"], Setting(dim=16), fp32=True)
    assert found["mlx"]["agrees"] and found["mlx"]["difference"] < 1e-5
    assert not found["wrong"]["agrees"] and found["wrong"]["of"] == "dv"
    assert found["broken"] == {"agrees": False, "failed": "error: unknown type name 'simdgroup'"}


def test_chip_that_rounds_products_to_tf32_is_noticed_and_allowed_for_the_mlx_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bench.products_are_fp32()
    exact = mx.array

    def rounded(x: Any, *arguments: Any, **options: Any) -> mx.array:
        """An array whose elements have TF32's 10 bits of mantissa."""
        bits = (np.asarray(x, np.float32).view(np.uint32) + 0x1000) & 0xFFFFE000
        return exact(bits.view(np.float32))

    with monkeypatch.context() as patch:
        patch.setattr(bench.mx, "array", rounded)
        assert not bench.products_are_fp32()
    found = bench.agreement(["mlx", "reference"], Setting(dim=16), fp32=False)
    assert [found[name]["allowed"] for name in ("mlx", "reference")] == [bench.ALLOWED_TF32, 1e-4]


@pytest.mark.long
@needs_compiler
def test_metal_kernel_passes_the_parity_check_on_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_made", {})
    emulator = emulate(monkeypatch)[1]
    found = bench.agreement(["metal"], Setting(dim=64), fp32=True)
    assert found["metal"]["agrees"] and found["metal"]["difference"] < 1e-5
    assert emulator.findings == []


@pytest.mark.parametrize(
    ("seconds", "memory", "said"),
    [
        (0.1, 1_000, None),
        (1.6, 1_000, "a step of 4,096 tokens would take about 6 s"),
        (0.1, 200_000_000_000, "4,096 tokens could take 800.0 GB"),
    ],
)
def test_length_that_would_take_too_long_or_too_much_memory_is_left_out(
    seconds: float, memory: int, said: str | None
) -> None:
    before = [Time("mlx", 2048, [0.01], [seconds, seconds + 1], memory)]
    assert bench.too_large(before, 4096, limit=1.0, memory=10**12) == said
    assert bench.too_large([], 4096, limit=1.0, memory=1) is None


def test_contenders_take_turns_and_one_that_is_left_out_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def maker(name: str) -> Any:
        return lambda length: Work(lambda: ran.append(f"{name} forward"), lambda: ran.append(f"{name} step"))

    clock = iter(range(10**6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    # Every call takes one second of this clock: the first step warms up, then forward and step until more than 4 are spent.
    makers = {"metal": maker("metal"), FAST: maker(FAST)}
    times, left_out = bench.measured(makers, [64, 128, 256, 512], limit=4, memory=10**15, say=lambda text: None)
    assert ran[:6] == ["metal step", "mx.fast step", "metal forward", "metal step", "mx.fast forward", "mx.fast step"]
    assert [(one.kernel, one.length, len(one.forward), len(one.step)) for one in times[:2]] == [
        ("metal", 64, 3, 3),
        (FAST, 64, 3, 3),
    ]
    assert [one.length for one in times] == [64, 64, 128, 128, 256, 256, 512, 512]
    monkeypatch.setattr(bench, "too_large", lambda before, length, *rest: "too long" if length == 128 else None)
    times, left_out = bench.measured({FAST: maker(FAST)}, [64, 128, 256], limit=4, memory=1, say=lambda text: None)
    assert [one.length for one in times] == [64]
    assert [(one["length"], one["reason"]) for one in left_out] == [(128, "too long"), (256, "too long")]


def test_command_prints_one_line_that_fills_the_page(tmp_path: Path) -> None:
    command = ["--lengths", "64", "32", "--heads", "2", "--kv-heads", "1", "--dim", "16", "--seconds", "0.02"]
    out = tmp_path / "kernels.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "ringattn.kernels.bench", *command, "--out", out],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    (printed,) = done.stdout.splitlines()
    line = json.loads(printed)
    assert json.loads(out.read_text()) == line
    timed = {(one["kernel"], one["length"]) for one in line["times"]}
    assert timed >= {("mlx", 32), (FAST, 32)}
    # A busy machine may make the second length too slow for these seconds; then the line names it.
    assert timed | {(one["kernel"], one["length"]) for one in line["left_out"]} >= {("mlx", 64), (FAST, 64)}
    assert all(one["agrees"] for one in line["parity"].values())
    assert line["rates"]["matmul"] > 0
    target = tmp_path / "page.md"
    target.write_text(page.page([line]))
    table = [row for row in target.read_text().splitlines() if row.startswith("| 32 | mlx |")]
    assert len(table) == 1 and table[0].count("|") == 9
    assert "agrees with plain attention" in done.stderr


def test_kernel_that_differs_makes_exit_code_1_and_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"agrees": False, "difference": 0.5, "of": "dq", "mask": "causal", "allowed": 1e-4}
    monkeypatch.setattr(bench, "agreement", lambda usable, setting, fp32: dict.fromkeys(usable, found))
    monkeypatch.setattr(bench, "rates", lambda *arguments: {"matmul": 1e9})
    assert bench.main(["--lengths", "16", "--heads", "1", "--dim", "8", "--seconds", "0.01"]) == 1
    printed = capsys.readouterr()
    assert {one["kernel"] for one in json.loads(printed.out)["times"]} == {FAST}
    assert "mlx: DIFFERS FROM plain attention: dq by 5.0e-01" in printed.err


def test_flops_are_those_of_the_visible_half_where_causal() -> None:
    assert Setting(heads=8, dim=64).flops(4096, bench.STEP_FLOPS) == 14 * 4096**2 * 64 * 8 / 2
    assert Setting(heads=8, dim=64, causal=False).flops(4096, bench.FORWARD_FLOPS) == 4 * 4096**2 * 64 * 8


def test_page_is_that_of_the_lines() -> None:
    assert page.PAGE.read_text() == page.page(page.read_lines(page.LINES))


def test_missing_folder_of_the_line_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "run", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        bench.main(["--out", str(tmp_path / "none" / "kernels.jsonl")])
    assert ended.value.code == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
