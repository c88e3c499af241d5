"""Datasets as files named by their content, which any process maps: `DATA/control/tables/<sha256>.table`."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

from rl.arrays import mapped, pack
from rl.env.dataset import Dataset
from rl.errors import DataError

DATASETS = "tables"  # in a control folder
_PLAIN = ("feature_names", "regions", "spans", "origins")
_ARRAYS = tuple(field.name for field in fields(Dataset) if field.name not in _PLAIN)


def to_bytes(dataset: Dataset) -> tuple[str, bytes]:
    """A dataset → the sha256 that names it, and the file's content."""
    meta = {name: getattr(dataset, name) for name in _PLAIN}
    content = pack(meta, {name: getattr(dataset, name) for name in _ARRAYS})
    return hashlib.sha256(content).hexdigest(), content


def path_of(folder: Path, sha256: str) -> Path:
    """Where the dataset of that name lies below a control folder. DataError for what is no sha256."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise DataError(f"table {sha256!r}: not named by a sha256")
    return folder / DATASETS / f"{sha256}.table"


def load(folder: Path, sha256: str) -> Dataset:
    """The dataset of that name, mapped; its content is proved. DataError for a file that is not what its name says."""
    path = path_of(folder, sha256)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"table {path}: {error.strerror}; start again, and it is made again") from error
    if found != sha256:
        raise DataError(f"table {path} is not what its name says: remove it and start again")
    meta, arrays = mapped(path)
    try:
        return Dataset(
            **{name: arrays[name] for name in _ARRAYS},
            feature_names=tuple(meta["feature_names"]),
            regions=tuple(meta["regions"]),
            spans=tuple((int(first), int(last)) for first, last in meta["spans"]),
            origins=tuple(map(int, meta["origins"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"table {path}: {error!r}: made by another version; remove it and start again") from error
