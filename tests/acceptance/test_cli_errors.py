"""Check that each of a user's mistakes gets one message with its subject, its cause and the next command, the right exit code, and no traceback.

`MISTAKES` is the table. A command that starts work before it fails runs as a process, a few at a time. A command that is refused before
that runs in this process, through the same `run` as the program. Each has a separate folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from coordinator.cli.app import app
from coordinator.cli.errors import run
from coordinator.server import key_store
from coordinator.server.folder_lock import FolderLock
from ingest import manifest
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.program import MONTH, environment, run_here
from tests.support.report_data import controlled
from tests.support.training_data import TRAIN
from worker.forecast.model.checkpoint import Checkpoint, save

AT_ONCE = 3  # processes
DONE, FAILED, USAGE, AUTHENTICATION, INCOMPLETE = 0, 1, 2, 4, 75
EXTRACT = "coordinator start --extract"


@dataclass
class Place:
    """Where a mistake is prepared: a working folder, environment variables, and resources kept open until the command has ended."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    open: ExitStack = field(default_factory=ExitStack)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


# -- preparations ----------------------------------------------------------------------------------------------------------


def nothing(place: Place) -> None:
    pass


def file(name: str, text: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.write(name, text)


def variable(name: str, value: str) -> Callable[[Place], object]:
    return lambda place: place.env.update({name: value})


def series(place: Place) -> None:
    """One respondent and one month, verified and built."""
    one = shard("PACW", "2024-01-01T00", "2024-01-31T23")
    commit(place.data, one, {"D": 3000.0, "DF": 3100.0})
    build_all(place.data)


def damaged_series(place: Place) -> None:
    series(place)
    path = next(place.data.rglob("long.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def damaged_manifest(place: Place) -> None:
    series(place)
    next((place.data / "manifests" / "eia").rglob("*.json")).write_text("{")


def torn_build(place: Place) -> None:
    series(place)
    path = place.data / "manifests" / "build" / "PACW" / "2024.json"
    path.write_bytes(path.read_bytes()[:100])


def of_format(number: int) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        series(place)
        for path in (place.data / "manifests").rglob("*.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))

    return prepare


def damaged_control(place: Place) -> None:
    series(place)
    controlled(place.data)
    (place.data / "control" / "result.json").write_text('{"test_pop": ')


def checkpoint(state: str) -> Callable[[Place], None]:
    """A finished training whose checkpoint has this state."""

    def prepare(place: Place) -> None:
        series(place)
        place.write("data/train/result.json", json.dumps({"checkpoint": "checkpoints/000010"}))
        place.write("data/train/checkpoints/000010/state.json", state)
        for name in ("weights", "average", "optimizer"):
            place.write(f"data/train/checkpoints/000010/{name}.safetensors", b"not what was written")

    return prepare


def another_run(place: Place) -> None:
    """Three years to train on, and a checkpoint of a training with other settings."""
    for year in (2021, 2022, 2023):
        one = shard("PACW", f"{year}-01-01T00", f"{year}-12-31T23")
        commit(place.data, one, {"D": daily(one.hours), "DF": daily(one.hours, 3100.0)})
    build_all(place.data)
    state = {"step": 10, "model": {}, "respondents": ["ERCO"], "config": {}, "features": []}
    save(place.data / "train" / "checkpoints", Checkpoint({"w": mx.zeros(1)}, {"w": mx.zeros(1)}, {}, state))


def second_coordinator(place: Place) -> None:
    place.open.enter_context(FolderLock(place.data))


def taken_port(place: Place) -> None:
    taken = place.open.enter_context(socket.create_server(("127.0.0.1", 0)))
    place.env["COORDINATOR_BIND"] = f"tcp://127.0.0.1:{taken.getsockname()[1]}"


def down_host(place: Place) -> None:
    """A host with this machine's address, where every ssh login fails: its user accepts no key."""
    addresses = [a.address for own in psutil.net_if_addrs().values() for a in own if a.family == socket.AF_INET]
    outward = [address for address in addresses if not address.startswith("127.")]
    if not outward or shutil.which("ssh") is None:
        pytest.skip("needs an ssh client, and an address off loopback")
    place.write("hosts.json", json.dumps({"hosts": [{"ssh": "nobody@127.0.0.1", "ips": outward[:1]}]}))


def mounted(options: str) -> Callable[[Place], object]:
    """Mount `data` in the namespace of the command, so that its limits hold for root too."""

    def prepare(place: Place) -> None:
        if os.geteuid() != 0 or sys.platform != "linux" or shutil.which("unshare") is None:
            pytest.skip("a private mount needs root on Linux, and unshare")
        place.data.mkdir()
        place.env["MOUNT"] = options

    return prepare


def key_file(mode: int) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        key_store.add_worker(place.folder / "keys", "m2-1").chmod(mode)

    return prepare


def revoked_key(place: Place) -> None:
    key_store.add_worker(place.folder / "keys", "m2-1")
    key_store.revoke_worker(place.folder / "keys", "m2-1")


# -- the table ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """The one message must contain `words`: subject, cause, next command.

    `in_result`: the command has a result, which contains them. `process`: the command starts work before it fails.
    """

    did: str
    command: str
    code: int
    words: tuple[str, ...]
    prepare: Callable[[Place], object] = nothing
    in_result: bool = False
    process: bool = False


MISTAKES = (
    # -- the command line
    Mistake("misspelt a command", "coordinator verfy", USAGE, ("'verfy'", "'verify'", "`coordinator --help`"), process=True),
    Mistake("misspelt an option", "coordinator start --extrakt", USAGE, ("--extrakt", "--extract", "`coordinator start --help`")),
    Mistake("forgot a value", "coordinator start --extract --start", USAGE, ("--start", "argument", "`coordinator start --help`")),
    Mistake("named no stage", "coordinator start", USAGE, ("start:", "no stage", "`coordinator start --extract --train --rollouts`")),
    Mistake("asked to rebuild without extracting", "coordinator start --train --rebuild", USAGE, ("--rebuild", "extraction", f"`{EXTRACT} --rebuild`")),
    # -- what to fetch
    Mistake("misspelt a region", f"{EXTRACT} --respondents PACX", USAGE, ("'PACX'", "did you mean PACW", "`coordinator catalog`")),
    Mistake("wrote the day first", f"{EXTRACT} --start 31-12-2024", USAGE, ("start = '31-12-2024'", "YYYY-MM-DD", "Give --start")),
    Mistake("named a year before any source", f"{EXTRACT} --start 1900", USAGE, ("start = '1900'", "the year 1900 is not between 2000 and 2100", "Give --start")),
    Mistake("named a day that is not", f"{EXTRACT} --start 2024-02-30", USAGE, ("2024-02-30", "day is out of range", "Give --start")),
    Mistake("swapped start and end", f"{EXTRACT} --start 2025 --end 2024", USAGE, ("2025-01-01T00 to 2024-12-31T23", "ends before it starts", "swap")),
    Mistake("misspelt the source", f"{EXTRACT} --source eai", USAGE, ("'eai'", "unknown", "eia, bulk, oasis")),
    Mistake("asked bulk files for a region", f"{EXTRACT} --source bulk --respondents CAL", USAGE, ("CAL", "balancing authorities only", "CISO")),
    Mistake("set no API key", f"{EXTRACT} --source eia", AUTHENTICATION, ("EIA_API_KEY", "not set", "--source bulk"), variable("EIA_API_KEY", "")),
    Mistake("copied a key with a blank", f"{EXTRACT} --source eia", AUTHENTICATION, ("EIA_API_KEY", "blank", "export"), variable("EIA_API_KEY", "half of it half of it")),
    Mistake("named a source that is down", f"{EXTRACT} --source http://127.0.0.1:1", INCOMPLETE, ("http://127.0.0.1:1", "refused", "--source synthetic")),
    # -- settings
    Mistake("set a variable to nonsense", "coordinator verify", USAGE, ("rate = 'fast'", "COORDINATOR_RATE", "`unset COORDINATOR_RATE`"), variable("COORDINATOR_RATE", "fast")),
    Mistake("misspelt a key of cluster.toml", "coordinator config show", USAGE, ("cluster.toml", "'respondent'", "did you mean 'respondents'"), file("cluster.toml", 'respondent = "PACW"\n')),
    Mistake("wrote no TOML into cluster.toml", "coordinator config show", USAGE, ("cluster.toml", "not TOML", "Correct the file"), file("cluster.toml", "data = \n")),
    Mistake("wrote no TOML into the training's settings", "coordinator start --train --train-config t.toml", USAGE, ("train-config t.toml", "not TOML", "--train-config"), file("t.toml", "dim = \n")),
    Mistake("wrote no TOML into control's settings", "coordinator start --rollouts --control-config c.toml", USAGE, ("control-config c.toml", "not TOML", "--control-config"), file("c.toml", "[pathwise\n")),
    Mistake("misspelt a setting of the training", "coordinator start --train --train-config t.toml", USAGE, ("train-config t.toml", "unknown setting 'stepz'", "did you mean 'steps'"), file("t.toml", "stepz = 1\n")),
    Mistake("gave the training a word for a number", "coordinator start --extract --train --end 2019 --train-config t.toml", USAGE, ("train-config t.toml", "steps = 'a'", "`python -m worker.train --help`"), file("t.toml", 'steps = "a"\n')),
    Mistake("misspelt a setting of control", "coordinator start --extract --rollouts --end 2019 --control-config c.toml", USAGE, ("control-config c.toml", "unknown setting 'evry'", "did you mean 'every'"), file("c.toml", "evry = 1\n")),
    Mistake("named settings that are not there", "coordinator start --train --train-config t.toml", USAGE, ("train-config t.toml", "no such file", "start without --train-config")),
    # -- the data folder
    Mistake("named a file as the folder", f"{EXTRACT} --data notes.txt", USAGE, ("notes.txt", "is a file", "--data"), file("notes.txt", "mine")),
    Mistake("named a folder in a place that is no disk", f"{EXTRACT} --data /proc/energy", INCOMPLETE, ("/proc/energy", "can't write", "--data")),
    Mistake("named a read-only folder", EXTRACT, INCOMPLETE, ("data", "Read-only file system", "--data"), mounted("ro"), process=True),
    Mistake("has no room on the disk", EXTRACT, INCOMPLETE, ("data/journal.sqlite", "0.0 MB are free", "same command"), mounted("size=16k"), process=True),
    Mistake("started a second coordinator", EXTRACT, USAGE, ("data is in use", "pid", "`coordinator status`"), second_coordinator, process=True),
    Mistake("kept a folder of an older version", "coordinator verify", USAGE, ("data", "format 0", "`mv data data.old`"), of_format(0)),
    Mistake("kept a folder of a later version", EXTRACT, USAGE, ("data", "format 9", "`mv data data.old`"), of_format(9)),
    Mistake("damaged a manifest", EXTRACT, FAILED, ("g000.json", "not a readable manifest", f"`{EXTRACT}`"), damaged_manifest),
    Mistake("has a series with a torn manifest", f"{EXTRACT} --source eia --dry-run --respondents ERCO", DONE, ("shards to fetch", "0 already", "2025"), torn_build, in_result=True),
    Mistake("reported on a torn manifest", "coordinator report", FAILED, ("2024.json", "not a readable manifest", f"`{EXTRACT}`"), torn_build, in_result=True),
    Mistake("damaged a series", "coordinator verify", FAILED, ("long.parquet", "sha256", f"`{EXTRACT} --data data`"), damaged_series, in_result=True),
    # -- too early, or for something else
    Mistake("trained before extracting", "coordinator start --train", USAGE, ("data", "no series", f"`{EXTRACT} --data data`")),
    Mistake("played before extracting", "coordinator start --rollouts", USAGE, ("data", "no series", f"`{EXTRACT} --data data`")),
    Mistake("verified nothing", "coordinator verify", USAGE, ("data", "no manifest", f"`{EXTRACT} --data data`")),
    Mistake("asked for the status of nothing", "coordinator status", USAGE, ("data", "no run", f"`{EXTRACT} --data data`")),
    Mistake("reported on nothing", "coordinator report", USAGE, ("data", "no folder", f"`{EXTRACT} --data data`")),
    Mistake("exported nothing", "coordinator export --out hours.csv", USAGE, ("there is no folder data", f"`{EXTRACT} --data data`", "--data")),
    Mistake("balanced nothing", "coordinator balance", USAGE, ("there is no folder data", f"`{EXTRACT} --data data`", "--data")),
    Mistake("imputed nothing", "coordinator impute", USAGE, ("there is no folder data", f"`{EXTRACT} --data data`", "--data")),
    Mistake("wrote the report where nothing can be", "coordinator report --out /proc/report.html", INCOMPLETE, ("/proc/report.html", "can't write", "another file with --out"), series),
    Mistake("damaged control's result", "coordinator report", FAILED, ("control/result.json", "can't be read", "`coordinator start --rollouts --data data`"), damaged_control, in_result=True),
    Mistake("forecast before training", "coordinator forecast --region PACW --issue 2024-01-10T10", USAGE, ("data/train", "no finished training", "`coordinator start --train --data data`"), series),
    Mistake("forecast at no issue time", "coordinator forecast --region PACW --issue 2024-01-10", USAGE, ("2024-01-10", "YYYY-MM-DDTHH", "local time")),
    Mistake("forecast half a question", "coordinator forecast --region PACW", USAGE, ("--region and --issue", "--table", "--help")),
    Mistake("judged a file that is not there", "coordinator judge theirs.csv", USAGE, ("theirs.csv", "no such file", "CSV or .parquet", "`coordinator judge --help`")),
    Mistake("backtested a month that is not there", "coordinator backtest --from 2024-02 --to 2024-03", USAGE, ("--from 2024-02", "in 2024-01 alone", "extract more"), series),
    Mistake("backtested an unknown model", "coordinator backtest --from 2024-02 --to 2024-03 --model oracle", USAGE, ("--model", "'oracle'", "linear", "network")),
    Mistake("damaged a checkpoint", "coordinator forecast --region PACW --issue 2024-01-10T10", USAGE, ("weights.safetensors", "damaged", "`coordinator start --train`"), checkpoint('{"format": 1, "sha256": {"weights": "0"}}')),
    Mistake("named a checkpoint of another version", "coordinator forecast --region PACW --issue 2024-01-10T10", USAGE, ("000010", "format 9", "coordinator start --train --run NEW"), checkpoint('{"format": 9}')),
    Mistake("went on with another run's checkpoint", "worker/train.py --data data", USAGE, ("data/train/checkpoints", "a run with another model, respondents", "new folder with --run"), another_run, process=True),
    Mistake("watched at half an address", "coordinator watch --http 8787", USAGE, ("http '8787'", "HOST:PORT", "--http 127.0.0.1:8787")),
    Mistake("watched at half an address with a run", f"{EXTRACT} --http 127.0.0.1", USAGE, ("http '127.0.0.1'", "HOST:PORT", "--http 127.0.0.1:8787")),
    Mistake("left the page's address empty", f"{EXTRACT} --http=", USAGE, ("--http has an empty value", "leave --http out", "`coordinator start --help`")),
    Mistake("named an engine by an unset variable", f"{EXTRACT} --engine ''", USAGE, ("--engine has an empty value", "leave --engine out", "`coordinator start --help`")),
    Mistake("named the folder by an unset variable", "coordinator verify --data ''", USAGE, ("--data has an empty value", "leave --data out", "`coordinator verify --help`")),
    Mistake("named an engine by its file", f"{EXTRACT} --engine ./my.py:threads", USAGE, ("'./my.py:threads'", "write my:threads", "--engine")),
    Mistake("followed with something unknown", "coordinator follow --then dance", USAGE, ("--then 'dance'", "unknown", "`--then forecast`")),
    Mistake("followed with forecasts before training", "coordinator follow --then forecast", USAGE, ("data/train", "no finished training", "`coordinator start --train --data data`")),
    Mistake("followed two sources at once", "coordinator follow --source auto", USAGE, ("--source auto", f"`{EXTRACT}`", "Name one of them")),
    # -- hosts, workers, keys
    Mistake("named no hostfile", f"{EXTRACT} --hostfile hosts.json", USAGE, ("hostfile hosts.json", "No such file", "hostfiles/README.md")),
    Mistake("wrote no JSON into the hostfile", f"{EXTRACT} --hostfile hosts.json", USAGE, ("hostfile hosts.json", "no JSON from line 1, column 1 on", "`coordinator doctor --hostfile hosts.json`", "hostfiles/README.md"), file("hosts.json", "m2-1, m2-2")),
    Mistake("copied half a hostfile", f"{EXTRACT} --hostfile hosts.json", USAGE, ("hostfile hosts.json", "ends too early", "line 2", "`coordinator doctor --hostfile hosts.json`"), file("hosts.json", '{"hosts": [\n{"ssh": "m2-1", "ips": ["10.0.0.1"]},')),
    Mistake("asked for RDMA", "coordinator doctor --hostfile hosts.json", USAGE, ("hostfile hosts.json", '"backend": "jaccl"', "no deadline", 'Write "ring"'), file("hosts.json", '{"backend": "jaccl", "hosts": [{"ssh": "m5-0", "ips": ["10.0.0.1"], "rdma": [null]}]}')),
    Mistake("listed a .local name for the ring", f"{EXTRACT} --hostfile hosts.json", USAGE, ("hostfile hosts.json", "m2-0.local", "IPv4", "`ipconfig getifaddr en0`"), file("hosts.json", '[{"ssh": "m2-0", "ips": ["m2-0.local"]}]')),
    Mistake("started with a host that is down", f"{EXTRACT} --hostfile hosts.json --keys keys", USAGE, ("nobody@127.0.0.1", "can't be used", "Connection refused", "ssh there"), down_host),
    Mistake("bound a port that is taken", EXTRACT, USAGE, ("bind tcp://127.0.0.1:", "in use", "--bind"), taken_port),
    Mistake("bound half an address", f"{EXTRACT} --dry-run --bind 127.0.0.1", USAGE, ("'127.0.0.1'", "not tcp://HOST:PORT", "--bind tcp://127.0.0.1:5555")),
    Mistake("bound another host's address", f"{EXTRACT} --bind tcp://192.0.2.1:0", USAGE, ("bind tcp://192.0.2.1:0", "this host cannot listen there", "--bind an address of this host")),
    Mistake("gave a key where none is used", "worker --coordinator tcp://127.0.0.1:1 --patience 0.3 --key keys/workers/m2-1.key", INCOMPLETE, ("tcp://127.0.0.1:1", "uses no keys", "without --key"), key_file(0o600), process=True),
    Mistake("named a worker with a blank", "coordinator keys add 'm2 1' --keys keys", USAGE, ("'m2 1'", "malformed", "`coordinator keys add")),
    Mistake("revoked who has no key", "coordinator keys revoke m2-9 --keys keys", USAGE, ("'m2-9'", "known: m2-1", "`coordinator keys list --keys keys`"), key_file(0o600)),
    Mistake("left a key for all to read", "worker --coordinator tcp://127.0.0.1:1 --key keys/workers/m2-1.key", USAGE, ("keys/workers/m2-1.key", "readable by others", "`chmod 600"), key_file(0o644), process=True),
    Mistake("used a key that was revoked", "worker --coordinator tcp://127.0.0.1:1 --key keys/workers/m2-1.key", USAGE, ("keys/workers/m2-1.key", "no key file", "`coordinator keys add NAME --keys keys`"), revoked_key, process=True),
    Mistake("started a worker without tcp://", "worker --coordinator 127.0.0.1:5555", USAGE, ("127.0.0.1:5555", "tcp://HOST:PORT", "--help"), process=True),
    Mistake("gave a worker a .local name for the ring", "worker --coordinator tcp://127.0.0.1:1 --address m2.local", USAGE, ("--address", "m2.local", "IPv4", "`ipconfig getifaddr en0`"), process=True),
    Mistake("started a worker where nobody listens", "worker --coordinator tcp://127.0.0.1:1 --patience 0.3", INCOMPLETE, ("tcp://127.0.0.1:1", "no coordinator answers", "`coordinator start`"), process=True),
)  # fmt: skip


# -- running it --------------------------------------------------------------------------------------------------------------

PROGRAMS = {"coordinator": ("-m", "coordinator"), "worker": ("-m", "worker"), "worker/train.py": (TRAIN,)}
MOUNTED = 'mount -t tmpfs -o "$MOUNT" tmpfs data && exec "$@"'


def process(mistake: Mistake, folder: Path) -> Done:
    """Run the command as a process and wait for its end."""
    place = Place(folder)
    with place.open:
        mistake.prepare(place)
        program, *words = shlex.split(mistake.command)
        command = [sys.executable, *PROGRAMS[program], *words]
        if "MOUNT" in place.env:
            command = ["unshare", "-m", "sh", "-c", MOUNTED, "sh", *command]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(HOME=str(folder), **place.env),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout, done.stderr


Done = tuple[int, str, str]  # exit code, stdout, stderr
Here = Callable[[Mistake], Done]
Runs = dict[str, Future[Done]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process."""

    def done(mistake: Mistake) -> Done:
        place = Place(tmp_path)
        mistake.prepare(place)
        monkeypatch.chdir(tmp_path)
        for name, value in environment(HOME=str(tmp_path), **place.env).items():
            monkeypatch.setenv(name, value)
        for name in set(os.environ) - set(environment(**place.env)) - {"HOME"}:
            monkeypatch.delenv(name)
        capfd.readouterr()
        with place.open:
            code = run(app, shlex.split(mistake.command)[1:])
        return code, *capfd.readouterr()

    return done


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Start the processes of the selected tests. Returns the mistake's `did` → its future."""
    items = [getattr(item, "callspec", None) for item in request.session.items]
    asked = [one.params["mistake"] for one in items if one is not None and "mistake" in one.params]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {one.did: pool.submit(process, one, tmp_path_factory.mktemp("mistake")) for one in asked if one.process}


PROCESSES_LAST = sorted(MISTAKES, key=lambda mistake: mistake.process)


@pytest.mark.parametrize("mistake", PROCESSES_LAST, ids=lambda one: one.did)
def test_mistake_is_named_with_its_next_command(mistake: Mistake, runs: Runs, here: Here) -> None:
    code, out, err = runs[mistake.did].result() if mistake.process else here(mistake)
    said = f"{mistake.command}\nexit code {code}\nstdout: {out}\nstderr: {err}"
    assert code == mistake.code, said
    assert "Traceback" not in out + err, said
    missing = [word for word in mistake.words if word not in (out if mistake.in_result else err)]
    assert not missing, f"{missing} not in:\n{said}"
    if not mistake.in_result:
        assert not out, said


def test_table_of_mistakes_is_complete_and_unique() -> None:
    assert len(MISTAKES) >= 25
    assert len({mistake.did for mistake in MISTAKES}) == len(MISTAKES)
    assert all(len(mistake.words) >= 3 for mistake in MISTAKES)


PATH_IN_COMMAND = re.compile(
    r"(?:--(?:data|run|keys|hostfile|table) |\bmv |\brm (?:-r )?|chmod \d+ |mkdir -p )\{(?!quoted|shlex|' '.join\(map\(quoted)"
)


def test_commands_in_messages_quote_their_paths() -> None:
    """Any of them could hold a blank. `quoted` is for commands of this host's shell, `quote_remote_path` for others'."""
    root = Path(__file__).resolve().parents[2]
    sources = [
        path for top in ("coordinator", "ingest", "worker", "rl", "scripts") for path in (root / top).rglob("*.py")
    ]
    # Joined: a literal that ends in `--data ` may go on in the next line.
    texts = [(path.name, re.sub(r'"\n +f?"', "", path.read_text())) for path in sources]
    lines = [(name, line) for name, text in texts for line in text.splitlines()]
    assert [one for one in lines if PATH_IN_COMMAND.search(one[1])] == []
    assert sum("quoted(" in line for _, line in lines) > 30


def test_command_that_a_message_advises_runs_in_a_folder_with_spaces(tmp_path: Path) -> None:
    for words in (("verify",), ("report",), ("export", "--out", "x.csv"), ("status",), ("start", "--train")):
        told = " ".join(run_here(tmp_path, *words, "--data", "my data").stderr.split())
        advised = next(part for part in told.split("`")[1::2] if part.startswith(EXTRACT))
        assert shlex.split(advised)[3:5] == ["--data", "my data"], told


def test_data_folder_with_spaces_works(tmp_path: Path) -> None:
    """The name passes through workers' command lines, the journal, the manifests and the verification from disk."""
    data = tmp_path / "hours of the grid"
    assert run_here(tmp_path, "start", "--extract", "--quiet", "--data", data, *MONTH).code == 0
    assert run_here(tmp_path, "verify", "--data", data).code == 0
    assert run_here(tmp_path, "report", "--data", data).code == 0
    assert any(manifest.build_results(data))
    assert (data / "report.html").exists()
