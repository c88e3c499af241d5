"""What the doctor's facts mean: pure functions, facts → findings, each trouble with what is wrong and the command that mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LEAST_FREE = 2 << 30  # bytes: the five default respondents' seven years and a training take about 1 GB
SLOW = 0.25  # mlx's matrix products ÷ numpy's, in a rank: less is a BLAS that does not use this CPU
CLOCK_S = 2.0  # seconds that clocks may differ: logs still read in order, certificates hold
SLOW_LINK = 50e6  # bytes/s: half of 1 GbE; a ring over less is slower than one host alone at most lengths
LONG_DELAY_S = 2e-3  # one way: cables have 0.02 to 0.3 ms, Wi-Fi 2 to 30
SLEEPS = ("sleep", "disksleep")  # of pmset: minutes until it sleeps; 0 is never


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is what to do, empty where all is fine."""

    name: str
    state: Literal["fine", "mend"]
    seen: str
    fix: str = ""


def fine(name: str, seen: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(name, "fine", seen)


def mend(name: str, seen: str, fix: str) -> Finding:
    """A finding with its fix."""
    return Finding(name, "mend", seen, fix)


@dataclass(frozen=True)
class HostFacts:
    """What one host said, or why it said nothing."""

    host: str  # as the hostfile names it
    address: str  # where its neighbours reach it
    asked_python: str  # path that was tried
    problem: str = ""  # why it said nothing: ssh's or the shell's last words
    exit_code: int = 0  # of ssh, where it said nothing; 255 is ssh's own
    clock_off_s: float = 0.0  # its clock minus this host's
    clock_error_s: float = 0.0  # half the round trip in which it was asked
    said: Mapping[str, Any] = field(default_factory=dict)  # visit.facts


@dataclass(frozen=True)
class LinkFacts:
    """One direction between two neighbours of the ring."""

    source: str
    target: str
    address: str  # of the target
    error: str = ""
    delay_s: float = 0.0  # one way
    bytes_per_s: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What every host is held against: this host's versions and the data's format."""

    python: str  # 3.11
    versions: Mapping[str, str]
    format: int


def numbers(version: str) -> tuple[int, ...]:
    """`3.11.7` → (3, 11, 7); parts that are no number are left out."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


# -- one host ------------------------------------------------------------------------------------------------------------


def python(facts: Mapping[str, Any], same: str = "") -> list[Finding]:
    """The interpreter that workers and ranks run on. `same`: the minor version that it has to be."""
    seen = f"{facts['python']} ({facts['executable']}) on {facts['platform']}"
    if numbers(facts["python"]) < (3, 11):
        return [mend("python", seen, "use Python 3.11 or later: `uv sync --python 3.12`")]
    if same and numbers(facts["python"])[:2] != numbers(same)[:2]:
        fix = (
            f"`uv sync --python {same}` in the project's folder there, or name one of version {same} with --host-python"
        )
        return [mend("python", f"{seen}; it is {same} here", fix)]
    return [fine("python", seen)]


def backend(facts: Mapping[str, Any]) -> list[Finding]:
    """MLX's device, and the ring that ranks join."""
    seen = f"device {facts['device']}, ring {'available' if facts['ring'] else 'missing'}"
    if not facts["ring"]:
        fix = "this mlx was built without its ring: install the wheel, `uv sync --reinstall-package mlx`"
        return [mend("mlx", seen, fix)]
    return [fine("mlx", seen)]


def speeds(plain: Mapping[str, Any], rank: Mapping[str, Any]) -> list[Finding]:
    """Matrix products of numpy and of mlx on the CPU, as a process finds it and as a rank gets it."""
    numpy, before, after = plain["numpy_gflops"], plain["mlx_cpu_gflops"], rank["mlx_cpu_gflops"]
    seen = f"numpy {numpy:.0f} GFLOP/s; mlx {before:.0f}, in a rank {after:.0f} ({rank['blas'].removeprefix('BLAS: ')})"
    if plain["device"] == "cpu" and after < SLOW * numpy:
        if "openblas" in rank["blas"]:
            return [mend("BLAS", seen, "OpenBLAS is there and slow: ask again when nothing else runs on this host")]
        fix = "install OpenBLAS, e.g. `apt-get install libopenblas0-pthread`: ranks then preload it"
        return [mend("BLAS", seen, fix)]
    return [fine("BLAS", seen)]


def kernels(facts: Mapping[str, Any]) -> list[Finding]:
    """Attention kernels: which one is used, and why each of the others can't be."""
    if facts["kernel_refusal"]:
        return [mend("kernels", "none can be used", facts["kernel_refusal"])]
    missing = {name: why for name, why in facts["kernels"].items() if why is not None}
    usable = ", ".join(name for name in facts["kernels"] if name not in missing)
    isa = f" ({facts['isa']})" if facts["kernel"] == "native" and facts["isa"] else ""
    seen = f"{facts['kernel']}{isa} is used; usable: {usable}"
    if facts["device"] == "cpu" and "native" in missing:
        return [mend("kernels", f"{seen}; native can't be", missing["native"])]
    return [fine("kernels", seen)]


def probes(plain: Mapping[str, Any] | str | None, rank: Mapping[str, Any] | str | None) -> list[Finding]:
    """Both probes of a host: what it computes with, or why they failed. None: not asked."""
    if plain is None or rank is None:
        return []
    if isinstance(plain, str) or isinstance(rank, str):
        words = plain if isinstance(plain, str) else str(rank)
        return [
            mend("probe", words, "`python -m worker.process.probe` shows the error; `uv sync` mends a broken install")
        ]
    return [*backend(plain), *speeds(plain, rank), *kernels(plain)]


def unreached(facts: HostFacts) -> Finding:
    """Why a host said nothing, from ssh's exit code and last words."""
    host, words = facts.host, facts.problem or f"exit code {facts.exit_code}"
    if facts.exit_code in (126, 127):
        fix = (
            f"`uv sync` in the project's folder there makes {facts.asked_python}, or name its Python with --host-python"
        )
        return mend("python", f"no Python at {facts.asked_python}: {words}", fix)
    if facts.exit_code != 255:
        return mend(
            "python", f"{facts.asked_python} fails: {words}", f"`ssh {host} {facts.asked_python} -V` shows the error"
        )
    causes = {
        "Permission denied": f"`ssh-copy-id {host}`: it does not take this host's key",
        "Host key verification failed": f"`ssh {host}` once by hand, and compare the key it shows with the host's own",
        "REMOTE HOST IDENTIFICATION": f"its key has changed: find out why, then `ssh-keygen -R {host}`",
        "Connection refused": "turn on ssh there: System Settings → General → Sharing → Remote Login, or `systemctl start ssh`",
        "resolve": f"{host} is no known name: mend it in the hostfile, or name it in ~/.ssh/config or /etc/hosts",
    }
    fix = next((fix for cause, fix in causes.items() if cause in words), "")
    return mend(
        "ssh",
        words,
        fix or f"is it on, awake and on this network? Then `ssh -o BatchMode=yes {host} true`; or take it out",
    )


def host_findings(facts: HostFacts, expected: Expected) -> list[Finding]:
    """All of one host; their names begin with the host's."""
    return [Finding(f"{facts.host} {f.name}", f.state, f.seen, f.fix) for f in _host_findings(facts, expected)]


def _host_findings(facts: HostFacts, expected: Expected) -> list[Finding]:
    if facts.problem or facts.exit_code:
        return [unreached(facts)]
    said = facts.said
    return [
        fine("ssh", "answers in batch mode"),
        *python(said, expected.python),
        versions(said["versions"], expected.versions),
        *probes(said["probe"], said["rank_probe"]),
        ports(said["busy"]),
        clocks(facts.clock_off_s, facts.clock_error_s, said["system"]),
        disk(said["free"], said["unwritable"], said["data"]),
        key_modes(said["open_keys"]),
        folder(said["holder"], said["formats"], expected.format, said["data"]),
        address(facts.address, said["addresses"]),
        *sleep(said["sleep"]),
    ]


def versions(there: Mapping[str, str | None], here: Mapping[str, str]) -> Finding:
    """The project and mlx have to be the same everywhere: messages and ranks speak to one another."""
    wrong = [
        f"{name} {there.get(name) or 'is missing'} ({here[name]} here)"
        for name in here
        if there.get(name) != here[name]
    ]
    if wrong:
        pins = " ".join(f"{name}=={version}" for name, version in here.items() if there.get(name) != version)
        return mend(
            "packages",
            ", ".join(wrong),
            f"`git pull && uv sync` in the project's folder there, or `uv pip install {pins}`",
        )
    return fine("packages", ", ".join(f"{name} {version}" for name, version in here.items()))


def ports(busy: Iterable[int]) -> Finding:
    """mlx.launch's first ports."""
    if taken := ", ".join(map(str, busy)):
        fix = f"`lsof -nP -iTCP:{taken.partition(',')[0]}` shows who listens: end it, or `mlx.launch --starting-port PORT`"
        return mend("ports", f"{taken} in use", fix)
    return fine("ports", "mlx.launch's are free")


def clocks(off_s: float, error_s: float, system: str) -> Finding:
    """A host's clock against this one's, in s."""
    seen = f"clock {off_s:+.3f} s of this host's (± {error_s:.3f})"
    if abs(off_s) - error_s > CLOCK_S:
        fix = "`sudo sntp -sS time.apple.com`" if system == "Darwin" else "`sudo timedatectl set-ntp true`"
        return mend("clock", seen, fix + " there; and here, if it is this host's that is wrong")
    return fine("clock", seen)


def disk(free: int, unwritable: str, data: str) -> Finding:
    """Room, and the right to write, where the data folder is or will be."""
    if unwritable and free >= LEAST_FREE:
        return mend(
            "disk",
            f"{data} can't be written: {unwritable}",
            f"`sudo chown -R $USER {data}`, or name another with --data (--host-data)",
        )
    if free < LEAST_FREE:
        fix = f"free {LEAST_FREE / 1e9:.0f} GB, or name a folder on another disk with --data (--host-data)"
        return mend("disk", f"{free / 1e9:.1f} GB free at {data}", fix)
    return fine("disk", f"{free / 1e9:.1f} GB free at {data}")


def key_modes(open_to_others: Iterable[str]) -> Finding:
    """Key files that others can read."""
    if names := " ".join(open_to_others):
        return mend(
            "keys", f"others can read {names}", f"`chmod 600 {names}`; make new keys if others may have read them"
        )
    return fine("keys", "none that others can read")


def folder(holder: tuple[int, str] | None, formats: Iterable[int | None], expected: int, data: str) -> Finding:
    """Who holds the data folder, what a killed coordinator left there, and whether this version reads what lies in it."""
    if other := [str(found) for found in formats if found != expected]:
        fix = f"`mv {data} {data}.old` and extract again, or install the version that wrote it"
        return mend("data", f"manifests of format {other[0]} in {data}; this version reads {expected}", fix)
    if holder is not None and holder[0]:
        return mend(
            "data",
            f"{data} is held by pid {holder[0]}: {holder[1]}",
            f"wait for it, `kill {holder[0]}`, or name another with --data",
        )
    if holder is not None:
        fix = f"the same `coordinator start` goes on where it was; or `rm {data}/.endpoint`"
        return mend("data", f"a coordinator at {holder[1]} was killed and left {data}/.endpoint", fix)
    return fine("data", f"{data} is free")


def address(listed: str, own: Iterable[str]) -> Finding:
    """The ring's address that the hostfile gives a host against those that it has."""
    if not listed:
        return mend("address", "the hostfile gives it none", 'add "ips": its address on the ring\'s network')
    if listed not in own:
        return mend(
            "address",
            f"{listed} is not this host's",
            "put its own into the hostfile's ips: `ifconfig` or `ip addr` lists them",
        )
    return fine("address", f"{listed} is its own")


def sleep(settings: Mapping[str, str] | None) -> list[Finding]:
    """macOS only: a host that falls asleep is a host that is lost. Written from pmset's manual page; not run on a Mac yet."""
    if settings is None:
        return []
    asleep = [f"{name} {settings[name]}" for name in SLEEPS if settings.get(name, "0") != "0"]
    if asleep:
        return [
            mend(
                "sleep",
                f"goes to sleep on mains power ({', '.join(asleep)} min)",
                "`sudo pmset -c sleep 0 disksleep 0` there",
            )
        ]
    return [fine("sleep", "stays awake on mains power")]


# -- between hosts -------------------------------------------------------------------------------------------------------


def link_finding(link: LinkFacts) -> Finding:
    """One direction between neighbours of the ring."""
    name = f"{link.source} → {link.target}"
    if link.error:
        fix = (
            f"`ping {link.address}` on {link.source}; look at the cable, at {link.address} in the hostfile's ips, and at "
            f"{link.target}'s firewall (ring ports 32323 up, and the coordinator's own)"
        )
        return mend(name, f"{link.address} can't be reached: {link.error}", fix)
    seen = f"{link.bytes_per_s / 1e6:,.0f} MB/s, {link.delay_s * 1e3:.2f} ms one way"
    if link.bytes_per_s < SLOW_LINK or link.delay_s > LONG_DELAY_S:
        fix = (
            "use a cable in place of Wi-Fi, and list the addresses of the Thunderbolt bridge or the fast network in ips"
        )
        return mend(name, f"{seen}: slow for a ring", fix)
    return fine(name, seen)


def doubled(addresses: Iterable[tuple[str, str]]) -> list[Finding]:
    """(host, address): each address may stand for one host only."""
    seen: dict[str, str] = {}
    found = []
    for host, at in addresses:
        if at and at in seen:
            found.append(mend("hostfile", f"{seen[at]} and {host} both have {at}", "give each its own address in ips"))
        seen[at] = host
    return found


# -- saying --------------------------------------------------------------------------------------------------------------


def report(findings: list[Finding]) -> dict[str, Any]:
    """As plain data; `fine` is what the exit code goes by."""
    return {"fine": all(finding.state == "fine" for finding in findings), "findings": [asdict(f) for f in findings]}


def describe(findings: list[Finding], columns: int | None = None) -> str:
    """As text: a finding, its fix below it; wrapped below one another at `columns`, a line each without."""
    name = max(len(finding.name) for finding in findings)
    indent = name + 8 if columns is None or columns >= 2 * name + 40 else 6
    lines = []
    for finding in findings:
        mark = "ok  " if finding.state == "fine" else "MEND"
        lines.append((f"{mark}  {finding.name:<{max(0, indent - 8)}}  ", finding.seen))
        if finding.fix:
            lines.append((" " * indent, f"→ {finding.fix}"))
    if columns is None:
        return "\n".join(first + said for first, said in lines)
    return "\n".join(
        textwrap.fill(said, columns, initial_indent=first, subsequent_indent=" " * indent) for first, said in lines
    )
