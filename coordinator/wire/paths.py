"""Check a path that the other side of the wire sent, before a file is opened. Imports no other module of the project."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

FOLDERS = ("raw", "pieces", "series")  # the only ones of the coordinator's data folder that a worker may write to
NO_ROOTS: Mapping[str, Path] = {}


class RefusedPath(Exception):
    """The other side may not use this path."""


def checked_path(
    folder: Path, relative: str, roots: Mapping[str, Path] = NO_ROOTS, folders: Iterable[str] = FOLDERS
) -> Path:
    """Resolve a relative path that a worker sent to its coordinator, or a coordinator to its worker.

    Args:
        folder: For paths that begin with one of `folders`.
        relative: The path as it was sent.
        roots: Further folders, by the first part of the paths below them.
        folders: Allowed first parts of paths below `folder`.

    Raises:
        RefusedPath: `relative` is not a plain file path below one of these folders.
    """
    parts = PurePosixPath(relative).parts
    plain = "/".join(parts) == relative and "\\" not in relative and relative.isprintable()
    known = (*folders, *roots)
    if not plain or len(parts) < 2 or parts[0] not in known or ".." in parts or relative.endswith(".part"):
        raise RefusedPath(f"path {relative!r} is not below {', '.join(known)}")
    root = roots.get(parts[0], folder)
    path = root.joinpath(*(parts[1:] if parts[0] in roots else parts))
    try:
        inside = not path.is_symlink() and path.parent.resolve().is_relative_to(root.resolve())
    except OSError as error:  # too long for the file system
        raise RefusedPath(f"path {relative!r}: {error.strerror}") from error
    if not inside:
        raise RefusedPath(f"path {relative!r} leads out of the data folder")
    return path
