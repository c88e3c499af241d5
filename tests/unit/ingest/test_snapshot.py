"""Snapshots: one dataset for every reader, whole generations while a run writes, and what is kept of the earlier ones."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ingest import manifest, snapshot
from ingest.errors import UsageError
from ingest.loader import load_series
from ingest.verify import verify
from tests.support.data_folder import build_all, commit, daily, shard

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path

from ingest import manifest, snapshot
from tests.support.data_folder import build_all, commit, shard

data = Path(sys.argv[1])
for generation in range(1, 4):
    sys.stdin.readline()  # the reader has seen the one before
    for respondent in ("ERCO", "PACW"):
        one = replace(shard(respondent, "2024-01-01T00", "2024-01-02T23"), generation=generation)
        commit(data, one, {"D": [3000.0 + generation] * 48})
    build_all(data)
    snapshot.publish(data, manifest.build_results(data))
sys.stdin.readline()
"""


def make(data: Path, generation: int = 0, value: float = 3000.0) -> None:
    """Two days of two respondents, each hour with the same demand, and their snapshot."""
    for respondent in ("ERCO", "PACW"):
        one = shard(respondent, "2024-01-01T00", "2024-01-02T23", generation=generation)
        commit(data, one, {"D": np.full(48, value)})
    build_all(data)
    snapshot.publish(data, manifest.build_results(data))


