"""Which files a lease may upload and name in its result, and how much disk it may use."""

import re
from dataclasses import dataclass
from functools import lru_cache

SHA = r"(?P<sha>[0-9a-f]{16})"  # in a pattern: the first 16 digits of the file's own SHA-256


@dataclass(frozen=True)
class LeaseFiles:
    """The names and the quota of a lease. The default allows no file.

    Attributes:
        names: Regular expressions; one of them must match the whole path. `SHA` in it must match the file's digest, so that a
            file of this name can never be replaced by another content.
        max_files: Files at once, unfinished ones included.
        max_bytes: Their announced sizes, in all.
    """

    names: tuple[str, ...] = ()
    max_files: int = 0
    max_bytes: int = 0

    def owns(self, path: str, sha256: str) -> bool:
        """Return whether the lease may write a file of this path and digest."""
        for pattern in self.names:
            if match := _compiled(pattern).fullmatch(path):
                return match.groupdict().get("sha") in (None, sha256[:16])
        return False


NO_FILES = LeaseFiles()


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
