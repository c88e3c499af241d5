"""File uploads from other hosts, CURVE keys and the lock of the data folder."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.server import key_store
from coordinator.server.folder_lock import FolderLock, FolderLocked
from coordinator.server.lease_files import LeaseFiles
from coordinator.server.uploads import UploadReceiver, missing_files
from coordinator.wire import auth
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import FileChunk
from coordinator.wire.paths import RefusedPath, checked_path
from ingest.errors import UsageError

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()
OWN = LeaseFiles((r"raw/a/[^/]+",), 3, 1 << 20)


def chunk(path: str = "raw/a/page.json.gz", offset: int = 0, body: bytes = BODY, sha256: str = SHA) -> FileChunk:
    return FileChunk("w", "t", 1, path, offset, len(body), sha256)


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    inbox, final = UploadReceiver(tmp_path), tmp_path / "raw/a/page.json.gz"
    assert inbox.take(chunk(), b"", OWN) == 0
    assert inbox.take(chunk(), BODY[:4000], OWN) == 4000
    assert inbox.take(chunk(offset=9000), BODY[9000:], OWN) == 4000  # not at the next offset
    assert inbox.take(chunk(), BODY[:4000], OWN) == 4000  # repeated
    assert not final.exists()
    inbox = UploadReceiver(tmp_path)  # after a restart of the coordinator the upload continues
    assert inbox.take(chunk(), b"", OWN) == 4000
    assert inbox.take(chunk(offset=4000), BODY[4000:], OWN) == len(BODY)
    assert final.read_bytes() == BODY
    assert not list(tmp_path.rglob("*.part"))
    assert UploadReceiver(tmp_path).take(chunk(), b"", OWN) == len(BODY)  # recognized as complete by its hash


def test_file_with_wrong_hash_is_restarted(tmp_path: Path) -> None:
    inbox = UploadReceiver(tmp_path)
    assert inbox.take(chunk(), BODY[:-1] + b"x", OWN) == 0
    assert not (tmp_path / "raw/a/page.json.gz").exists()
    assert inbox.take(chunk(), BODY, OWN) == len(BODY)


def test_damaged_file_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "raw/a/page.json.gz"
    final.parent.mkdir(parents=True)
    final.write_bytes(b"x" * len(BODY))
    assert UploadReceiver(tmp_path).take(chunk(), BODY, OWN) == len(BODY)
    assert final.read_bytes() == BODY


@pytest.mark.parametrize(
    "path",
    [
        "../x/y", "raw/../../x", "/etc/passwd", "raw", "raw/", "raw//a", "./raw/a", "manifests/a.json", "journal.sqlite",
        "raw/./a", "raw\\a", "raw/a\0b", "id", "raw/a.part", "", "raw/a/..",
    ],
)  # fmt: skip
def test_paths_outside_the_folders_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RefusedPath):
        checked_path(tmp_path, path)


@given(st.text(max_size=40))
def test_no_path_leaves_the_folder(text: str) -> None:
    root = Path("/nowhere/data")
    try:
        path = checked_path(root, text)
    except RefusedPath:
        return
    assert os.path.normpath(path).startswith(("/nowhere/data/raw/", "/nowhere/data/pieces/", "/nowhere/data/series/"))


def test_symlink_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/out").symlink_to(tmp_path)
    with pytest.raises(RefusedPath, match="leads out"):
        checked_path(tmp_path / "data", "raw/out/x")


def test_missing_files_of_a_result_are_named(tmp_path: Path) -> None:
    proof = {"pages": [{"file": {"path": "raw/a/page.json.gz", "bytes": len(BODY), "sha256": SHA}}], "rows": 1}
    assert "is missing" in missing_files(tmp_path, proof, OWN)
    UploadReceiver(tmp_path).take(chunk(), BODY, OWN)
    assert missing_files(tmp_path, proof, OWN) == ""
    (tmp_path / "raw/a/page.json.gz").write_bytes(b"short")
    assert "5 bytes" in missing_files(tmp_path, proof, OWN)


def test_folder_keeps_its_id(tmp_path: Path) -> None:
    assert filesystem_id(tmp_path / "new") == filesystem_id(tmp_path / "new") != filesystem_id(tmp_path / "other")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["id"]


# -- keys -------------------------------------------------------------------------------------------------------------------


def test_keys_are_private_and_never_printed(tmp_path: Path) -> None:
    path = key_store.add_worker(tmp_path, "m2-max-1")
    for file in [path, tmp_path / "coordinator.key", tmp_path / "allowed.json"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    server, worker = key_store.load_coordinator(tmp_path), auth.load_worker(path)
    assert worker.server == server.public and server.allowed == {"m2-max-1": worker.public}
    assert server.secret not in repr(server) and worker.secret not in str(worker)


def test_key_file_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = key_store.add_worker(tmp_path, "a")
    path.chmod(0o644)
    with pytest.raises(auth.CurveError, match="chmod 600"):
        auth.load_worker(path)


def test_missing_or_broken_key_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(auth.CurveError, match="coordinator keys"):
        key_store.load_coordinator(tmp_path)
    for text in ("not json", "[]", "{}", '{"public": "short", "secret": "short"}'):
        (tmp_path / "x.key").write_text(text)
        (tmp_path / "x.key").chmod(0o600)
        with pytest.raises(auth.CurveError, match="coordinator keys"):
            auth.load_worker(tmp_path / "x.key")


def test_worker_name_is_unique_and_revocable(tmp_path: Path) -> None:
    path = key_store.add_worker(tmp_path, "a")
    with pytest.raises(auth.CurveError, match="has a key"):
        key_store.add_worker(tmp_path, "a")
    for name in ("", "../a", "a b", "-a"):
        with pytest.raises(auth.CurveError, match="worker name"):
            key_store.add_worker(tmp_path, name)
    key_store.revoke_worker(tmp_path, "a")
    assert not path.exists() and key_store.load_coordinator(tmp_path).allowed == {}
    with pytest.raises(auth.CurveError, match="known: none"):
        key_store.revoke_worker(tmp_path, "a")


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.4:0", "tcp://[::]:1", "tcp://eth0:1"]
)
def test_bind_off_loopback_needs_keys(tmp_path: Path, bind: str) -> None:
    with pytest.raises(auth.CurveError, match="coordinator keys"):
        key_store.check_bind(bind, None)
    key_store.make_coordinator_key(tmp_path)
    key_store.check_bind(bind, key_store.load_coordinator(tmp_path))


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "tcp://127.8.0.1:9", "tcp://localhost:1", "tcp://[::1]:0"])
def test_loopback_needs_no_keys(bind: str) -> None:
    key_store.check_bind(bind, None)


# -- the lock -----------------------------------------------------------------------------------------------------------------


def test_second_coordinator_is_refused_with_pid_and_command(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from coordinator.server.folder_lock import FolderLock\n" + (
        "with FolderLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(FolderLocked, match=rf"pid {holder.pid}: -c {tmp_path}.*coordinator status"),
        FolderLock(tmp_path),
    ):
        pass
    holder.kill()  # the lock ends with its process, however it ends
    holder.communicate()
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:99999", "tcp://127.0.0.1:x", "127.0.0.1", "tcp://:5", "tcp://[::1]"])
def test_malformed_bind_is_refused_in_one_line(bind: str) -> None:
    with pytest.raises(UsageError, match=r"--bind tcp://127\.0\.0\.1:5555") as refusal:
        key_store.check_bind(bind, None)
    assert "\n" not in str(refusal.value)
