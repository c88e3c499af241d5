"""The proxy and the transport: refused peers are counted and logged by address; a revoked key is disconnected at once."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from coordinator.cli.app import app
from coordinator.cli.errors import run
from coordinator.scheduling.records import Done, TaskSpec
from coordinator.server import key_store
from coordinator.server.auth_proxy import LINES, MAX_PEERS, QUIET_S, RejectionLog, greeting_problem
from coordinator.server.descriptors import WANTED, DescriptorLimit, peers_within, wanted_limit
from coordinator.wire import auth, codec, messages
from coordinator.wire.messages import Heartbeat, Lease, PermitGrant, PermitRequest, Register, Shutdown, StatusRequest
from tests.support.serving import Peer, Running
from tests.support.waiting import WAIT_S, until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)


def test_greeting_must_be_zmtp_3_with_curve() -> None:
    assert greeting_problem(GREETING[:10]) == greeting_problem(GREETING) == ""
    for other in (b"", b"GET / HTTP", b"\xff" * 64, b"\x16\x03\x01" + bytes(61)):
        assert "does not speak ZeroMQ" in greeting_problem(other)
    assert "mechanism NULL" in greeting_problem(GREETING.replace(b"CURVE", b"NULL\0"))
    assert "no key" in greeting_problem(GREETING.replace(b"\x7f\x03", b"\x7f\x01"))


def test_flood_from_one_host_hides_no_other_host() -> None:
    rejections = RejectionLog()
    lines = [rejections.record("10.0.0.9", n, "x", now=n * 1e-3) for n in range(500)]
    assert [bool(line) for line in lines] == [True] + [False] * 499
    assert "10.0.0.7 (port 5)" in rejections.record("10.0.0.7", 5, "x", now=0.6)
    assert "499 more" in rejections.record("10.0.0.9", 1, "x", now=QUIET_S + 0.1)
    assert rejections.count == 502
    for n in range(2 * MAX_PEERS):
        rejections.record(f"host-{n}", 1, "x", now=20.0)
    assert len(rejections._hosts) == MAX_PEERS


class Keyed(Running):
    """A server with keys on a separate loopback address."""

    def __init__(self, folder: Path, *tasks: str) -> None:
        self.keys = folder / "keys"
        self.worker_key = auth.load_worker(key_store.add_worker(self.keys, "mine"))
        super().__init__(folder / "data", tasks or ("a",), key=key_store.load_coordinator(self.keys))

    def leave(self, peer: Peer) -> None:
        self.peers.remove(peer)
        peer.close()

    def raw(self, *pieces: bytes) -> socket.socket:
        port = int(self.server.endpoint.rpartition(":")[2])
        connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        for piece in pieces:
            connection.sendall(piece)
        return connection


@pytest.fixture
def keyed(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyed]:
    monkeypatch.setattr("coordinator.server.auth_proxy.QUIET_S", 0.0)
    (tmp_path / "data").mkdir()
    running = Keyed(tmp_path)
    with caplog.at_level(logging.WARNING, "coordinator.server.auth_proxy"):
        yield running
    running.close()


def refused(log: pytest.LogCaptureFixture, words: str, port: int | None = None) -> list[float]:
    """Return the times of the log lines with `words`."""
    address = re.escape(f"refused 127.0.0.1 (port {port})") if port else r"refused 127\.0\.0\.1"
    return [
        record.created for record in log.records if re.search(f"{address}.*{re.escape(words)}", record.getMessage())
    ]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((b"GET / HTTP/1.1\r\n\r\n",), "does not speak ZeroMQ"),
        ((b"\xff" * 100,), "does not speak ZeroMQ"),
        ((), "sent nothing"),
        ((GREETING.replace(b"CURVE", b"NULL\0"),), "mechanism NULL"),
        ((GREETING, b"\x04\xc8\x05HELLO" + bytes(194)), "did not finish its handshake"),
    ],
)  # fmt: skip
def test_garbage_is_refused_within_a_second_by_address(
    keyed: Keyed, caplog: pytest.LogCaptureFixture, pieces: tuple[bytes, ...], words: str
) -> None:
    began = time.time()
    connection = keyed.raw(*pieces)
    while connection.recv(4096):  # until the proxy closes it
        pass
    when = until(lambda: refused(caplog, words, connection.getsockname()[1]), "its line in the log")
    assert when[0] - began < 1.0 + 1.0  # the documented second, and another for a busy machine
    assert keyed.server.status().counters["refused"] == 1
    serves(keyed)


def serves(keyed: Keyed) -> None:
    """A worker with a key is served meanwhile."""
    peer = keyed.peer("w-good", keyed.worker_key)
    peer.register()
    assert peer.finish(peer.receive(Lease)).accepted


def test_missing_and_unknown_keys_are_logged_by_address(
    keyed: Keyed, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for key, words in ((None, "mechanism NULL"), (unknown_key(keyed), "not on the list")):
        enemy = keyed.peer("enemy", key)
        began = time.time()
        enemy.socket.send(codec.encode(Register("enemy", "h", 1, ("noop",), 1, "x", "0", "3")))
        when = until(lambda: refused(caplog, words), "its line in the log")  # noqa: B023  # asked at once
        assert when[0] - began < 1.0 + 1.0
        keyed.leave(enemy)
    serves(keyed)
    assert "enemy" not in keyed.scheduler.workers


def unknown_key(keyed: Keyed) -> auth.KeyPair:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return auth.KeyPair(public, secret, keyed.worker_key.server)


def test_revoked_worker_is_disconnected_and_its_leases_released(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    doomed = keyed.peer("doomed", auth.load_worker(key_store.add_worker(keyed.keys, "doomed")))
    doomed.register()  # its key was added while the coordinator runs
    assert doomed.receive(Lease).attempt == 1
    doomed.send(Heartbeat("doomed", (("a", 1),)))
    until(lambda: keyed.scheduler.workers["doomed"].executing, "the heartbeat")
    began = time.time()
    key_store.revoke_worker(keyed.keys, "doomed")
    assert "revoked" in doomed.receive(Shutdown).reason
    until(lambda: not keyed.scheduler.workers, "the worker to be forgotten")
    task = keyed.scheduler.tasks["a"]
    assert (task.state, task.failures) == ("pending", 0)
    cut = until(lambda: refused(caplog, "revoked"), "its line in the log")
    assert cut[0] - began < 1.0 + 1.0
    again = until(lambda: refused(caplog, "not on the list"), "the refusal of its new connection")
    assert again[0] >= cut[0] and not keyed.scheduler.workers
    serves(keyed)


def test_key_authenticates_its_own_workers_only(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    other = auth.load_worker(key_store.add_worker(keyed.keys, "other"))
    victim = keyed.peer("victim", keyed.worker_key)
    victim.register()
    lease = victim.receive(Lease)
    thief = keyed.peer(
        "victim", other
    )  # the same ROUTER identity: it takes over the route, but its messages are refused
    thief.socket.send(codec.encode(messages.Result("victim", lease.task, lease.attempt, {"false": 1}, 0.1)))
    until(lambda: refused(caplog, "speaks for a worker of another key"), "the refusal")
    assert keyed.scheduler.tasks["a"].state == "leased"
    keyed.leave(thief)

    keyed.leave(victim)
    again = keyed.peer("victim", keyed.worker_key)  # as an agent does that receives nothing any more
    assert again.finish(lease).accepted
    assert keyed.end().status == "done"


def test_status_with_keys_requires_the_coordinators_key(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    stranger = keyed.peer("looker", keyed.worker_key)
    stranger.send(StatusRequest())
    until(lambda: refused(caplog, "may not ask"), "the refusal")
    own = keyed.peer("own", auth.load_worker(key_store.worker_key(keyed.keys, key_store.LOCAL)))
    own.send(StatusRequest())
    snapshot = own.receive(messages.Status).snapshot
    assert snapshot["counters"]["refused"] == 1


def test_allow_list_readable_by_others_is_ignored(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    (keyed.keys / "allowed.json").chmod(0o666)
    with caplog.at_level(logging.ERROR, "coordinator.server.key_store"):
        until(lambda: "stays in force" in caplog.text, "the error in the log")
    serves(keyed)


def test_files_pass_the_proxy_intact(keyed: Keyed) -> None:
    """Send more than all buffers hold, in both directions at once."""
    peer = keyed.peer("w-load", keyed.worker_key)
    peer.register()
    for _ in range(3_000):
        peer.send(PermitRequest("w-load", "none" * 60, 1))
    for _ in range(3_000):
        peer.receive(PermitGrant)


def test_taken_port_is_reported_with_the_next_command(tmp_path: Path) -> None:
    from coordinator.server.auth_proxy import AuthProxy
    from ingest.errors import UsageError

    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(UsageError, match="--bind"):
        AuthProxy(f"tcp://127.0.0.1:{busy.getsockname()[1]}", "tcp://127.0.0.1:1")
    for bind in ("tcp://nosuchhost.invalid:1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:99999"):
        with pytest.raises((UsageError, OverflowError)):
            AuthProxy(bind, "tcp://127.0.0.1:1")


def test_key_commands_create_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def keys(*words: str) -> tuple[int, str]:
        code = run(app, ["keys", *words, "--keys", str(tmp_path / "keys")])
        return code, "".join(capsys.readouterr())

    assert keys("init") == (0, f"{tmp_path}/keys/coordinator.key\n")
    code, said = keys("add", "m2-1")
    assert (code, said) == (0, f"{tmp_path}/keys/workers/m2-1.key\n")
    pair = json.loads(Path(said.strip()).read_text())
    assert keys("list") == (0, f"m2-1\t{pair['public']}\n")
    code, said = keys("add", "m2-1")
    assert code == 2 and "coordinator keys revoke m2-1" in said
    assert keys("revoke", "m2-1") == (0, "") and keys("list") == (0, "")
    assert not list((tmp_path / "keys" / "workers").iterdir())


def test_greetings_without_a_handshake_neither_end_a_run_nor_keep_a_worker_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 connections that send a greeting and nothing more, where 256 descriptors are the limit that cannot be raised."""
    monkeypatch.setattr("coordinator.server.auth_proxy.current_limit", lambda: DescriptorLimit(256, 256))
    (tmp_path / "data").mkdir()
    keyed = Keyed(tmp_path)
    try:
        flood = [keyed.raw(GREETING) for _ in range(300)]
        assert keyed.server._router._proxy.places == 96
        serves(keyed)
        assert keyed.end().status == "done"
        for connection in flood:
            connection.close()
    finally:
        keyed.close()


