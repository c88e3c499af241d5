"""Damage to any file of a finished pipeline folder is named by `verify`, or by the reader of that file, or has no effect."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.server.journal import Journal
from ingest.errors import IngestError
from ingest.verify import verify
from tests.support import control_data
from tests.support.program import PLAN, TRAINING, Coordinator, series_digest
from worker.training.tokens import open_token_store

DAMAGES = int(os.environ.get("DAMAGES", "1000"))


def harmless(name: Path) -> bool:
    """Return whether this is a lock or a log. The end of the test proves that damage to all of them at once has no effect."""
    return (
        name.name in (".lock", ".endpoint", "server.log")
        or name.suffix == ".log"
        or bool({"logs", "beats"} & set(name.parts))
    )


def flip(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def zero(content: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(content)), draw.choice((1, 16, 4096))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


WAYS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": flip,
    "zero": zero,
    "truncate": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "append": lambda content, draw: content + draw.randbytes(draw.randint(1, 64)),
    "remove": lambda content, draw: None,
}


def kind_of(name: Path) -> str:
    top = name.parts[0] if len(name.parts) > 1 else name.name
    return f"{top}/{name.name if name.name in ('origin', 'SHA256SUMS') else '*' + name.suffix}"


def records(path: Path) -> list[Any]:
    journal = Journal(path)
    try:
        return list(journal.load())
    finally:
        journal.close()


def journal_names_it(data: Path, copies: Path, whole: list[Any]) -> bool:
    """Return whether a damaged journal is refused by its reader, or read as it was."""
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    for path in data.glob("journal.sqlite*"):
        shutil.copy(path, copies)
    journal = copies / "journal.sqlite"
    if not journal.exists() or not journal.stat().st_size:
        return True  # a run without one starts from the manifests: below
    try:
        return records(journal) == whole
    except IngestError:
        return True


def named_by_verify(data: Path, name: Path) -> bool:
    try:
        report = verify(data)
    except IngestError as error:
        return name.as_posix() in str(error)
    found = [*report.mismatches, *report.notes]
    return any(name.as_posix() in f"{finding.subject} {finding.detail}" for finding in found) or (
        name.name == "SHA256SUMS" and bool(found)
    )


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_random_damage_to_a_pipeline_folder_is_never_silent(coordinator: Coordinator, tmp_path: Path) -> None:
    training, control = tmp_path / "small.toml", control_data.config(tmp_path / "control.toml", 2, "pathwise")
    settings = TRAINING | {"steps": 6, "validate_every": 3, "checkpoint_every": 3}
    training.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    stages = ("--extract", "--train", "--rollouts", "--train-config", training, "--control-config", control)
    run = coordinator("start", *stages, "--quiet", "--routes", "region-data,fuel-type-data,daily", *PLAN)
    assert run.code == 0, run.stderr
    data = tmp_path / "data"
    assert verify(data).whole and verify(data).notes == [], verify(data).to_text()
    journal = records(Path(shutil.copy(data / "journal.sqlite", tmp_path)))
    tokens = np.array(open_token_store(data, ["PACW"]).maps[0][1])
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        by_kind[kind_of(path.relative_to(data))].append(path)
    draw, silent, tried = random.Random(14), [], Counter[str]()
    for number in range(DAMAGES):
        kind = sorted(by_kind)[number % len(by_kind)]
        path = draw.choice(by_kind[kind])
        name, content = path.relative_to(data), path.read_bytes()
        way = draw.choice(sorted(WAYS))
        damaged = WAYS[way](content, draw) if content else b"x"
        if damaged == content:
            continue
        path.unlink() if damaged is None else path.write_bytes(damaged)
        tried[kind] += 1
        if harmless(name):
            named = True
        elif name.parts[0] == "tokens":  # computed again when it is damaged
            named = np.array_equal(open_token_store(data, ["PACW"]).maps[0][1], tokens, equal_nan=True)
        elif name.name.startswith("journal.sqlite"):
            named = journal_names_it(data, tmp_path / "copies", journal)
        else:
            named = named_by_verify(data, name)
        if not named:
            silent.append(f"{way} {name}")
        path.write_bytes(content)
    print(f"{tried.total()} damages: {dict(tried)}")
    assert verify(data).whole
    assert not silent, silent
    assert tried.total() >= 0.9 * DAMAGES
    before = series_digest(data)
    (data / "journal.sqlite").write_bytes(b"")
    locks_and_logs = [path for path in data.rglob("*") if path.is_file() and harmless(path.relative_to(data))]
    assert locks_and_logs
    for path in locks_and_logs:
        path.write_bytes(draw.randbytes(64))
    again = coordinator("start", *stages, "--quiet", *PLAN)
    assert again.code == 0 and "nothing was left to do" in again.stdout, again.stderr
    assert series_digest(data) == before and verify(data).whole
