"""Identify the file system of a data folder: two processes that read the same id share it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def filesystem_id(data_dir: Path) -> str:
    """Return the random id of a data folder; create it on first use."""
    path = data_dir / "id"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"id.{secrets.token_hex(8)}.part")
        fresh.write_text(secrets.token_hex(16) + "\n", "utf-8")
        try:
            os.link(fresh, path)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text("utf-8").strip()
