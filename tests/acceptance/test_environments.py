"""Runs in unusual environments: another user, a terminal that hangs up, IPv6 alone, private TLS, read-only data, no memory."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from ingest.emulator.process import Emulator
from ingest.errors import SourceError, UsageError
from ingest.http import get, make_session
from tests.support.memory_cgroup import memory_cgroup
from tests.support.namespaces import USER, as_other_user, missing, with_ipv6_alone, with_read_only
from tests.support.program import MONTH, ROOT, Run, command, environment, run_here
from tests.support.waiting import until

START = ("start", "--extract", "--workers", "1")
LONG = ("--respondents", "PACW,ERCO", "--start", "2019", "--end", "2025")  # 28 shards: seconds of work
needs_namespaces = pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces can be made")


def run(arguments: list[str], folder: Path, **env: str) -> Run:
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a run of MONTH."""
    folder = tmp_path_factory.mktemp("month")
    done = run_here(folder, *START, "--quiet", *MONTH)
    assert done.code == 0, done.stderr
    return folder / "data"


# -- another user --------------------------------------------------------------------------------------------------------


@pytest.fixture
def user_folder() -> Iterator[Path]:
    """A folder of `USER`, where that user can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="ringattn-user-"))
    os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


def own(folder: Path, user: int = USER) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@needs_namespaces
def test_user_without_home_needs_one_for_keys_alone(user_folder: Path) -> None:
    """A container's user id without an entry in /etc/passwd: `Could not determine home directory`, a traceback, before."""
    nobody = environment()
    nobody.pop("HOME", None)
    for words, code, text in (
        (("config", "show"), 0, "~/.ring-attention-energy/keys"),
        (("keys", "add", "m2-1"), 2, "this user has no home folder. Set HOME, or name a folder with --keys"),
    ):
        arguments = as_other_user(command(*words))
        done = subprocess.run(arguments, cwd=user_folder, env=nobody, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert text in done.stdout + done.stderr
    assert not list(user_folder.iterdir())  # no folder named ~


@pytest.mark.long
@needs_namespaces
def test_other_user_runs_everything_where_the_program_is_read_only(user_folder: Path) -> None:
    def do(*words: str) -> Run:
        return run(as_other_user(command(*words)), user_folder, HOME=str(user_folder))

    assert run(as_other_user(["test", "-w", str(ROOT)]), user_folder).code == 1
    before = set(ROOT.iterdir())
    done = do(*START, "--json", *MONTH)
    assert done.code == 0 and done.result["proved"] == 2, done.stderr
    for words in (
        ("verify",),
        ("status",),
        ("report",),
        ("keys", "add", "m2-1"),
        ("start", "--extract", "--dry-run", *MONTH),
    ):
        done = do(*words)
        assert done.code == 0, f"{words}: {done.stderr}"
    doctor = do("doctor", "--json")
    assert "Traceback" not in doctor.stderr and len(doctor.result["findings"]) > 5
    assert {path.stat().st_uid for path in user_folder.rglob("*")} == {USER}
    assert set(ROOT.iterdir()) == before


# -- a terminal that hangs up ----------------------------------------------------------------------------------------------


@contextmanager
def in_terminal(arguments: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command as the foreground process of a terminal of its own; yield the process and the terminal's other end."""
    outer, inner = os.openpty()

    def control() -> None:
        os.setsid()
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        preexec_fn=control,
        close_fds=True,
    )
    os.close(inner)
    try:
        yield process, outer
    finally:
        process.kill()
        process.wait()


def read_all(outer: int, stop: threading.Event) -> None:
    os.set_blocking(outer, False)
    while not stop.wait(0.02):
        try:
            os.read(outer, 1 << 16)
        except OSError:
            continue


@pytest.mark.long
@pytest.mark.parametrize("how", ["hang-up", "ctrl-c", "nohup"])
def test_end_of_a_terminal_drains_a_run_and_nohup_ignores_it(tmp_path: Path, how: str) -> None:
    """With the bundled emulator, which a Ctrl-C of the terminal ended too, so that no running task could finish."""
    arguments = command(*START, *LONG)
    with in_terminal(["nohup", *arguments] if how == "nohup" else arguments, tmp_path) as (process, outer):
        stop = threading.Event()
        reader = threading.Thread(target=read_all, args=(outer, stop))
        reader.start()
        until(lambda: list((tmp_path / "data" / "raw").rglob("*.gz")), "the first page")
        if how == "ctrl-c":
            os.write(outer, b"\x03")
            process.wait(240)
        stop.set()
        reader.join()
        os.close(outer)  # the kernel sends SIGHUP to the session
        assert process.wait(240) == (0 if how == "nohup" else 130)
    assert not (tmp_path / "data" / ".endpoint").exists()
    report = run_here(tmp_path, "verify", "--json").result
    assert report["whole"] and report["shards"] > 0
    assert (report["shards"] == 28) == (how == "nohup")


@pytest.mark.long
def test_many_sighups_drain_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command(*START, *LONG), cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        until(lambda: list((tmp_path / "data" / "raw").rglob("*.gz")), "the first page")
        for _ in range(5):
            process.send_signal(signal.SIGHUP)
        assert process.wait(240) == 130
    assert (tmp_path / "log").read_text().count("Stopping after the running tasks") == 1
    assert run_here(tmp_path, "verify", "--json").result["shards"] > 0


# -- IPv6 alone ------------------------------------------------------------------------------------------------------------


@needs_namespaces
def test_default_run_works_on_ipv6_alone(tmp_path: Path) -> None:
    done = run(with_ipv6_alone(command(*START, "--json", *MONTH)), tmp_path)
    assert done.code == 0 and done.result["proved"] == 2, done.stderr


@pytest.mark.long
@needs_namespaces
@pytest.mark.parametrize("bind", ["tcp://[::1]:0", "tcp://[::]:0"])  # the second: off loopback, with keys and the proxy
def test_bind_and_status_on_ipv6_alone(tmp_path: Path, bind: str) -> None:
    """`status` said that no coordinator is running; the proxy could not bind 127.0.0.1."""
    words = [*START, "--bind", bind, "--keys", str(tmp_path / "keys"), "--json", *LONG]
    script = (
        '"$@" >out 2>err & run=$!; while [ ! -s data/.endpoint ]; do kill -0 $run || break; sleep 0.05; done; '
        f'"$1" "$2" "$3" status --json --keys {tmp_path}/keys; wait $run'
    )
    done = run(with_ipv6_alone(["sh", "-c", script, "sh", *command(*words)]), tmp_path)
    assert done.code == 0, (tmp_path / "err").read_text()
    assert json.loads(done.stdout)["running"] is True
    assert json.loads((tmp_path / "out").read_text())["proved"] == 28


@pytest.mark.long
@needs_namespaces
def test_address_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run(with_ipv6_alone(command(*START, "--bind", "tcp://127.0.0.1:5555", *MONTH)), tmp_path)
    assert done.code == 2 and "Traceback" not in done.stderr
    assert "this host cannot listen there" in done.stderr and "e.g. tcp://[::1]:5555;" in done.stderr


# -- a certificate that no authority signed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate of 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=test"
    arguments = ["openssl", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def server(certificate: Path) -> Iterator[str]:
    """An HTTPS server with that certificate, which answers everything with 200."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def fetch(url: str) -> bytes:
    with closing(make_session(1)) as session:
        return get(session, url, {}, deadline_s=30.0, check=lambda transfer: None).body


@pytest.mark.parametrize("update", [(), ("--update",)])
def test_certificate_that_is_not_trusted_is_one_error_before_any_lease(
    tmp_path: Path, server: str, update: tuple[str, ...]
) -> None:
    """Before: 25 s of retries, then every shard quarantined by "connection lost or refused (SSLError)"."""
    done = run_here(tmp_path, *START, *update, "--source", server, *MONTH, REQUESTS_CA_BUNDLE="", CURL_CA_BUNDLE="")
    assert done.code == 75 and not (tmp_path / "data" / "raw").exists()
    assert "the certificate of 127.0.0.1 is not trusted: self-signed certificate" in done.stderr
    assert "REQUESTS_CA_BUNDLE=FILE" in done.stderr


def test_worker_names_the_certificate_and_takes_a_bundle(
    server: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that inspects TLS, where the coordinator has not tried the certificate before."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match=r"certificate of 127\.0\.0\.1 is not trusted.*REQUESTS_CA_BUNDLE") as caught:
        fetch(server)
    assert caught.value.kind == "certificate"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
    assert fetch(server) == b"{}"


@pytest.mark.parametrize("bundle", ["missing.pem", "key.pem"])
def test_bundle_that_cannot_be_used_is_a_mistake_of_the_user(
    tmp_path: Path, server: str, certificate: Path, bundle: str
) -> None:
    path = str(certificate / bundle)
    done = run_here(tmp_path, *START, "--source", server, *MONTH, REQUESTS_CA_BUNDLE=path)
    assert done.code == UsageError.exit_code
    assert f"REQUESTS_CA_BUNDLE names {path}" in done.stderr and "`unset REQUESTS_CA_BUNDLE`" in done.stderr


@pytest.mark.long
def test_run_over_tls_with_a_bundle(tmp_path: Path, certificate: Path) -> None:
    with Emulator() as emulator:
        relay = Path(__file__).parents[1] / "support" / "tls_relay.py"
        words = ["python", relay, certificate, emulator.url.rpartition(":")[2]]
        process = subprocess.Popen([command()[0], *map(str, words[1:])], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = f"https://127.0.0.1:{process.stdout.readline().strip()}"
            bundle = str(certificate / "cert.pem")
            done = run(command(*START, "--json", "--source", url, *MONTH), tmp_path, REQUESTS_CA_BUNDLE=bundle)
        finally:
            process.kill()
            process.wait()
    assert done.code == 0 and done.result["proved"] == 2, done.stderr


# -- folders and files that cannot be written ---------------------------------------------------------------------------------

MORE = (
    "--respondents",
    "PACW",
    "--start",
    "2024-03",
    "--end",
    "2024-04",
)  # new shards, and the series of the year again
# Command → exit code and text of a folder that cannot be written.
ON_READ_ONLY = (
    ((*START, *MORE), 75, "can't write data/.lock: {reason}; make the folder writable or choose another with --data"),
    (("start", "--train"), 75, "can't write data/.lock: {reason}"),
    (("report",), 75, "can't write data/report.html: {reason}; name another file with --out"),
    (("report", "--out", "elsewhere.html"), 0, "elsewhere.html"),
    (("verify",), 0, "verdict    whole"),
    (("status",), 0, "2 shards and 1 series are verified"),
    ((*START, "--dry-run", *MORE), 0, "2 shards to fetch"),
)


@pytest.mark.long
@needs_namespaces
@pytest.mark.parametrize("reason", ["Read-only file system", "Permission denied"])
def test_read_only_folder_is_read_and_never_changed(month: Path, user_folder: Path, reason: str) -> None:
    data = user_folder / "data"
    shutil.copytree(month, data)
    before = contents(data)
    for words, code, text in ON_READ_ONLY:
        program = command(*words)
        wrapped = with_read_only(data, program) if reason.startswith("Read-only") else as_other_user(program)
        done = run(wrapped, user_folder, HOME=str(user_folder))
        said = done.stdout + done.stderr
        assert (done.code, "Traceback" in said) == (code, False), said
        assert text.format(reason=reason) in said
        assert code == 0 or sum(line.startswith("coordinator: ") for line in done.stderr.splitlines()) == 1
        assert contents(data) == before


@pytest.mark.long
@needs_namespaces
@pytest.mark.parametrize(
    "item",
    [".", ".lock", "journal.sqlite", "manifests/eia/region-data/PACW", "raw/eia/region-data/PACW", "pieces", "series/PACW/2024",
     "logs/worker-0.log"],
)  # fmt: skip
def test_one_item_that_cannot_be_written_is_named_and_nothing_is_lost(
    month: Path, user_folder: Path, item: str
) -> None:
    data = user_folder / "data"
    shutil.copytree(month, data)
    own(data)
    os.chown(data / item, 0, 0)
    done = run(as_other_user(command(*START, *MORE)), user_folder, HOME=str(user_folder))
    assert done.code == 75 and "Traceback" not in done.stderr, done.stderr
    assert f"data/{item}".removesuffix("/.") in done.stderr.splitlines()[-1]
    report = json.loads(run(as_other_user(command("verify", "--json")), user_folder, HOME=str(user_folder)).stdout)
    # The series of a year whose new pieces are there is built by the next run, and nothing else is amiss.
    assert {mismatch["kind"] for mismatch in report["mismatches"]} <= {"stale"} and report["shards"] >= 2
    own(data)
    resumed = run(as_other_user(command(*START, "--json", *MORE)), user_folder, HOME=str(user_folder))
    assert resumed.code == 0 and resumed.result["proved"] == resumed.result["shards"] == 4, resumed.stderr


# -- a process that the system kills for lack of memory -------------------------------------------------------------------------


def kill_by_cgroup(pid: int) -> None:
    with memory_cgroup() as cgroup:
        if isinstance(cgroup, str):
            pytest.skip(cgroup)
        process = psutil.Process(pid)
        cgroup.add(pid)
        until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the kill")
        assert cgroup.kills > 0


def kill_by_signal(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill_by_cgroup, kill_by_signal])
@pytest.mark.parametrize("retries", [1, 5])
def test_worker_that_is_killed_for_memory_costs_its_leases_one_failure(
    tmp_path: Path, kill: Callable[[int], None], retries: int
) -> None:
    shards = ("--respondents", "PACW,ERCO", "--start", "2023", "--end", "2024")  # 8, of which a worker holds 4 at once
    with (
        Emulator("--latency-ms", "100") as emulator,
        (tmp_path / "err").open("w") as err,
        (tmp_path / "out").open("w") as out,
    ):
        words = (*START, "--json", "--retries", str(retries), "--source", emulator.url, *shards)
        process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), stdout=out, stderr=err)
        try:
            until(lambda: len(emulator.requests()) > 4, "requests of the worker")
            children = psutil.Process(process.pid).children()
            (worker,) = [child for child in children if "worker" in child.cmdline()]
            kill(worker.pid)
            assert process.wait(240) == (0 if retries > 1 else 75)
        finally:
            process.kill()
            process.wait()
    summary, said = json.loads((tmp_path / "out").read_text()), (tmp_path / "err").read_text()
    assert "ended with signal 9 (killed; by the system if memory ran out: see `dmesg`): restarted" in said
    assert summary["worker_restarts"] == 1
    lost = summary["quarantined"]
    assert summary["proved"] == 8 - len(lost)
    if retries > 1:
        assert not lost
    else:
        assert 1 <= len(lost) <= 4
        assert all("signal 9" in message for _, _, message in lost)