def test_whole_handshake_has_one_time_limit(
    keyed: Keyed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.server.auth_proxy.HANDSHAKE_S", 0.5)
    connection = keyed.raw(GREETING)
    while connection.recv(4096):
        pass
    until(lambda: refused(caplog, "did not finish its handshake", connection.getsockname()[1]), "its line in the log")


def test_addresses_without_end_write_a_bounded_log() -> None:
    rejections = RejectionLog()
    lines = [rejections.record(f"2001:db8::{n:x}", 1, "x", now=n * 1e-3) for n in range(5_000)]
    assert sum(map(bool, lines)) == LINES + 1
    assert rejections.record("10.0.0.7", 5, "x", now=QUIET_S + 0.1)


def test_descriptors_are_raised_and_counted() -> None:
    assert wanted_limit(1024, 1 << 20) == WANTED and wanted_limit(256, resource.RLIM_INFINITY) == WANTED
    assert wanted_limit(1024, 4096) == 4096 and wanted_limit(50_000, 60_000) == 50_000
    assert (peers_within(256, MAX_PEERS), peers_within(1024, MAX_PEERS)) == (96, 448)
    assert peers_within(WANTED, MAX_PEERS) == peers_within(resource.RLIM_INFINITY, MAX_PEERS) == MAX_PEERS


def test_lack_of_descriptors_is_waited_for(tmp_path: Path) -> None:
    """A manifest, a new journal and a worker find no descriptor, and go on when one is free; a restart does not wait in the loop."""
    script = Path(__file__).parents[2] / "support" / "no_descriptors.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60)
    waited = "manifest after a wait\njournal at once\nsecond journal after a wait\nworker after a wait\n"
    assert (done.returncode, done.stdout) == (0, f"{waited}restart [None]\nrestarts 1 losses 1\n"), done.stderr
    assert "Traceback" not in done.stderr


# -- keys: revoked under load, wrong modes, one key for two workers, replayed messages ---------------------------------------


def test_revocation_acts_while_its_worker_floods_the_server(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    """5,000 messages of the revoked worker wait: none delays the end of its lease. It is cut at once, perhaps before its Shutdown."""
    doomed = keyed.peer("doomed", auth.load_worker(key_store.add_worker(keyed.keys, "doomed")))
    doomed.register()
    doomed.receive(Lease)
    for _ in range(2_500):
        doomed.send(PermitRequest("doomed", "none", 1))
    key_store.revoke_worker(keyed.keys, "doomed")
    for _ in range(2_500):
        doomed.send(PermitRequest("doomed", "none", 1))
    until(lambda: not keyed.scheduler.workers, "the worker to be forgotten")
    assert (keyed.scheduler.tasks["a"].state, keyed.scheduler.tasks["a"].failures) == ("pending", 0)

    def again() -> list[float]:
        while doomed.socket.poll(0):  # libzmq sees the end of a connection only while its own queue has room
            doomed.socket.recv_multipart()
        return refused(caplog, "not on the list")

    until(again, "the refusal of its new connection")
    serves(keyed)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_key_files_of_any_open_mode_are_refused_by_every_reader(tmp_path: Path, mode: int) -> None:
    worker = key_store.add_worker(tmp_path, "m2-1")
    readers = {
        worker: lambda: auth.load_worker(worker),
        tmp_path / "coordinator.key": lambda: key_store.load_coordinator(tmp_path),
        tmp_path / "allowed.json": lambda: key_store.read_allowed(tmp_path),
    }
    for path, read in readers.items():
        path.chmod(mode)
        with pytest.raises(auth.CurveError, match=f"mode {mode:o}.*chmod 600"):
            read()
        path.chmod(0o400)
        read()


def test_two_workers_of_one_key_have_leases_of_their_own(keyed: Keyed) -> None:
    """A key names a host, not a worker: both are served, and neither ends the other's lease under its own name."""
    keyed.server.add_tasks([TaskSpec("b", "noop", {})])
    one, two = keyed.peer("w-one", keyed.worker_key), keyed.peer("w-two", keyed.worker_key)
    one.register(capacity=1)
    first = one.receive(Lease)
    two.register(capacity=1)
    second = two.receive(Lease)
    assert {first.task, second.task} == {"a", "b"}
    two.send(messages.Result("w-two", first.task, first.attempt, {}, 0.1))
    assert not two.receive(messages.Ack).accepted and keyed.scheduler.tasks[first.task].state == "leased"
    two.send(messages.Result("w-one", first.task, first.attempt, {}, 0.1))  # another identity than its socket's
    assert two.finish(second).accepted and keyed.scheduler.tasks[first.task].state == "leased"
    assert one.finish(first).accepted
    assert keyed.end().status == "done" and keyed.server.counters["bad"] == 1


def test_replayed_messages_change_nothing(keyed: Keyed) -> None:
    """A result and a failure that are sent again are stale."""
    keyed.server.add_tasks([TaskSpec("b", "noop", {})])
    peer = keyed.peer("w-good", keyed.worker_key)
    peer.register(capacity=1)
    lease = peer.receive(Lease)
    assert peer.finish(lease, {"rows": 1}).accepted
    second = peer.receive(Lease)
    assert not peer.finish(lease, {"rows": 2}).accepted
    peer.send(messages.Failure("w-good", lease.task, lease.attempt, "Boom", "again", final=True))
    assert not peer.receive(messages.Ack).accepted
    assert peer.finish(second).accepted
    assert keyed.end().status == "done"
    done = [record for record in keyed.journal.load() if isinstance(record, Done)]
    assert [(record.task, record.output) for record in done] == [("a", {"rows": 1}), ("b", {})]


def test_recorded_bytes_of_a_connection_open_no_other(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    """CURVE's keys are of one connection: what a listener recorded is refused in the handshake."""
    recorded: list[bytes] = []
    port = int(keyed.server.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay() -> None:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=copy, args=(server, client, None), daemon=True).start()
            copy(client, server, recorded)

        threading.Thread(target=relay, daemon=True).start()
        peer = Peer(f"tcp://127.0.0.1:{listener.getsockname()[1]}", "w-good", keyed.worker_key)
        peer.register()
        lease = peer.receive(Lease)
        assert peer.finish(lease).accepted
        messages_before = keyed.server.counters["messages"]
        again = keyed.raw(b"".join(recorded))
        while again.recv(4096):
            pass
        until(lambda: refused(caplog, "did not finish its handshake", again.getsockname()[1]), "its line in the log")
        assert keyed.server.counters["messages"] == messages_before
        peer.close()


def copy(source: socket.socket, sink: socket.socket, kept: list[bytes] | None) -> None:
    """Forward until the source ends; keep what was forwarded."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if kept is not None:
                kept.append(data)
            sink.sendall(data)