def files(data: Path) -> list[str]:
    return sorted(path.relative_to(data).as_posix() for path in (data / "snapshots").rglob("*.parquet"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("snapshot") / "data"
    make(data)
    return data


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data", symlinks=True))


def test_dataset_is_read_whole_by_pandas(made: Path) -> None:
    whole = pd.read_parquet(made / "dataset")
    assert len(whole) == 2 * 8784
    assert set(whole["respondent"]) == {"ERCO", "PACW"}
    assert set(whole["year"]) == {2024}
    assert whole["value"].count() == 2 * 48
    assert str(whole["period"].dtype) == "datetime64[ms, UTC]"


def test_dataset_is_read_whole_by_polars(made: Path) -> None:
    polars = pytest.importorskip("polars", reason="not installed: uv run --group formats pytest")
    whole = polars.scan_parquet(made / "dataset").filter(polars.col("value").is_not_null()).collect()
    assert whole.height == 2 * 48
    assert whole["year"].unique().to_list() == [2024]


def test_dataset_is_read_whole_by_duckdb(made: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="not installed: uv run --group formats pytest")
    ask = f"SELECT respondent, year, count(value) FROM '{made}/dataset/**/*.parquet' GROUP BY ALL ORDER BY 1"
    assert duckdb.sql(ask).fetchall() == [(code, 2024, 48) for code in ("ERCO", "PACW")]


def test_documented_one_liners_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("polars", "duckdb"):
        pytest.importorskip(name, reason="not installed: uv run --group formats pytest")
    (lines,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/reference/data.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(made.parent)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert len(found["frame"]) == 2 * 8784
    assert found["lazy"].collect().height == 8784
    assert sorted(found["peaks"].fetchall()) == [(code, 2024, 3000.0) for code in ("ERCO", "PACW")]


def test_snapshot_takes_no_space_until_a_series_is_replaced(made: Path) -> None:
    for path in (made / "series").rglob("*.*"):
        assert path.samefile(made / "snapshots/000001" / path.relative_to(made))
    assert (made / "series/PACW/2024/long.parquet").samefile(made / "dataset/year=2024/PACW.parquet")


def test_unchanged_series_give_no_new_snapshot(data: Path) -> None:
    snapshot.publish(data, manifest.build_results(data))
    assert sorted(path.name for path in (data / "snapshots").iterdir()) == ["000001"]


def test_the_snapshot_before_is_kept_and_older_ones_go(data: Path) -> None:
    for generation in (1, 2):
        make(data, generation, 3000.0 + generation)
    assert sorted(path.name for path in (data / "snapshots").iterdir()) == ["000002", "000003"]
    assert (data / "dataset").readlink() == Path("snapshots/000003/dataset")
    assert verify(data).whole


def test_series_that_a_run_has_replaced_are_not_read_before_it_ends(data: Path) -> None:
    commit(data, shard("PACW", "2024-01-01T00", "2024-01-02T23", generation=1), {"D": daily(48)})
    build_all(data)
    assert set(load_series(data, "PACW", "D", "2024-01-01", "2024-01-02").values[:, 0]) == {3000.0}
    snapshot.publish(data, manifest.build_results(data))
    assert load_series(data, "PACW", "D", "2024-01-01", "2024-01-02").values[:, 0].tolist() == daily(48).tolist()


def test_reader_sees_whole_generations_only_while_a_process_writes(data: Path) -> None:
    """Three generations of two respondents: read from `series`, some loads hold hours of two of them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen: list[set[float]] = []
    command = [sys.executable, "-c", WRITER, str(data)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        while writer.poll() is None and len(seen) < 4:
            loaded = load_series(data, ["ERCO", "PACW"], "D", "2024-01-01", "2024-01-02")
            values = set(loaded.values.ravel().tolist())
            if values not in seen:
                seen.append(values)
                writer.stdin.write("\n")
                writer.stdin.flush()
    assert writer.returncode == 0
    assert seen == [{3000.0}, {3001.0}, {3002.0}, {3003.0}], "a load holds hours of two generations"
    assert set(load_series(data, "ERCO", "D", "2024-01-01", "2024-01-02").values.ravel()) == {3003.0}


def test_reader_begins_again_where_its_snapshot_was_removed(data: Path) -> None:
    read: list[str] = []

    def slow(folder: Path) -> str:
        read.append(folder.parent.name)
        if len(read) == 1:
            for generation in (1, 2):
                make(data, generation, 3000.0 + generation)
        if not folder.exists():
            raise UsageError("gone")
        return folder.parent.name

    assert snapshot.read_whole(data, slow) == "000003"
    assert read == ["000001", "000003"]


def test_copy_that_followed_the_link_is_read_and_published_again(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    assert not (copy / "dataset").is_symlink()
    assert load_series(copy, "PACW", "D", "2024-01-01", "2024-01-02").mask.all()
    snapshot.publish(copy, manifest.build_results(copy))
    assert (copy / "dataset").is_symlink()
    assert len(pd.read_parquet(copy / "dataset")) == 2 * 8784


@pytest.mark.parametrize("call", ["link", "symlink"])
def test_file_system_without_links(call: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links a snapshot holds copies, which are not made again; without symbolic ones there is none."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    data = tmp_path / "data"
    for name in ("series", "manifests"):
        shutil.copytree(made / name, data / name)
    monkeypatch.setattr(os, call, refuse)
    for _ in range(2):
        snapshot.publish(data, manifest.build_results(data))
    assert load_series(data, "PACW", "D", "2024-01-01", "2024-01-02").mask.all()
    assert [path.name for path in (data / "snapshots").iterdir()] == (["000001"] if call == "link" else [])


def test_damage_to_any_byte_of_the_list_is_named(data: Path) -> None:
    path = data / "snapshots/000001/files.json"
    content = path.read_bytes()
    for at in range(0, len(content), 41):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = [f"{name} {problem}" for name, problem in snapshot.check(data)]
        assert any("snapshots/000001/files.json" in line for line in found), content[at - 20 : at + 20]
    path.write_bytes(content)
    assert not list(snapshot.check(data))


@pytest.mark.parametrize("name", ["series/PACW/2024/wide.parquet", "dataset/year=2024/ERCO.parquet", "files.json"])
@pytest.mark.parametrize("removed", [True, False])
def test_damage_to_a_snapshot_is_named_and_repaired(name: str, removed: bool, data: Path) -> None:
    path = data / "snapshots/000001" / name
    content = path.read_bytes()
    path.unlink()
    if not removed:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [finding.subject for finding in verify(data).mismatches] == [f"snapshots/000001/{name}"]
    path.unlink(missing_ok=True)
    snapshot.publish(data, manifest.build_results(data))
    assert [path.name for path in (data / "snapshots").iterdir()] == ["000002"]
    assert verify(data).whole


@pytest.mark.parametrize("remove", [False, True])
def test_damaged_snapshot_before_is_removed_when_its_series_is_built_again(remove: bool, data: Path) -> None:
    """Its damaged file has the inode of the series; `verify` said to repeat the extraction, which left 000001 as it was."""
    os.truncate(data / "dataset/year=2024/PACW.parquet", 1000)
    if remove:  # what `verify` says to do
        for finding in verify(data).mismatches:
            (data / finding.subject).unlink(missing_ok=True)
    build_all(data)
    snapshot.publish(data, manifest.build_results(data))
    assert [path.name for path in (data / "snapshots").iterdir()] == ["000002"]
    assert verify(data).whole, verify(data).to_text()


def test_damage_to_the_snapshot_before_alone_ends_with_the_next_run(data: Path) -> None:
    make(data, 1, 3001.0)
    snapshot.publish(data, manifest.build_results(data))
    assert sorted(path.name for path in (data / "snapshots").iterdir()) == ["000001", "000002"]
    os.truncate(data / "snapshots/000001/series/PACW/2024/wide.parquet", 1000)
    snapshot.publish(data, manifest.build_results(data))
    assert [path.name for path in (data / "snapshots").iterdir()] == ["000002"]
    assert verify(data).whole
