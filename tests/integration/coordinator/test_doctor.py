"""Health checks of this host: every problem is found and comes with its fix."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.doctor import checks, host_script, local
from coordinator.doctor.checks import Finding
from coordinator.server import key_store

FACTS: dict[str, Any] = {
    "python": "3.11.7",
    "executable": "python",
    "platform": "Linux",
    "device": "cpu",
    "ring": True,
    "blas": {"build": "reference BLAS", "kernel": "", "path": "/mlx_cpu.libs/libblas.so.3"},
    "blas_why": "the OpenBLAS of scipy's wheel can't be used: the shim was not built; install gcc",
    "numpy_blas": "OpenBLAS 0.3.31, kernel Haswell",
    "numpy_gflops": 140.0,
    "mlx_cpu_gflops": 4.0,
    "mlx_to_numpy": 0.03,
    "kernels": {"native": None, "mlx": None, "reference": None},
    "kernel": "native",
    "kernel_refusal": "",
    "isa": "avx2",
}


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def assert_problem(findings: list[Finding], words: str) -> None:
    finding = only([finding for finding in findings if finding.state == "problem"])
    assert finding.fix, "a problem without a fix"
    assert words in finding.seen + finding.fix


OPENBLAS = {"build": "OpenBLAS 0.3.30", "kernel": "Haswell", "path": "/scipy.libs/libscipy_openblas.so"}


def test_slow_blas_in_a_rank_is_a_problem() -> None:
    fast = {**FACTS, "mlx_cpu_gflops": 150.0, "mlx_to_numpy": 1.07, "blas": OPENBLAS, "blas_why": ""}
    finding = only(checks.speeds(FACTS, fast))
    assert finding.state == "ok"
    assert "150 GFLOP/s with OpenBLAS 0.3.30, kernel Haswell (/scipy.libs/libscipy_openblas.so)" in finding.seen
    assert only(checks.speeds({**FACTS, "device": "gpu"}, FACTS)).state == "ok"
    assert_problem(checks.speeds(FACTS, {**fast, "mlx_to_numpy": 0.4}), "OpenBLAS 0.3.30 is slow on this host")


def test_busy_host_is_judged_by_products_in_turn() -> None:
    """The speeds of two processes were compared: one that found the host busy, after one that did not, was a problem."""
    busy = {**FACTS, "numpy_gflops": 8.0, "mlx_cpu_gflops": 7.0, "mlx_to_numpy": 0.9, "blas": OPENBLAS, "blas_why": ""}
    assert only(checks.speeds(FACTS, busy)).state == "ok"
    assert only(checks.speeds(FACTS, {**busy, "mlx_cpu_gflops": 170.0, "mlx_to_numpy": 0.4})).state == "problem"


def test_host_without_openblas_is_not_told_that_it_is_there() -> None:
    # The reason names OpenBLAS; what is said to be in use follows from the library that answered.
    (finding,) = checks.speeds(FACTS, FACTS)
    assert finding.state == "problem" and "with reference BLAS (/mlx_cpu.libs/libblas.so.3)" in finding.seen
    assert "install gcc" in finding.fix and "is slow on this host" not in finding.fix


def test_write_check_survives_a_file_of_another_host(tmp_path: Path) -> None:
    (tmp_path / f".doctor-{os.getpid()}").touch()
    assert host_script.unwritable(str(tmp_path)) == ""
    assert [path.name for path in tmp_path.iterdir()] == [f".doctor-{os.getpid()}"]


def test_unusable_kernels_have_a_reason() -> None:
    assert "avx2" in only(checks.kernels(FACTS)).seen
    missing = {**FACTS, "kernel": "mlx", "kernels": {**FACTS["kernels"], "native": "no C compiler: install gcc"}}
    assert_problem(checks.kernels(missing), "install gcc")
    assert only(checks.kernels({**missing, "device": "gpu"})).state == "ok"
    assert_problem(
        checks.kernels({**FACTS, "kernel": "", "kernel_refusal": "RINGATTN_KERNEL is none"}), "RINGATTN_KERNEL"
    )


def test_missing_and_old_packages_are_named() -> None:
    required = [
        'mlx>=0.32; sys_platform == "darwin"',
        'mlx[cpu]>=0.32; sys_platform == "linux"',
        "numpy>=2.0",
        'x>=1; extra == "y"',
    ]
    assert only(local.packages(required, {"mlx": "0.32.4", "numpy": "2.0.1"}, "linux")).state == "ok"
    assert_problem(local.packages(required, {"mlx": "0.32.4", "numpy": "1.26.4"}, "linux"), "numpy 1.26.4 (needs 2.0)")
    assert_problem(local.packages(required, {"numpy": "2.0"}, "linux"), "mlx is missing")


def test_old_python_and_mlx_without_ring() -> None:
    assert_problem(checks.python({**FACTS, "python": "3.9.1"}), "3.11")
    assert_problem(checks.python({**FACTS, "python": "3.15.0"}), "3.11 to 3.14")
    assert_problem(checks.python(FACTS, same="3.12"), "has 3.12")
    assert_problem(checks.backend({**FACTS, "ring": False}), "without its ring")


def test_systems_without_an_mlx_wheel() -> None:
    here = host_script.system()
    assert here["machine"] and (here["system"] != "Linux" or not here["macos"])
    mac = {"system": "Darwin", "machine": "arm64", "macos": "14.0", "glibc": "", "platform": "macOS-14.0"}
    linux = {"system": "Linux", "machine": "aarch64", "macos": "", "glibc": "2.35", "platform": "Linux"}
    for fine in (mac, {**mac, "macos": "26.2"}, linux, {**linux, "glibc": ""}, {**linux, "glibc": "2.41"}):
        assert checks.system(fine) == []
    assert_problem(checks.system({**mac, "macos": "13.7.1"}), "macOS 14 or later")
    assert_problem(checks.system({**mac, "machine": "x86_64"}), "an Intel Mac cannot")
    assert_problem(checks.system({**linux, "glibc": "2.34"}), "Ubuntu 22.04")


def test_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        findings = local.ports(f"tcp://127.0.0.1:{port}")
        assert findings[0].state == "problem"
        assert str(port) in findings[0].seen and "--bind" in findings[0].fix
    assert local.ports(f"tcp://127.0.0.1:{port}")[0].state == "ok"


@pytest.mark.parametrize("listening", ["127.0.0.1", "127.0.0.9", ""])
@pytest.mark.parametrize("asked", ["", "127.0.0.1"])
def test_listener_is_found_where_a_second_bind_succeeds(
    listening: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BSD's SO_REUSEADDR lets a wildcard and one address share a port; Linux's SO_REUSEPORT lets any two, so it stands in for it."""
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        busy.bind((listening, 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        monkeypatch.setattr(host_script.socket, "SO_REUSEADDR", socket.SO_REUSEPORT)
        assert host_script.bind_refusal(asked, port) == ""
        if asked == "" or listening != "127.0.0.9":
            assert "answers there already" in host_script.port_refusal(asked, port, ["127.0.0.9", "192.0.2.1"])
    assert host_script.port_refusal(asked, port, ["127.0.0.9"]) == ""


def test_missing_and_readable_key_files_are_reported(tmp_path: Path) -> None:
    assert only(local.key_files(tmp_path, "tcp://127.0.0.1:0")).state == "ok"
    assert_problem(local.key_files(tmp_path, "tcp://10.0.0.1:5555"), "coordinator keys add")
    path = key_store.add_worker(tmp_path, "m2-1")
    assert "3 files" in only(local.key_files(tmp_path, "tcp://10.0.0.1:5555")).seen
    path.chmod(0o644)
    assert_problem(local.key_files(tmp_path, "tcp://127.0.0.1:0"), f"chmod 600 {path}")


def test_failed_probe_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "probe", lambda *arguments: "ImportError: no mlx")
    findings = local.examine(tmp_path, "tcp://127.0.0.1:0", tmp_path / "keys")
    assert_problem([one for one in findings if one.name == "probe"], "python -m worker.process.probe")


def test_macos_sleep_settings() -> None:
    """Values follow pmset's manual page; this never ran on a Mac."""
    assert checks.sleep(None) == []
    assert only(checks.sleep({"sleep": "0", "disksleep": "0", "displaysleep": "10"})).state == "ok"
    assert_problem(checks.sleep({"sleep": "1", "disksleep": "10"}), "sudo pmset -c sleep 0 disksleep 0")


def test_variable_that_locks_gpus_is_a_problem() -> None:
    assert checks.environment({"PATH": "/bin", "MLX_METAL_FAST_SYNCH": "0"}) == []
    assert_problem(checks.environment({"MLX_METAL_FAST_SYNCH": "1"}), "unset MLX_METAL_FAST_SYNCH")


def test_command_checks_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coordinator", "doctor", "--json", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=150)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["fine"] else 1), done.stderr
    names = [finding["name"] for finding in report["findings"]]
    assert names == ["packages", "python", "mlx", "BLAS", "kernels", "bind", "ring ports", "disk", "data", "keys"]
    assert all(finding["fix"] for finding in report["findings"] if finding["state"] == "problem")
