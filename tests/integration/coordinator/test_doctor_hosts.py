"""`coordinator doctor --hostfile` against a real sshd with planted faults: each is found and its fix named."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.doctor import checks
from coordinator.doctor.checks import Expected, Finding, HostFacts, LinkFacts
from coordinator.doctor.remote import SSH, HostProbe, _measure_link, examine_hosts
from coordinator.server import key_store
from coordinator.workers.hostfile import Host, Hosts
from tests.support.waiting import until

SSHD = "/usr/sbin/sshd"
HERE = ".".join(map(str, sys.version_info[:2]))
OTHER = "3.13" if HERE != "3.13" else "3.12"  # accepted, but not beside this one


@dataclass
class Sshd:
    """An sshd on loopback for the tests, with its client key and ssh configuration."""

    folder: Path
    port: int

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def ssh(self) -> tuple[str, ...]:
        return ("ssh", "-F", str(self.config), *SSH[1:])

    def name(self, host: str, **options: Any) -> None:
        """Let `ssh HOST` reach this sshd, with changed `options`."""
        settings = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": "root",
            "IdentityFile": self.folder / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "none",
        } | options
        with self.config.open("a") as file:
            file.write(f"Host {host}\n" + "".join(f"  {key} {value}\n" for key, value in settings.items()))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if os.geteuid() != 0 or not Path(SSHD).exists() or shutil.which("ssh") is None:
        pytest.skip("needs root and an sshd: `apt-get install openssh-server openssh-client`")
    folder = tmp_path_factory.mktemp("sshd")
    Path("/run/sshd").mkdir(exist_ok=True)  # for sshd's privilege separation
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nMaxStartups 100\nPasswordAuthentication no\n"
    )
    process = subprocess.Popen([SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")])
    one = Sshd(folder, port)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, "sshd")
        yield one
    finally:
        process.terminate()
        process.wait()


def stub(folder: Path, name: str, change: str) -> str:
    """Create a Python that modifies the host script before it runs it, so that it reports false facts."""
    path = folder / name
    path.write_text(
        f"#!{sys.executable}\n"
        "import re, sys\n"
        "size = int(re.search(r'read\\((\\d+)\\)', sys.argv[2]).group(1))\n"
        "program = sys.stdin.buffer.read(size)\n"
        f"{change}\n"
        f"exec(compile(program, 'host_script', 'exec'), {{'__name__': '__main__'}})\n"
    )
    path.chmod(0o755)
    return str(path)


def replace_code(old: str, new: str) -> str:
    return f"assert {old.encode()!r} in program; program = program.replace({old.encode()!r}, {new.encode()!r})"


# host → (words in the finding, words in the fix)
PLANTED = {
    "frozen": ("timed out", "it is on, awake"),
    "closed": ("Connection refused", "Remote Login"),
    "keyless": ("Permission denied", "ssh-copy-id keyless"),
    "stranger": ("Host key verification failed", "once by hand"),
    "nameless": ("resolve", "correct it in the hostfile"),
    "pythonless": ("no Python at /nowhere/python", "uv sync"),
    "oldpython": ("3.9.2", "Python 3.11 to 3.14"),
    "otherpython": (f"the coordinator's host has {HERE}", "--host-python"),
    "noisy": ("login shell: 'Welcome to noisy", "ssh noisy true"),
    "oldpackage": (r"mlx 0.0.1 \(", "uv pip install .*mlx=="),
    "late": (r"clock -9\d\.\d+ s", "set-ntp"),
    "full": ("GB free at", "free 2 GB"),
    "readonly": ("can't be written: Read-only", "mount its disk for writing"),
    "held": (r"held by pid \d+: coordinator start", "wait for it"),
    "killed": ("was killed and left", r"rm .*/\.endpoint"),
    "oldformat": ("manifests of format 0", "extract again"),
    "elsewhere": ("192.0.2.77 is not this host's", "ips"),
    "twin": ("both have 127.0.0.20", "its own address"),
    "good": ("32323 in use", "lsof"),
}
WHERE = {"twin": "hostfile"}


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Mount a full disk and a read-only disk as small file systems."""
    made = {}
    for name, options in (("full", "size=64k"), ("readonly", "ro,size=4g")):
        path = tmp_path / name
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=False, capture_output=True
        )
        if done.returncode == 0:
            made[name] = path
    yield made
    for path in made.values():
        subprocess.run(["umount", "-l", str(path)], check=False)


