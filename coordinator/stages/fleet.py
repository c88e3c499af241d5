"""Build the fleet of a stage from its options: local workers, SSH workers, the address where all of them connect."""

import ipaddress
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server.key_store import LOCAL, CoordinatorKeys, host_keys, load_coordinator, split_endpoint, worker_key
from coordinator.stages.engine_check import check_engine
from coordinator.stages.trackers import check_installed
from coordinator.wire.auth import endpoint_of, is_loopback, local_address_towards, loopback_address
from coordinator.wire.engines import load_factory
from coordinator.wire.messages import MAX_CAPACITY
from coordinator.workers.hostfile import HERE, Hosts, hosts_from
from coordinator.workers.remote import SshWorkerPool
from ingest.errors import UsageError

DEFAULT_TIMINGS = LeaseTimings()
ANY_PORT = "tcp://127.0.0.1:0"  # the default of --bind
WORKER = (sys.executable, "-m", "worker")
LEASES_EACH = 4  # leases at once in an engine for each of --workers: as many as a worker holds


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options that every stage has."""

    data_dir: Path
    workers: int  # to start on this host
    connections: int  # of each worker to the source
    bind: str  # where to listen, tcp://ADDRESS:PORT
    keys: Path  # folder of the CURVE keys
    retries: int  # failures of a task until it is quarantined
    hosts: Hosts | None = None  # of the hostfile, if there is one
    report_to: tuple[str, ...] = ()  # experiment trackers of a training
    engine: str = ""  # MODULE:FACTORY of an executor that runs the leases; "": workers do

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **own: Any) -> Self:
        """Return the options of resolved settings; `own`: fields of the subclass, or values in place of the settings'.

        Raises:
            UsageError: the engine cannot be imported; `check_address` has others.
        """
        check_address(settings["bind"])
        try:
            if engine := settings["engine"]:
                load_factory(engine)
        except ValueError as error:
            raise UsageError(f"{error}. Correct --engine.") from error
        check_installed(settings["report-to"])
        shared = {name: settings[name] for name in ("workers", "connections", "bind", "keys", "retries")}
        return cls(
            **{
                "data_dir": settings["data"],
                "hosts": hosts_from(settings),
                "engine": engine,
                "report_to": settings["report-to"],
                **shared,
                **own,
            }
        )


def check_address(bind: str) -> None:
    """Check the form of `--bind`, and that its address is one of this host's. A port in use is found when it is bound.

    Raises:
        UsageError: it is not tcp://ADDRESS:PORT, or this host has no such address.
    """
    host, _ = split_endpoint(bind)
    if bind == ANY_PORT:  # replaced by the address of loopback that this host has
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # a name, an interface or *, which the system resolves when it is bound
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise UsageError(
            f"bind {bind}: this host cannot listen there ({error.strerror}). Give --bind an address of this host, e.g. "
            f"{endpoint_of(loopback_address(), 5555)}; `{'ifconfig' if sys.platform == 'darwin' else 'ip address'}` lists them."
        ) from None


@dataclass(frozen=True)
class Fleet:
    """Where the tasks run."""

    data_dir: Path
    bind: str
    workers: int  # to start on this host
    connections: int  # of each of them to the source
    retries: int  # failures of a task until it is quarantined
    keys: CoordinatorKeys | None = None  # None: on loopback, in clear
    worker_key: Path | None = None  # key file of this host's workers, with CURVE
    worker_command: tuple[str, ...] = WORKER
    timings: LeaseTimings = DEFAULT_TIMINGS
    hosts: SshWorkerPool | None = None  # on other hosts, their sessions open
    engine: str = ""  # MODULE:FACTORY of the executor in the worker; "": none


def build_fleet(options: StageOptions, note: Callable[[str], None]) -> Fleet:
    """Return the fleet of a stage, with an open SSH session to each host of the hostfile.

    Local workers connect over loopback in clear, or with a key of their own where the coordinator listens off loopback.

    Args:
        options: the stage's options.
        note: receives a line before the sessions are opened, and while an engine's check takes long.

    Raises:
        UsageError: hosts or an engine that cannot be used, with their reasons.
    """
    hosts, workers, connections = options.hosts, options.workers, options.connections
    command: tuple[str, ...] = WORKER
    if options.engine:  # one process, which hands its leases on
        check_engine(options.engine, note)
        command = (*WORKER, "--engine", options.engine, "--capacity", str(min(LEASES_EACH * workers, MAX_CAPACITY)))
        hosts, workers, connections = None, 1, connections * workers
    bind = reachable_bind(options.bind, hosts)
    if hosts is not None:
        # Local workers do not use this host's own name, which may be in the hostfile. Without an entry here they take no rank.
        workers, command = max(1, hosts.here), (*WORKER, "--host", HERE[0], *(() if hosts.here else ("--no-ranks",)))
    remote, own_keys, key = None, None, None
    if not is_loopback(bind):
        if hosts is not None and hosts.remote:
            logs = options.data_dir / "logs"
            keys_of = {host.name: host_keys(options.keys, host.name) for host in hosts.remote}
            remote = SshWorkerPool(hosts, options.connections, DEFAULT_TIMINGS.silence_s / 2, logs, keys_of)
            note(f"connecting to {len(hosts.remote)} hosts over ssh")
            remote.open()
        key = worker_key(options.keys, LOCAL)  # before the allow-list is read
        own_keys = load_coordinator(options.keys)
    return Fleet(
        options.data_dir,
        bind,
        workers,
        connections,
        options.retries,
        keys=own_keys,
        worker_key=key,
        worker_command=command,
        hosts=remote,
        engine=options.engine,
    )


def reachable_bind(bind: str, hosts: Hosts | None) -> str:
    """Return where to listen.

    A loopback address, where no other host can connect, is replaced by this host's towards the first host; the
    default one by IPv6's where this host has no other.

    Raises:
        UsageError: this host has no address towards it, or one that no other host reaches.
    """
    if hosts is None or not hosts.remote or not is_loopback(bind):
        return endpoint_of(loopback_address(), 0) if bind == ANY_PORT else bind
    first = hosts.remote[0]
    try:
        own = local_address_towards(f"tcp://{first.address or first.name.rpartition('@')[2]}:22")
    except OSError as error:
        raise UsageError(
            f"{first.name} has no address here ({error}). Give its `ips` in the hostfile, or set the address where the hosts "
            "reach this one with --bind tcp://ADDRESS:PORT."
        ) from None
    if is_loopback(endpoint_of(own, 1)):
        raise UsageError(
            f"{first.name}: this host's address towards it is {own}, which no other host reaches. Correct its `ips` in the "
            "hostfile (workers of this host are entries with ssh 127.0.0.1), or give --bind tcp://ADDRESS:PORT."
        )
    return endpoint_of(own, bind.rpartition(":")[2])
