"""Templates of `coordinator init`: what they say is what holds without them, and they never replace a user's file."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlx._distributed_utils.common import Hostfile

from coordinator.cli.init import HOSTFILE, first_command, write_templates
from coordinator.cli.settings import CONFIG_FILE, SETTINGS, resolve
from coordinator.workers.hostfile import read_hosts
from ingest.errors import UsageError
from tests.unit.ingest.test_console import ASCII


def test_settings_without_their_comment_marks_are_the_defaults(tmp_path: Path) -> None:
    (path, _) = write_templates(tmp_path)
    defaults = resolve({}, {}, tmp_path)
    assert {entry.origin for entry in defaults.values()} == {"default"}, "a comment counts as a setting"
    path.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", path.read_text(), flags=re.MULTILINE))
    written = resolve({}, {}, tmp_path)
    assert {name: entry.value for name, entry in written.items()} == {
        name: entry.value for name, entry in defaults.items()
    }
    assert [name for name, entry in written.items() if entry.origin != str(path)] == []
    assert all(len(line) <= 120 for line in path.read_text().splitlines())
    assert len(written) == len(SETTINGS)


def test_hostfile_is_read_here_and_by_mlx(tmp_path: Path) -> None:
    (_, path) = write_templates(tmp_path / "new")
    ours = read_hosts(path, {"": "python"}, {"": "data"})
    theirs = Hostfile.from_file(path)
    assert [(host.name, host.address) for host in ours.remote] == [
        (host.ssh_hostname, host.ips[0]) for host in theirs.hosts
    ]
    assert (ours.size, theirs.backend) == (2, "ring")


@pytest.mark.parametrize("name", [CONFIG_FILE, HOSTFILE])
def test_existing_file_stays_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} exists already; nothing was written.*coordinator init --out DIR"):
        write_templates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_first_command_names_the_folder_in_which_the_settings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert first_command(Path()) == first_command(tmp_path) == "Next: `coordinator start --extract`"
    there = tmp_path / "else where"
    write_templates(there)
    said = first_command(Path("else where"))
    assert said.startswith("Next: `cd 'else where'`") and "cluster.toml" in said
    assert said.endswith("then `coordinator start --extract`")


def test_templates_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """A locale of ASCII ended it with UnicodeEncodeError, and an empty settings file was left."""
    program = "import sys, pathlib; from coordinator.cli.init import write_templates; write_templates(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "ascii")], env={**os.environ, **ASCII}, check=True)
    for path in write_templates(tmp_path / "here"):
        assert (tmp_path / "ascii" / path.name).read_bytes() == path.read_bytes() != b""


def test_disk_that_refuses_the_second_file_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name == HOSTFILE:
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        write_templates(tmp_path)
    assert list(tmp_path.iterdir()) == []
