"""List the files that a training needs on a host without the coordinator's file system; prune checkpoints that came from one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from coordinator.stages.train.artifacts import CONFIG, METRICS
from coordinator.wire.messages import MAX_LISTED
from coordinator.wire.payloads import FileRef
from ingest.errors import UsageError
from ingest.files import DigestCache, visible

SERIES, RUN = "series", "run"  # first parts of the paths under which files travel


class TrainingFiles:
    """Lists the files of one run. A digest is computed again only when the size or time of its file has changed."""

    def __init__(self, data_dir: Path, run: Path, config: bool) -> None:
        """Take the data folder, the run folder, and whether the latter holds a configuration file."""
        self._data_dir, self._run, self._config = data_dir, run, config
        self._digests = DigestCache()

    @property
    def upload_roots(self) -> dict[str, Path]:
        """The folders on this host under the first parts of the paths."""
        return {RUN: self._run}

    def list_files(self) -> list[FileRef]:
        """Return series, configuration, metrics so far, the newest checkpoint, and the best one that it names.

        Raises:
            UsageError: there are more than MAX_LISTED files.
        """
        files = [*self._below(self._data_dir / SERIES, SERIES)]
        files += [
            self._file(self._run / name, f"{RUN}/{name}")
            for name in (METRICS, *([CONFIG] if self._config else []))
            if (self._run / name).exists()
        ]
        for folder in self._needed():
            files += self._below(folder, f"{RUN}/checkpoints/{folder.name}")
        if len(files) > MAX_LISTED:
            raise UsageError(
                f"{self._data_dir} has {len(files)} files to send to the hosts, more than the limit of {MAX_LISTED}. "
                "Extract fewer respondents or years into the folder that the training uses."
            )
        return files

    def prune(self) -> None:
        """Remove checkpoints that came from a host as train.py removes its own: all but the two newest and the best."""
        kept = {*self._needed(), *self._whole()[-2:]}
        for folder in self._whole():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        """Return the complete checkpoints, oldest first: state.json is the last file of an upload."""
        return sorted(path.parent for path in (self._run / "checkpoints").glob("[0-9]*/state.json"))

    def _needed(self) -> list[Path]:
        """Return the newest checkpoint, and the best one that it names if that is another."""
        whole = self._whole()
        if not whole:
            return []
        best = json.loads((whole[-1] / "state.json").read_text("utf-8")).get("best_step", 0)
        return [path for path in whole if path == whole[-1] or path.name == f"{best:06d}"]

    def _below(self, folder: Path, name: str) -> Iterator[FileRef]:
        for path in sorted(visible(folder.rglob("*"), folder)):
            if path.is_file() and path.suffix != ".part":
                yield self._file(path, f"{name}/{path.relative_to(folder).as_posix()}")

    def _file(self, path: Path, name: str) -> FileRef:
        return FileRef(name, *self._digests.size_and_sha256(path))
