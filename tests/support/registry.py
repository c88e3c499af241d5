"""Programs that ask a package registry: where none answers, their tests are skipped with the reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

OFFLINE = re.compile(
    r"error sending request|dns error|failed to (fetch|connect)|timed out|connect error", re.IGNORECASE
)


def uv(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run uv; skip the test where it is not on PATH, or where no registry answers."""
    if shutil.which("uv") is None:
        pytest.skip("no uv on PATH: nothing was resolved or built")
    done = subprocess.run(["uv", *words], capture_output=True, text=True, timeout=300, **options)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip(f"no package registry answers: {done.stderr.strip().splitlines()[-1]}")
    return done
