"""Health checks: turn collected facts into findings; each problem has a cause and a fix. Deterministic, no I/O."""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from coordinator.workers.arithmetic import describe_difference
from coordinator.workers.ssh import SshFailure
from ingest.console import printable
from ingest.errors import quoted
from ringattn.macos import FAST_SYNCH, fast_synch_warning, local_network_hint, refused_python

READ_ONLY = os.strerror(errno.EROFS)
LEAST_FREE = 2 << 30  # bytes: the five default respondents' seven years and a training take about 1 GB
PYTHONS = (3, 11), (3, 14)  # the oldest and newest of `requires-python`
LEAST_MACOS, LEAST_GLIBC = (14,), (2, 35)  # of mlx's wheels
# mlx's matrix products ÷ numpy's, in turn in one rank; less means a BLAS that does not use this CPU. On two cores at a load of 20: OpenBLAS
# 0.75 to 1.06, the reference BLAS 0.31 to 0.44 (idle: 0.07).
MIN_SPEED_RATIO = 0.6
MAX_CLOCK_OFFSET_S = 2.0  # logs still sort by time and certificates are valid
MIN_LINK_BYTES_PER_S = 50e6  # half of 1 GbE; a ring over less is slower than one host at most lengths
MAX_DELAY_S = 2e-3  # one way: cables have 0.02 to 0.3 ms, Wi-Fi 2 to 30 ms
SLEEP_SETTINGS = ("sleep", "disksleep")  # of pmset: minutes until sleep; 0 means never


@dataclass(frozen=True)
class Finding:
    """The result of one check. `fix` is empty where nothing is wrong."""

    name: str
    state: Literal["ok", "problem"]
    seen: str
    fix: str = ""