def test_planted_faults_are_found_with_fixes(sshd: Sshd, tmp_path: Path, mounts: dict[str, Path]) -> None:
    with ExitStack() as stack:
        hosts = plant(sshd, tmp_path, mounts, stack)
        keys = tmp_path / "keys"
        opened = key_store.add_worker(keys, "m2-1")
        opened.chmod(0o644)
        began = time.monotonic()
        findings = examine_hosts(hosts, keys, probe=False, ssh=sshd.ssh)
        assert time.monotonic() - began < 60.0  # in parallel, not one after another
    missed = []
    for host, (seen, fix) in PLANTED.items():
        if host in ("full", "readonly") and host not in mounts:
            continue
        words = [f for f in findings if f.name.startswith(WHERE.get(host, host + " ")) and f.state == "problem"]
        if not any(re.search(seen, f.seen) and re.search(fix, f.fix) for f in words):
            missed.append((host, words))
    assert not missed, missed
    assert all(finding.fix for finding in findings if finding.state == "problem")
    for finding in findings:
        if finding.name.endswith(" keys"):
            assert str(opened) in finding.seen and f"chmod 600 {opened}" in finding.fix
    healthy = {finding.name for finding in findings if finding.state == "ok" and finding.name.startswith("good ")}
    assert healthy >= {
        "good ssh",
        "good python",
        "good packages",
        "good clock",
        "good address",
        "good data",
        "good disk",
    }
    links = {finding.name: finding.seen for finding in findings if "→" in finding.name and "good" in finding.name}
    assert set(links) == {"good → here", "good → twin2", "twin2 → good", "good → twin", "twin → good"}
    assert all("MB/s" in seen for seen in links.values())


