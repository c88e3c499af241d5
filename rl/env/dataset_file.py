"""Datasets as files named by the sha256 of their content, which any process maps: `DATA/control/tables/<sha256>.table`."""

import hashlib
from dataclasses import fields
from pathlib import Path

from rl import arrays
from rl.env.dataset import Dataset
from rl.errors import DataError

DATASETS = "tables"  # the folder's name in a control folder
_PLAIN = ("feature_names", "regions", "spans", "origins", "first_hours", "peaks")
_STORED_AS = {"feature_names": "names", "previous_load": "before"}  # field → its name in the file, where they differ
_ARRAYS = tuple(field.name for field in fields(Dataset) if field.name not in _PLAIN)


def to_bytes(dataset: Dataset) -> tuple[str, bytes]:
    """Return the sha256 that names the dataset, and the content of its file."""
    plain, stored = ({_STORED_AS.get(n, n): getattr(dataset, n) for n in names} for names in (_PLAIN, _ARRAYS))
    content = arrays.to_bytes(plain, stored)
    return hashlib.sha256(content).hexdigest(), content


def path_of(folder: Path, sha256: str) -> Path:
    """Return the path of the dataset of that name below a control folder.

    Raises:
        DataError: The name is not a sha256.
    """
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise DataError(f"dataset {sha256!r}: the name is not a sha256")
    return folder / DATASETS / f"{sha256}.table"


def load(folder: Path, sha256: str) -> Dataset:
    """Map the dataset of that name into memory, after its content was verified.

    Raises:
        DataError: The file is missing, its content has another sha256, or another version wrote it.
    """
    path = path_of(folder, sha256)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"dataset {path}: {error.strerror}. Run the same command again: it builds the dataset."
        ) from error
    if found != sha256:
        raise DataError(f"dataset {path}: its content has another sha256. Remove it and run the same command again.")
    meta, stored = arrays.load(path)
    if "before" in stored:
        stored.setdefault("reported_load", stored["before"])  # files of earlier versions: published as it ends
    try:
        return Dataset(
            **{name: stored[_STORED_AS.get(name, name)] for name in _ARRAYS},
            feature_names=tuple(meta["names"]),
            regions=tuple(meta["regions"]),
            spans=tuple((int(first), int(last)) for first, last in meta["spans"]),
            origins=tuple(map(int, meta["origins"])),
            first_hours=tuple(map(int, meta.get("first_hours", ()))),
            peaks=tuple(map(float, meta.get("peaks", ()))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"dataset {path}: another version wrote it ({error!r}). Remove it and run the same command again."
        ) from error
