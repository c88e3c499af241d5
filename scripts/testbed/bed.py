"""Hosts on one Linux machine: a network, process and mount namespace each, joined by a bridge, with their own sshd and home.

`Bed` brings them up and down, runs commands on them and breaks their links; the fixture in conftest.py and `python -m scripts.testbed` use
it. Needs root, iproute2 and openssh-server. A bed's sshd is process 1 of its host, so a host's death is one kill and takes
all of its processes along. Beds lie in numbered slots; whatever is left in a slot whose owner has gone is swept by the next `up`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import psutil

PLACE = Path("/var/tmp/ringattn-testbed")
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "ssh": "openssh-client"}
SSHD = "/usr/sbin/sshd"  # with a full path: it starts itself again for each connection
SLOTS = 16
DISK_MB = 256  # of each host's data folder, a file system of its own; in memory, as far as it is used
BY_HAND = 0  # the slot of `python -m scripts.testbed`; fixtures take the others
UP_S = 20.0  # within which every sshd has to answer
SSHD_CONFIG = """Port 22
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 64
"""
BOOT = """set -e
hostname {name}
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/../hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
exec {sshd} -D -f {folder}/sshd_config -E {folder}/sshd.log
"""


class BedError(Exception):
    """A bed can't be made, or a link can't be changed as asked; the message says what is missing."""


def missing() -> str:
    """Why no bed can be made here; "" when one can."""
    if sys.platform != "linux":
        return "hosts in namespaces need Linux"
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    packages = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if not Path(SSHD).exists():
        packages.add("openssh-server")
    if packages:
        return f"hosts in namespaces need packages: apt-get install {' '.join(sorted(packages))}"
    links = "ip link add name probe0 type bridge && ip link add name probe1 type veth peer name probe2"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", links], capture_output=True, text=True
    )
    return f"namespaces or links in them are refused here: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One host of a bed. `home` is its root's home folder, `data` its data folder in it: the same paths outside and inside."""

    def __init__(self, slot: int, number: int) -> None:
        self.number, self.name = number, f"host{number}"
        self.address = f"10.213.{slot}.{10 + number}"
        self.folder = PLACE / str(slot) / self.name
        self.home = self.folder / "home"
        self.data = self.home / "data"
        self.link = f"ringbed{slot}h{number}"  # the bridge's end of its cable; the host's own is eth0
        self.bridge = f"ringbed{slot}"
        self.hardware_address = f"02:52:00:00:{slot:02x}:{number:02x}"

    # -- life -----------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start it: again, after `kill`."""
        script = BOOT.format(name=self.name, folder=self.folder, sshd=SSHD)
        namespaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
        with (self.folder / "boot.log").open("ab") as log:
            keeper = subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _until(lambda: psutil.Process(keeper.pid).children(), f"{self.name} to boot: see {self.folder}/boot.log")
        pid = str(psutil.Process(keeper.pid).children()[0].pid)
        (self.folder / "init").write_text(pid)
        _run("ip", "link", "del", self.link, check=False)
        # The same hardware address after each boot, as a host has: the others remember it.
        peer = ("peer", "name", "eth0", "address", self.hardware_address, "netns", pid)
        _run("ip", "link", "add", self.link, "type", "veth", *peer)
        _run("ip", "link", "set", self.link, "master", self.bridge, "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("nsenter", "-t", pid, "-n", "ip", *command.split())

    @property
    def init(self) -> int:
        """Process 1, by its number outside; 0 when the host is down."""
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.folder / "init").read_text()))
            if str(self.folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
        return 0

    def kill(self) -> None:
        """Power off, without a last word to anybody: every process of the host is gone when this returns."""
        _run("ip", "link", "set", self.link, "down", check=False)
        if pid := self.init:
            process = psutil.Process(pid)
            gone = [process, *(parent for parent in [process.parent()] if parent and parent.name() == "unshare")]
            process.kill()
            psutil.wait_procs(gone, UP_S)

    def processes(self) -> list[psutil.Process]:
        """All processes of the host but its sshd's own."""
        if not self.init:
            return []
        return [process for name, process in self._all() if name != "sshd"]

    def _all(self) -> list[tuple[str, psutil.Process]]:
        """Name and process of all that run on it."""
        space, found = _space(self.init), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.NoSuchProcess):
                if _space(process.pid) == space and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.name(), process))
        return found

    def running(self, word: str) -> list[psutil.Process]:
        """Those with `word` on their command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def freeze(self) -> None:
        """SIGSTOP to everything on it, its sshd included: the kernel still answers, nobody else does."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for _, process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    # -- commands -------------------------------------------------------------------------------------------------------

    def inside(self, command: Sequence[str]) -> list[str]:
        """`command` as it has to be started from outside, in the host's home folder."""
        enter = ["nsenter", "-t", str(self.init), "-m", "-n", "-u", "-i", "-p", f"--wd={self.home}"]
        return [*enter, "env", f"HOME={self.home}", "USER=root", *command]

    def popen(self, *command: str, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[Any]:
        """A process on the host."""
        return subprocess.Popen(self.inside(command), env={**os.environ, **(env or {})}, **more)

    def run(self, *command: str, timeout: float = 60.0, **more: Any) -> subprocess.CompletedProcess[str]:
        """The same, to its end, with its output as text."""
        return subprocess.run(self.inside(command), capture_output=True, text=True, timeout=timeout, **more)

    # -- its disk -------------------------------------------------------------------------------------------------------

    def mount_disk(self) -> None:
        """A file system of its own for its data folder, which outlives the host."""
        self.data.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.data))

    def unmount_disk(self) -> None:
        if self.data.is_mount():
            _run("umount", "-l", str(self.data))

    def fill_disk(self) -> None:
        """Take all the room that its data folder has."""
        assert self.data.is_mount()
        self.run("dd", "if=/dev/zero", f"of={self.data}/filler", "bs=1M")

    def free_disk(self) -> None:
        (self.data / "filler").unlink(missing_ok=True)

    # -- its cable ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull the cable: no carrier on either side."""
        _run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """The cable is in, and does what it can."""
        for way in ("to", "from"):
            _run(*self._tc(way), "qdisc", "del", "dev", self._device(way), "root", check=False)
        _run("ip", "link", "set", self.link, "up")

    def lose(self, way: Literal["to", "from"]) -> None:
        """Nothing arrives any more in one direction, and nobody is told: a queue without room."""
        _run(*self._tc(way), "qdisc", "replace", "dev", self._device(way), "root", "pfifo", "limit", "0")

    def shape(self, mbit: float, delay_ms: float = 0.0) -> None:
        """Both directions at `mbit`/s, each `delay_ms` later. BedError for a delay where the kernel has no netem."""
        for way in ("to", "from"):
            rate = f"{mbit:g}mbit"
            if delay_ms:
                shaping = ["netem", "rate", rate, "delay", f"{delay_ms:g}ms", "limit", "100000"]
            else:
                # Bursts of a millisecond, 64 KiB at least: an offloaded segment has to fit into one.
                shaping = ["tbf", "rate", rate, "burst", str(max(65_536, int(mbit * 125))), "latency", "50ms"]
            done = _run(*self._tc(way), "qdisc", "replace", "dev", self._device(way), "root", *shaping, check=False)
            if done.returncode:
                raise BedError(f"tc {' '.join(shaping)}: {done.stderr.strip()}; does this kernel have it?")

    def _tc(self, way: str) -> list[str]:
        return ["tc"] if way == "to" else ["nsenter", "-t", str(self.init), "-n", "tc"]

    def _device(self, way: str) -> str:
        return self.link if way == "to" else "eth0"


