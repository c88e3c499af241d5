"""Simulate hosts on one Linux machine: a network, process and mount namespace each, joined by a bridge, with sshd and home.

`Bed` starts and stops them, runs commands on them and breaks their links; the fixture in conftest.py and `python -m scripts.testbed` use
it. Needs root, iproute2 and openssh-server. The sshd is process 1 of its host, so one kill ends the host with all of its processes.
Beds have numbered slots; the next `up` removes what is left in a slot whose owner has ended.
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
SSHD = "/usr/sbin/sshd"  # full path: it re-executes itself for each connection
SLOTS = 16
DISK_MB = 256  # of each host's data folder, a tmpfs: uses memory only as it fills
BY_HAND = 0  # the slot of `python -m scripts.testbed`; fixtures take the others
UP_S = 20.0  # limit for every sshd to answer
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
    """A bed can't be started, or a link can't be changed; the message names what is missing."""


def missing() -> str:
    """Return the reason why no bed can be started on this machine; "" if one can."""
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
        """Start the host, also after `kill`."""
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
        # The same hardware address after each boot, as of a real host: the others cache it.
        peer = ("peer", "name", "eth0", "address", self.hardware_address, "netns", pid)
        _run("ip", "link", "add", self.link, "type", "veth", *peer)
        _run("ip", "link", "set", self.link, "master", self.bridge, "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("nsenter", "-t", pid, "-n", "ip", *command.split())

    @property
    def init(self) -> int:
        """Process 1, by its number outside; 0 if the host is down."""
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.folder / "init").read_text()))
            if str(self.folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
        return 0

    def kill(self) -> None:
        """Power off without closing connections; every process of the host has ended when this returns."""
        _run("ip", "link", "set", self.link, "down", check=False)
        if pid := self.init:
            process = psutil.Process(pid)
            gone = [process, *(parent for parent in [process.parent()] if parent and parent.name() == "unshare")]
            process.kill()
            psutil.wait_procs(gone, UP_S)

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the host but those of sshd."""
        if not self.init:
            return []
        return [process for name, process in self._all() if name != "sshd"]

    def _all(self) -> list[tuple[str, psutil.Process]]:
        """Return name and process of everything that runs on it."""
        space, found = _space(self.init), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.NoSuchProcess):
                if _space(process.pid) == space and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.name(), process))
        return found

    def running(self, word: str) -> list[psutil.Process]:
        """Return the processes with `word` on their command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def freeze(self) -> None:
        """Stop all of its processes by SIGSTOP, sshd included; only the kernel still answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume all of its processes."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for _, process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    # -- commands -------------------------------------------------------------------------------------------------------

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on the host from outside, in its home folder."""
        enter = ["nsenter", "-t", str(self.init), "-m", "-n", "-u", "-i", "-p", f"--wd={self.home}"]
        return [*enter, "env", f"HOME={self.home}", "USER=root", *command]

    def popen(self, *command: str, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[Any]:
        """Start a process on the host."""
        return subprocess.Popen(self.inside(command), env={**os.environ, **(env or {})}, **more)

    def run(self, *command: str, timeout: float = 60.0, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a process on the host to its end, and return it with its output as text."""
        return subprocess.run(self.inside(command), capture_output=True, text=True, timeout=timeout, **more)

    # -- its disk -------------------------------------------------------------------------------------------------------

    def mount_disk(self) -> None:
        """Mount a file system for its data folder; it outlives the host."""
        self.data.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.data))

    def unmount_disk(self) -> None:
        """Unmount the file system of its data folder."""
        if self.data.is_mount():
            _run("umount", "-l", str(self.data))

    def fill_disk(self) -> None:
        """Fill the file system of its data folder."""
        assert self.data.is_mount()
        self.run("dd", "if=/dev/zero", f"of={self.data}/filler", "bs=1M")

    def free_disk(self) -> None:
        """Undo `fill_disk`."""
        (self.data / "filler").unlink(missing_ok=True)

    # -- its cable ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Unplug the cable: no carrier on either side."""
        _run("ip", "link", "set", self.link, "down")

    def repair_link(self) -> None:
        """Plug the cable in, without loss or rate limit."""
        for way in ("to", "from"):
            _run(*self._tc(way), "qdisc", "del", "dev", self._device(way), "root", check=False)
        _run("ip", "link", "set", self.link, "up")

    def lose(self, way: Literal["to", "from"]) -> None:
        """Drop all packets in one direction without an error: a queue of length 0."""
        _run(*self._tc(way), "qdisc", "replace", "dev", self._device(way), "root", "pfifo", "limit", "0")

    def shape(self, mbit: float, delay_ms: float = 0.0) -> None:
        """Limit both directions to `mbit` Mbit/s, each delayed by `delay_ms`.

        Raises:
            BedError: The kernel lacks the queue: netem for a delay.
        """
        for way in ("to", "from"):
            rate = f"{mbit:g}mbit"
            if delay_ms:
                shaping = ["netem", "rate", rate, "delay", f"{delay_ms:g}ms", "limit", "100000"]
            else:
                # Bursts of a millisecond, at least 64 KiB: an offloaded segment has to fit into one.
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
    """`count` hosts in a slot. As a context manager it starts them, and always stops them."""

    def __init__(self, count: int, slot: int | None = None) -> None:
        self._lock: IO[str] | None = None
        self.slot = self._take_slot() if slot is None else slot
        self.folder = PLACE / str(self.slot)
        self.hosts = [Host(self.slot, number) for number in range(count)]

    def _take_slot(self) -> int:
        """Return a slot that no living process holds."""
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
        """Path of the hostfile that names all hosts."""
        return self.folder / "hostfile.json"

    def up(self) -> Bed:
        """Start every host.

        Raises:
            BedError: Something is missing on this machine.
        """
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
        """Wait until the sshd of a host answers."""

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
        """End all processes in the slot and remove its files, also those of a killed bed."""
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
    """Stop the beds whose owners have ended, and return their slots."""
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
            raise BedError(f"waited {UP_S:g} s without success for {what}")
        time.sleep(0.02)
