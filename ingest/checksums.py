"""SHA256SUMS: digests of files that no manifest names, in the format of `sha256sum -c`, written when a stage has finished.

A data folder's list holds the manifests, their summary, the origins of raw pages, daily values, the picture and the folder's id; that of a
training's run folder holds every file but logs. A stage removes the list before it changes a file.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ingest.files import atomic_write, file_sha256, storage_errors, visible
from ingest.snapshot import DAILY

NAME = "SHA256SUMS"
NOT_LISTED = re.compile(r"(?:\.lock|trackers\.json|\.endpoint|SHA256SUMS|journal\.sqlite.*|.*\.(?:part|tmp|log))\Z")
LOCAL = (
    "logs",
    "beats",
    "copies",
    "tensorboard",
    "wandb",
)  # folders of a run that change after its end, or that belong to one host
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)\Z")


def data_files(data_dir: Path) -> list[Path]:
    """Return the files of a data folder that its list covers."""
    single = [data_dir / name for name in ("manifest.json", "coverage.png", "id")]
    found = [*visible((data_dir / "manifests").rglob("*.json"), data_dir), *(data_dir / "raw").rglob("origin")]
    found += visible((data_dir / DAILY).glob("*.parquet"), data_dir)
    return sorted(path for path in (*single, *found) if path.is_file())


def run_files(run: Path) -> list[Path]:
    """Return the files of a training's run folder that its list covers."""
    found = ((path, path.relative_to(run)) for path in visible(run.rglob("*"), run))
    return sorted(
        path
        for path, name in found
        if path.is_file() and not NOT_LISTED.match(path.name) and not set(LOCAL) & set(name.parts)
    )


def write(folder: Path, files: Iterable[Path]) -> None:
    """Write the list of `files` below `folder`; the disk's errors are raised as StorageError."""
    with storage_errors(folder / NAME):
        lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    atomic_write(folder / NAME, "".join(lines).encode())


def remove(folder: Path) -> None:
    """Remove the list, because a stage is about to change files; the disk's errors are raised as StorageError."""
    with storage_errors(folder / NAME):
        (folder / NAME).unlink(missing_ok=True)


def check(folder: Path, files: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, name, problem) of each file that differs from the list, is missing, or is not listed, and of a damaged line.

    Args:
        folder: The folder of the list.
        files: The files that it should cover.
    """
    listed: dict[str, str] = {}
    *lines, rest = (folder / NAME).read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], 1):
        if (match := LINE.match(line)) and number <= len(lines):
            listed[match[2]] = match[1]
        else:
            yield "sums", NAME, f"line {number} is damaged"
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for name, path in names.items():
        if name not in listed:
            yield "sums", name, f"is not in {NAME}, which a finished stage writes last"
            continue
        try:
            digest = file_sha256(path)
        except OSError as error:
            yield "missing", name, error.strerror or str(error)
            continue
        if digest != listed[name]:
            yield "sha256", name, f"the sha256 differs from {NAME}"
    for name in sorted(listed.keys() - names.keys()):
        yield "missing", name, f"{NAME} lists it"