def plant(sshd: Sshd, folder: Path, mounts: dict[str, Path], stack: ExitStack) -> Hosts:
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # like a stopped host: only the kernel answers
    options: dict[str, dict[str, Any]] = {
        "frozen": {"Port": silent.getsockname()[1]},
        "closed": {"Port": 1},
        "keyless": {"IdentityFile": folder / "no-such-key"},
        "stranger": {"UserKnownHostsFile": folder / "empty", "StrictHostKeyChecking": "yes"},
        "nameless": {"HostName": "no-such-host.invalid"},
    }
    say = "platform.python_version()"
    pythons = {
        "pythonless": "/nowhere/python",
        "oldpython": stub(folder, "python3.9", replace_code(say, '"3.9.2"')),
        "otherpython": stub(folder, "other-python", replace_code(say, f'"{OTHER}.0"')),
        "noisy": stub(folder, "noisy-python", "print('Welcome to noisy, have a nice day', flush=True)"),
        "oldpackage": stub(
            folder, "oldpackage-python", replace_code("return metadata.version(name)", "return '0.0.1'")
        ),
        "late": stub(folder, "late-python", replace_code('{"time": time.time()}', '{"time": time.time() - 95}')),
    }
    data = {name: folder / f"data-{name}" for name in ("held", "killed", "oldformat")} | mounts
    for name in ("held", "killed", "oldformat"):
        data[name].mkdir()
    lock = stack.enter_context((data["held"] / ".lock").open("w+"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    json.dump({"pid": os.getpid(), "command": "coordinator start"}, lock)
    lock.flush()
    (data["killed"] / ".endpoint").write_text("tcp://127.0.0.1:5555")
    (data["killed"] / ".lock").write_text("{}")
    (data["oldformat"] / "manifests" / "shards").mkdir(parents=True)
    (data["oldformat"] / "manifests" / "shards" / "x.json").write_text('{"format": 0}')
    busy = stack.enter_context(socket.socket())
    busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    busy.bind(("127.0.0.1", 32323))
    busy.listen(1)
    addresses = {"elsewhere": "192.0.2.77", "twin": "127.0.0.20", "twin2": "127.0.0.20", "good": "127.0.0.21"}
    hosts = []
    for name in [*PLANTED, "twin2"]:
        sshd.name(name, **options.get(name, {}))
        place = str(data.get(name, folder / "data-of-nobody"))
        hosts.append(Host(name, addresses.get(name, ""), pythons.get(name, sys.executable), place))
    return Hosts(tuple(hosts), here=0)


def test_links_are_measured_both_ways_and_a_cut_one_is_named(sshd: Sshd, tmp_path: Path) -> None:
    sshd.name("left")
    sshd.name("right")
    left, right = (
        HostProbe(Host(name, f"127.0.0.{n}", sys.executable, str(tmp_path)), sshd.ssh)
        for name, n in (("left", 2), ("right", 3))
    )
    try:
        for pair in ((left, right), (right, left)):
            link = _measure_link(*pair)
            assert not link.error and link.bytes_per_s > 1e6 and 0 < link.delay_s < 1.0
        assert checks.link_finding(link).name == "right → left"
        nobody = left.ask("dial", address="127.0.0.3", port=1)
        assert nobody is not None and "refused" in nobody["error"]
        right.facts = replace(right.facts, address="192.0.2.9")
        assert "can't listen" in _measure_link(left, right).error
    finally:
        left.close()
        right.close()


def test_host_that_is_down_is_a_finding(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([{"ssh": "ssh://nobody@127.0.0.1:1", "ips": ["127.0.0.1"]}]))
    command = [
        sys.executable,
        "-m",
        "coordinator",
        "doctor",
        "--json",
        "--data",
        str(tmp_path),
        "--hostfile",
        str(hostfile),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=170)
    assert done.returncode == 1, done.stderr
    last = json.loads(done.stdout)["findings"][-1]
    assert last["name"] == "ssh://nobody@127.0.0.1:1 ssh" and last["state"] == "problem" and last["fix"]


# -- faults that cannot be planted here, on facts ----------------------------------------------------------------------------------


def host_facts(**changes: Any) -> HostFacts:
    facts = {
        "python": f"{HERE}.1", "executable": "python", "system": "Darwin", "platform": "macOS", "machine": "arm64", "macos": "15.1", "glibc": "", "versions": {"mlx": "1"}, "busy": [],
        "data": "/data", "free": 1 << 40, "unwritable": "", "open_keys": [], "holder": None, "formats": [1, 1], "sleep": {"sleep": "0"},
        "addresses": ["10.0.0.1"], "probe": None, "rank_probe": None,
    }  # fmt: skip
    return HostFacts("m2-0", "10.0.0.1", collected=facts | changes)


def only(findings: list[Finding], words: str, fix: str) -> None:
    problems = [finding for finding in findings if finding.state == "problem"]
    assert len(problems) == 1 and words in problems[0].seen and fix in problems[0].fix, problems


EXPECTED = Expected(HERE, {"mlx": "1"}, 1)
SPEEDS = {"device": "cpu", "ring": True, "numpy_gflops": 100.0, "mlx_cpu_gflops": 4.0, "mlx_to_numpy": 0.04, "kernels": {"native": None},
          "kernel": "native", "kernel_refusal": "", "isa": "neon", "numpy_blas": "OpenBLAS 0.3.31, kernel Haswell",
          "blas": {"build": "reference BLAS", "kernel": "", "path": "/mlx_cpu.libs/libblas.so"},
          "blas_why": "the shim was not built: install gcc"}  # fmt: skip
OPENBLAS = {"build": "OpenBLAS 0.3.30", "kernel": "Haswell", "path": "/scipy.libs/libscipy_openblas.so"}
FAST = {**SPEEDS, "mlx_cpu_gflops": 90.0, "mlx_to_numpy": 0.9, "blas": OPENBLAS, "blas_why": ""}


def test_healthy_host_has_no_problem() -> None:
    assert all(
        finding.state == "ok" for finding in checks.host_findings(host_facts(probe=SPEEDS, rank_probe=FAST), EXPECTED)
    )


@pytest.mark.parametrize(
    ("changes", "words", "fix"),
    [
        ({"sleep": {"sleep": "1", "disksleep": "10"}}, "goes to sleep", "sudo pmset -c sleep 0"),
        ({"probe": SPEEDS, "rank_probe": SPEEDS}, "reference BLAS", "install gcc"),
        ({"probe": {**SPEEDS, "ring": False}, "rank_probe": FAST}, "ring missing", "reinstall-package mlx"),
        ({"probe": {**SPEEDS, "kernels": {"native": "no C compiler: gcc"}}, "rank_probe": FAST}, "native can't be", "gcc"),
        ({"probe": "ImportError: libmlx", "rank_probe": "x"}, "ImportError", "uv sync"),
        ({"versions": {}}, "mlx is missing", "uv sync"),
    ],
)  # fmt: skip
def test_each_problem_has_a_finding_with_a_fix(changes: dict[str, Any], words: str, fix: str) -> None:
    only(checks.host_findings(host_facts(**changes), EXPECTED), words, fix)


def test_hosts_that_round_differently_are_named() -> None:
    def fleet(kernel: str) -> list[HostFacts]:
        other = {**FAST, "blas": {**OPENBLAS, "kernel": kernel}}
        return [host_facts(rank_probe=FAST), replace(host_facts(rank_probe=other), host="m2-1")]

    (same,) = checks.same_arithmetic(fleet("Haswell"))
    assert same.seen.startswith("the same on all hosts") and "OpenBLAS 0.3.30 Haswell" in same.seen
    (differ,) = checks.same_arithmetic(fleet("SkylakeX"))
    assert differ.state == "ok"  # hosts of two kinds may train together
    assert (
        "m2-0: mlx with OpenBLAS 0.3.30 Haswell" in differ.seen
        and "m2-1: mlx with OpenBLAS 0.3.30 SkylakeX" in differ.seen
    )
    assert "OPENBLAS_CORETYPE" in differ.seen
    assert checks.same_arithmetic(fleet("Haswell")[:1]) == []


def test_cut_and_slow_links_name_their_direction() -> None:
    refused = LinkFacts(
        "m2-0", "m2-1", "10.0.0.2", error="No route to host", error_name="EHOSTUNREACH", system="Darwin"
    )
    assert "on m2-0: macOS 15" in checks.link_finding(refused).fix
    assert "Local Network" not in checks.link_finding(replace(refused, system="Linux")).fix
    assert "Local Network" not in checks.link_finding(replace(refused, error_name="ETIMEDOUT")).fix
    link = LinkFacts("m2-0", "m2-1", "10.0.0.2", delay_s=1e-4, bytes_per_s=9e8)
    assert checks.link_finding(link).state == "ok"
    cut = checks.link_finding(replace(link, error="timed out"))
    assert (cut.name, cut.state) == ("m2-0 → m2-1", "problem") and "ping 10.0.0.2" in cut.fix and "firewall" in cut.fix
    for slow in (replace(link, bytes_per_s=2e7), replace(link, delay_s=9e-3)):
        assert "cable" in checks.link_finding(slow).fix
