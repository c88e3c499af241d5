"""Files that macOS leaves behind: `.DS_Store` of Finder in each folder, and `._NAME` beside each file on foreign file systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.doctor import host_script, local
from coordinator.server import key_store
from coordinator.stages.train.inputs import TrainingFiles
from ingest import checksums, manifest
from ingest.data_folder import check_folder
from ingest.emulator.worlds.recording_files import files_of
from ingest.errors import UsageError
from ingest.loader import available, load_series, respondents_on_disk
from ingest.models import MANIFEST_FORMAT
from ingest.verify import verify
from tests.support.data_folder import build_all, commit, daily, shard

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "


def litter(folder: Path) -> None:
    """Write what macOS writes, readable by all as it does, into a folder and the folders below it."""
    for path in [folder, *folder.rglob("*")]:
        litter = path / ".DS_Store" if path.is_dir() else path.with_name(f"._{path.name}")
        litter.write_bytes(APPLE_DOUBLE)
        litter.chmod(0o644)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    hours = {"start": "2024-01-01T00", "end": "2024-01-31T23"}
    commit(folder, shard(**hours), {"D": daily(744), "TI": np.zeros(744)})
    build_all(folder)
    (folder / "id").write_text("folder")
    manifest.write_summary(folder)
    checksums.write(folder, checksums.data_files(folder))
    return folder


def test_data_folder_reads_as_before(data: Path) -> None:
    before = verify(data)
    sealed, series = checksums.data_files(data), load_series(data, "PACW", "D", "2024-01-01", "2024-01-31").values
    sent = TrainingFiles(data, data / "train", config=False).list_files()
    litter(data)
    after = verify(data)
    assert (after.mismatches, after.notes) == (before.mismatches, before.notes) == ([], [])
    assert checksums.data_files(data) == sealed
    assert TrainingFiles(data, data / "train", config=False).list_files() == sent
    check_folder(data)
    assert set(host_script.formats(str(data))) == {MANIFEST_FORMAT}
    assert respondents_on_disk(data) == ("PACW",) and available(data, "PACW").years == (2024,)
    np.testing.assert_array_equal(load_series(data, "PACW", "D", "2024-01-01", "2024-01-31").values, series)
    with pytest.raises(UsageError, match=r"there are PACW(?!.*DS_Store)"):
        load_series(data, "ERCO", "D", "2024-01-01", "2024-01-31")


def test_recordings_keys_and_runs(tmp_path: Path) -> None:
    recording = tmp_path / "recordings" / "eia.csv"
    recording.parent.mkdir()
    recording.write_text("period,respondent,type,value\n2024-01-01T00,PACW,D,1\n")
    keys = tmp_path / "keys"
    key_store.add_worker(keys, "m2-0")
    run = tmp_path / "train"
    (run / "checkpoints" / "000010").mkdir(parents=True)
    (run / "checkpoints" / "000010" / "state.json").write_text("{}")
    listed = checksums.run_files(run)
    litter(tmp_path)
    assert list(files_of([recording.parent])) == [recording]
    assert host_script.open_keys(str(keys)) == []
    (finding,) = local.key_files(keys, "tcp://10.0.0.1:5555")
    assert finding.state == "ok" and finding.seen.startswith("3 files")
    assert checksums.run_files(run) == listed
