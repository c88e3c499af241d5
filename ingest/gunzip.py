"""Decompress gzip by Intel's ISA-L, in a third of zlib's time, where it is installed: it has wheels for Linux and macOS, both architectures.

Only for reading: what is written is compressed by zlib, so that the bytes of a file do not depend on the machine.
"""

import gzip
import zlib
from collections.abc import Callable
from typing import Any

GzipReader: type[gzip.GzipFile] = gzip.GzipFile
inflator: Callable[[int], Any] = zlib.decompressobj
DAMAGED: tuple[type[Exception], ...] = (zlib.error, EOFError, gzip.BadGzipFile)
try:
    from isal import igzip, igzip_lib, isal_zlib
except ImportError:  # a Python that is newer than its wheels
    pass
else:
    GzipReader, inflator = igzip.IGzipFile, isal_zlib.decompressobj
    DAMAGED = (*DAMAGED, igzip_lib.IsalError)  # type: ignore[arg-type]  # a class, which the stub calls an instance
