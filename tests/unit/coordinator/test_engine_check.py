"""The check of an engine before a run: an engine that ends its process is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.stages import engine_check
from coordinator.workers.local import LocalWorkerPool
from ingest.errors import UsageError
from tests.support.waiting import until


@pytest.mark.parametrize("code", [0, 4])
def test_factory_that_ends_its_process_is_refused(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving.py").write_text(f"import os\n\n\ndef factory():\n    os._exit({code})\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^--engine leaving:factory ended its process with exit code {code}"):
        engine_check.check_engine("leaving:factory", print)


def test_engine_that_passes_is_accepted_and_its_answer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from concurrent.futures import ThreadPoolExecutor\n\n\ndef factory():\n    return ThreadPoolExecutor(1)\n"
    (tmp_path / "staying.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    engine_check.check_engine("staying:factory", print)


def test_end_of_a_worker_names_the_engine_in_it(tmp_path: Path) -> None:
    pool = LocalWorkerPool(("sh", "-c", "exit 4"), "tcp://127.0.0.1:1", tmp_path, 1, 1, 60.0, engine="my:osexit")
    pool.start()
    lost: list[str] = []
    try:
        until(lambda: pool.supervise((), lambda pid, reason: lost.append(reason)), "the end of the worker")
    finally:
        pool.stop()
    assert lost[0] == "ended with exit code 4 (--engine my:osexit runs in it)"