def _space(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


class Bed:
    """`count` hosts in a slot. As a context: up, and down whatever happened."""

    def __init__(self, count: int, slot: int | None = None) -> None:
        self._lock: IO[str] | None = None
        self.slot = self._take_slot() if slot is None else slot
        self.folder = PLACE / str(self.slot)
        self.hosts = [Host(self.slot, number) for number in range(count)]

    def _take_slot(self) -> int:
        """A slot that no living process holds; what an owner left there that did not come to its end is swept."""
        PLACE.mkdir(parents=True, exist_ok=True)
        for slot in range(BY_HAND + 1, SLOTS):
            lock = (PLACE / f"{slot}.lock").open("a")
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
                return slot
            lock.close()
        raise BedError(f"all {SLOTS} slots of {PLACE} are in use")

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile.json"

    def up(self) -> Bed:
        """Start every host. BedError says what is missing."""
        if reason := missing():
            raise BedError(reason)
        self.down()
        self.folder.mkdir(parents=True)
        bridge = f"ringbed{self.slot}"
        _run("ip", "link", "add", "name", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"10.213.{self.slot}.1/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        self._write_files()
        for host in self.hosts:
            host.boot()
        for host in self.hosts:
            self.await_ssh(host)
        return self

    def await_ssh(self, host: Host) -> None:
        """Until its sshd answers."""

        def answers() -> bool:
            with suppress(OSError), socket.create_connection((host.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
            return False

        _until(answers, f"the sshd of {host.name}: see {host.folder}")

    def _write_files(self) -> None:
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        key = self.folder / "id_ed25519"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        known = []
        for host in self.hosts:
            (host.home / ".ssh").mkdir(parents=True, mode=0o700)
            host.mount_disk()
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{host.folder}/host_key")
            known.append(f"{host.name},{host.address} {(host.folder / 'host_key.pub').read_text()}")
            (host.folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=host.folder))
            others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
            (host.folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{host.home}:/bin/bash", *others, ""]))
        for host in self.hosts:
            for name in ("id_ed25519", "id_ed25519.pub"):
                shutil.copy2(self.folder / name, host.home / ".ssh" / name)
            shutil.copy2(key.with_suffix(".pub"), host.home / ".ssh" / "authorized_keys")
            (host.home / ".ssh" / "known_hosts").write_text("".join(known))
        path = f"PATH={Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        entries = [{"ssh": host.name, "ips": [host.address]} for host in self.hosts]
        self.hostfile.write_text(json.dumps({"backend": "ring", "envs": [path], "hosts": entries}, indent=1))

    def down(self) -> None:
        """End whatever runs in the slot, and remove it: also what a bed that was killed has left there."""
        for folder in self.folder.glob("host*[0-9]"):
            host = Host(self.slot, int(folder.name.removeprefix("host")))
            host.kill()
            host.unmount_disk()
        bridge = f"ringbed{self.slot}"
        for link in json.loads(_run("ip", "-json", "link").stdout):
            if link["ifname"] == bridge or link["ifname"].startswith(f"{bridge}h"):
                _run("ip", "link", "del", link["ifname"], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Bed:
        try:
            return self.up()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        self.down()
        if self._lock is not None:
            self._lock.close()


def sweep() -> list[int]:
    """Take down beds whose owners are gone; their slots."""
    swept = []
    for slot in range(BY_HAND + 1, SLOTS):
        lock, folder = PLACE / f"{slot}.lock", PLACE / str(slot)
        if not folder.exists():
            continue
        with lock.open("a") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Bed(0, slot).down()
            swept.append(slot)
    return swept


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise BedError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + UP_S
    while not condition():
        if time.monotonic() > deadline:
            raise BedError(f"waited {UP_S:g} s in vain for {what}")
        time.sleep(0.02)