def ok(name: str, seen: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(name, "ok", seen)


def problem(name: str, seen: str, fix: str) -> Finding:
    """Return a problem with its fix."""
    return Finding(name, "problem", seen, fix)


@dataclass(frozen=True)
class HostFacts:
    """The facts of one host, or why there are none."""

    host: str  # as the hostfile names it
    address: str  # where its neighbours reach it
    failure: SshFailure | None = None  # why it could not be asked
    clock_offset_s: float = 0.0  # its clock minus this host's
    clock_error_s: float = 0.0  # half the round trip of the measurement
    collected: Mapping[str, Any] = field(default_factory=dict)  # what host_script.facts returns


@dataclass(frozen=True)
class LinkFacts:
    """One direction of a link between two neighbours in the ring."""

    source: str
    target: str
    address: str  # of the target
    error: str = ""
    error_name: str = ""  # of the failed connection's errno
    system: str = ""  # `platform.system()` of the source
    delay_s: float = 0.0  # one way
    bytes_per_s: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What every host must match: this host's versions and the data's format."""

    python: str  # 3.11
    versions: Mapping[str, str]
    format: int


def numbers(version: str) -> tuple[int, ...]:
    """Split a version into its numbers: `3.11.7` → (3, 11, 7). Parts that are not numbers are left out."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


# -- one host ------------------------------------------------------------------------------------------------------------


def python(facts: Mapping[str, Any], same: str = "") -> list[Finding]:
    """Check the interpreter of workers and ranks.

    Args:
        facts: What the host script collected.
        same: The minor version that it must have; "" accepts any.
    """
    seen = f"{facts['python']} ({facts['executable']}) on {facts['platform']}"
    if not PYTHONS[0] <= numbers(facts["python"])[:2] <= PYTHONS[1]:
        return [problem("python", seen, "use Python 3.11 to 3.14, for which mlx has wheels: `uv sync --python 3.12`")]
    if same and numbers(facts["python"])[:2] != numbers(same)[:2]:
        fix = (
            f"`uv sync --python {same}` in the project's folder there, or name one of version {same} with --host-python"
        )
        return [problem("python", f"{seen}; the coordinator's host has {same}", fix)]
    return [ok("python", seen)]


def system(facts: Mapping[str, Any]) -> list[Finding]:
    """Check that mlx has wheels for this host: macOS 14 on Apple Silicon, or Linux with glibc 2.35."""
    if reason := refused_python(facts["system"].lower(), facts["machine"]):
        return [problem("system", f"macOS {facts['macos']}, {facts['machine']}", reason)]
    if facts["system"] == "Darwin" and numbers(facts["macos"]) < LEAST_MACOS:
        return [
            problem(
                "system", f"macOS {facts['macos']}", "update it to macOS 14 or later: mlx has no wheel for older ones"
            )
        ]
    if facts["glibc"] and numbers(facts["glibc"]) < LEAST_GLIBC:
        fix = "use Debian 12, Ubuntu 22.04, RHEL 10 or later: mlx has no wheel for a glibc before 2.35"
        return [problem("system", f"{facts['platform']}, glibc {facts['glibc']}", fix)]
    return []


def backend(facts: Mapping[str, Any]) -> list[Finding]:
    """Check MLX's device and its ring back end."""
    seen = f"device {facts['device']}, ring {'available' if facts['ring'] else 'missing'}"
    if not facts["ring"]:
        fix = "this mlx was built without its ring: install the wheel, `uv sync --reinstall-package mlx`"
        return [problem("mlx", seen, fix)]
    return [ok("mlx", seen)]


def speeds(plain: Mapping[str, Any], rank: Mapping[str, Any]) -> list[Finding]:
    """Compare the matrix products of numpy and of mlx on the CPU, in a plain process and in a rank.

    The verdict is by the median ratio of products in turn in the rank: the speeds of two processes differ with what else runs. The library is the one that answered in the rank, found by the address of its function.
    """
    numpy, before, after = plain["numpy_gflops"], plain["mlx_cpu_gflops"], rank["mlx_cpu_gflops"]
    used = rank["blas"]
    kernel = f", kernel {used['kernel']}" if used["kernel"] else ""
    library = f"{used['build']}{kernel}" + (f" ({used['path']})" if used["path"] else "")
    seen = f"in a rank mlx has {after:.0f} GFLOP/s with {library}; without it {before:.0f}; numpy {numpy:.0f}"
    if plain["device"] != "cpu" or rank["mlx_to_numpy"] >= MIN_SPEED_RATIO:
        return [ok("BLAS", seen)]
    if rank["blas_why"]:
        return [problem("BLAS", seen, f"{rank['blas_why']}; or preload an OpenBLAS: `LD_PRELOAD=/…/libopenblas.so.0`")]
    fix = f"{used['build']} is slow on this host: {rank['mlx_to_numpy']:.2f} of numpy's speed; run the doctor again when nothing else runs here"
    return [problem("BLAS", seen, fix)]


def kernels(facts: Mapping[str, Any]) -> list[Finding]:
    """Check the attention kernels: which one is used, and why each of the others cannot be."""
    if facts["kernel_refusal"]:
        return [problem("kernels", "no attention kernel can be used on this host", facts["kernel_refusal"])]
    missing = {name: why for name, why in facts["kernels"].items() if why is not None}
    usable = ", ".join(name for name in facts["kernels"] if name not in missing)
    isa = f" ({facts['isa']})" if facts["kernel"] == "native" and facts["isa"] else ""
    seen = f"{facts['kernel']}{isa} is used; usable: {usable}"
    if facts["device"] == "cpu" and "native" in missing:
        return [problem("kernels", f"{seen}; native can't be used", missing["native"])]
    return [ok("kernels", seen)]


def probes(plain: Mapping[str, Any] | str | None, rank: Mapping[str, Any] | str | None) -> list[Finding]:
    """Check both probes of a host: what it computes with, or why the probe failed. None means not probed."""
    if plain is None or rank is None:
        return []
    if isinstance(plain, str) or isinstance(rank, str):
        words = plain if isinstance(plain, str) else str(rank)
        return [
            problem(
                "probe", words, "`python -m worker.process.probe` shows the error; `uv sync` repairs a broken install"
            )
        ]
    return [*backend(plain), *speeds(plain, rank), *kernels(plain)]


def host_findings(facts: HostFacts, expected: Expected) -> list[Finding]:
    """Run all checks of one host. The names of the findings begin with the host's name."""
    return [Finding(f"{facts.host} {f.name}", f.state, f.seen, f.fix) for f in _host_findings(facts, expected)]


def _host_findings(facts: HostFacts, expected: Expected) -> list[Finding]:
    if facts.failure is not None:
        return [problem(facts.failure.subject, facts.failure.cause, facts.failure.fix)]
    collected = facts.collected
    return [
        ok("ssh", "answers in batch mode"),
        *system(collected),
        *python(collected, expected.python),
        versions(collected["versions"], expected.versions),
        *probes(collected["probe"], collected["rank_probe"]),
        ports(collected["busy"]),
        clocks(facts.clock_offset_s, facts.clock_error_s, collected["system"]),
        disk(collected["free"], collected["unwritable"], collected["data"]),
        key_modes(collected["open_keys"]),
        folder(collected["holder"], collected["formats"], expected.format, collected["data"]),
        address(facts.address, collected["addresses"]),
        *sleep(collected["sleep"]),
    ]


def versions(there: Mapping[str, str | None], here: Mapping[str, str]) -> Finding:
    """Check that the project and mlx have the same versions everywhere: coordinator and workers exchange messages, and ranks data."""
    wrong = [
        f"{name} {there.get(name) or 'is missing'} ({here[name]} here)"
        for name in here
        if there.get(name) != here[name]
    ]
    if wrong:
        pins = " ".join(f"{name}=={version}" for name, version in here.items() if there.get(name) != version)
        return problem(
            "packages",
            ", ".join(wrong),
            f"`git pull && uv sync` in the project's folder there, or `uv pip install {pins}`",
        )
    return ok("packages", ", ".join(f"{name} {version}" for name, version in here.items()))


def ports(busy: Iterable[int]) -> Finding:
    """Check the first ports of `mlx.launch`."""
    if taken := ", ".join(map(str, busy)):
        fix = f"`lsof -nP -iTCP:{taken.partition(',')[0]}` shows the listener: end it, or `mlx.launch --starting-port PORT`"
        return problem("ports", f"{taken} in use", fix)
    return ok("ports", "mlx.launch's are free")


def clocks(off_s: float, error_s: float, system: str) -> Finding:
    """Compare a host's clock with this host's; both arguments in seconds."""
    seen = f"clock {off_s:+.3f} s from this host's (± {error_s:.3f})"
    if abs(off_s) - error_s > MAX_CLOCK_OFFSET_S:
        fix = "`sudo sntp -sS time.apple.com`" if system == "Darwin" else "`sudo timedatectl set-ntp true`"
        return problem("clock", seen, fix + " there, or here if this host's clock is wrong")
    return ok("clock", seen)


def disk(free: int, unwritable: str, data: str) -> Finding:
    """Check free space and write access where the data folder is or will be."""
    if unwritable and free >= LEAST_FREE:
        return problem(
            "disk",
            f"{data} can't be written: {unwritable}",
            ("mount its disk for writing" if READ_ONLY in unwritable else f"`sudo chown -R $USER {quoted(data)}`")
            + ", or name another with --data (--host-data)",
        )
    if free < LEAST_FREE:
        fix = f"free {LEAST_FREE / 1e9:.0f} GB, or name a folder on another disk with --data (--host-data)"
        return problem("disk", f"{free / 1e9:.1f} GB free at {data}", fix)
    return ok("disk", f"{free / 1e9:.1f} GB free at {data}")


def key_modes(open_to_others: Iterable[str]) -> Finding:
    """Check that no other user can read the key files."""
    if files := list(open_to_others):
        command = f"`chmod 600 {' '.join(map(quoted, files))}`"
        cause = f"readable by others: {' '.join(files)}"
        return problem("keys", cause, f"{command}; make new keys if others may have read them")
    return ok("keys", "no key file is readable by others")


def folder(holder: tuple[int, str] | None, formats: Iterable[int | None], expected: int, data: str) -> Finding:
    """Check whether a process holds the data folder, a killed coordinator left files in it, and its format is supported."""
    if other := [str(found) for found in formats if found != expected]:
        fix = f"`mv {quoted(data)} {quoted(data + '.old')}` and extract again, or install the version that wrote it"
        return problem("data", f"manifests of format {other[0]} in {data}; this version reads {expected}", fix)
    if holder is not None and holder[0]:
        return problem(
            "data",
            f"{data} is held by pid {holder[0]}: {holder[1]}",
            f"wait for it, `kill {holder[0]}`, or name another with --data",
        )
    if holder is not None:
        fix = f"the same `coordinator start` resumes it; or `rm {quoted(data + '/.endpoint')}`"
        return problem("data", f"a coordinator at {holder[1]} was killed and left {data}/.endpoint", fix)
    return ok("data", f"{data} is free")


def address(listed: str, own: Iterable[str]) -> Finding:
    """Check that the address in the hostfile is one of the host's own."""
    if not listed:
        return problem("address", "the hostfile lists no address", 'add "ips": its address on the ring\'s network')
    if listed not in own:
        return problem(
            "address",
            f"{listed} is not this host's",
            "correct the hostfile's ips: `ifconfig` or `ip addr` lists the host's addresses",
        )
    return ok("address", f"{listed} is an address of this host")


def environment(variables: Mapping[str, str]) -> list[Finding]:
    """Check variables that every rank would get."""
    if danger := fast_synch_warning(variables):
        return [problem("environment", danger, f"`unset {FAST_SYNCH}`, and take it out of the hostfile's envs")]
    return []


def sleep(settings: Mapping[str, str] | None) -> list[Finding]:
    """Check that a Mac does not sleep on mains power: a host that sleeps is lost to the run.

    Written from pmset's manual page; never run on a Mac.
    """
    if settings is None:
        return []
    asleep = [f"{name} {settings[name]}" for name in SLEEP_SETTINGS if settings.get(name, "0") != "0"]
    if asleep:
        return [
            problem(
                "sleep",
                f"goes to sleep on mains power ({', '.join(asleep)} min)",
                "`sudo pmset -c sleep 0 disksleep 0` there",
            )
        ]
    return [ok("sleep", "does not sleep on mains power")]


# -- between hosts -------------------------------------------------------------------------------------------------------


def link_finding(link: LinkFacts) -> Finding:
    """Check one direction of a link between neighbours in the ring."""
    name = f"{link.source} → {link.target}"
    if link.error:
        fix = (
            f"`ping {link.address}` on {link.source}; check the cable, {link.address} in the hostfile's ips, and "
            f"{link.target}'s firewall (ring ports 32323 up, and the coordinator's own)"
        )
        if hint := link.system and local_network_hint(link.error_name, link.system):
            fix = f"on {link.source}: {hint}. Otherwise {fix}"
        return problem(name, f"{link.address} can't be reached: {link.error}", fix)
    seen = f"{link.bytes_per_s / 1e6:,.0f} MB/s, {link.delay_s * 1e3:.2f} ms one way"
    if link.bytes_per_s < MIN_LINK_BYTES_PER_S or link.delay_s > MAX_DELAY_S:
        fix = (
            "use a cable instead of Wi-Fi, and list the addresses of the Thunderbolt bridge or the fast network in ips"
        )
        return problem(name, f"{seen}: slow for a ring", fix)
    return ok(name, seen)


def same_arithmetic(facts: Iterable[HostFacts]) -> list[Finding]:
    """Compare what decides bits on the hosts that were probed. A difference is no problem: rounding alone differs."""
    ranks = {one.host: probe for one in facts if isinstance(probe := one.collected.get("rank_probe"), dict)}
    if len(ranks) < 2:
        return []
    mlx = {host: f"{probe['blas']['build']} {probe['blas']['kernel']}".strip() for host, probe in ranks.items()}
    used = {host: f"mlx with {mlx[host]}, numpy with {probe['numpy_blas']}" for host, probe in ranks.items()}
    return [ok("arithmetic", describe_difference(used) or f"the same on all hosts: {next(iter(used.values()))}")]


def duplicate_addresses(addresses: Iterable[tuple[str, str]]) -> list[Finding]:
    """Find addresses that two hosts share.

    Args:
        addresses: (host, address) pairs.
    """
    seen: dict[str, str] = {}
    found = []
    for host, at in addresses:
        if at and at in seen:
            found.append(
                problem("hostfile", f"{seen[at]} and {host} both have {at}", "give each its own address in ips")
            )
        seen[at] = host
    return found


# -- output --------------------------------------------------------------------------------------------------------------


def report(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as plain data. The exit code is 0 when `fine` is true."""
    return {"fine": all(finding.state == "ok" for finding in findings), "findings": [asdict(f) for f in findings]}


def describe(findings: list[Finding], columns: int | None = None) -> str:
    """Format the findings as text, each with its fix below it.

    Args:
        findings: The findings.
        columns: Width to wrap at; None writes one line each.
    """
    findings = [
        replace(one, name=printable(one.name), seen=printable(one.seen), fix=printable(one.fix)) for one in findings
    ]
    name = max(len(finding.name) for finding in findings)
    indent = name + 8 if columns is None or columns >= 2 * name + 40 else 6
    lines = []
    for finding in findings:
        mark = "ok  " if finding.state == "ok" else "FAIL"
        lines.append((f"{mark}  {finding.name:<{max(0, indent - 8)}}  ", finding.seen))
        if finding.fix:
            lines.append((" " * indent, f"→ {finding.fix}"))
    if columns is None:
        return "\n".join(first + said for first, said in lines)
    return "\n".join(
        textwrap.fill(said, columns, initial_indent=first, subsequent_indent=" " * indent) for first, said in lines
    )
