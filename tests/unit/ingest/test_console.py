"""Escapes, removed secrets, lines of a log, and streams that are closed, full, broken or ASCII."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from coordinator.wire.messages import Lease
from ingest.console import PLAINLY, LineFormatter, SafeStream, printable, printable_lines, redact, unescaped
from ingest.http import ORIGIN_LIMIT, HttpResponse
from worker.agent.handlers import MAX_TEXT, failure_of

ROOT = Path(__file__).resolve().parents[3]
KEY = "Se/cr3t-Key-0123456789-0123456789-abcdef"
UNSAFE = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\udcff"]


@pytest.mark.parametrize("character", UNSAFE, ids=lambda c: f"{ord(c):04x}")
def test_character_that_a_terminal_acts_on_is_escaped(character: str) -> None:
    shown = printable(f"a{character}b")
    assert shown.isascii() and shown.isprintable()
    assert json.loads(f'"{shown}"') == f"a{character}b"


def test_text_becomes_printable_and_keeps_letters() -> None:
    text = "".join(map(chr, range(0x3000)))
    shown = printable(text)
    assert shown.isprintable()
    assert all(unicodedata.category(c)[0] != "C" for c in shown)
    assert printable("Σ total · 70 °C — é") == "Σ total · 70 °C — é"
    assert printable_lines("one\n\x1btwo") == "one\n\\u001btwo"


@pytest.mark.parametrize("spelling", [KEY, KEY.replace("/", r"\/"), KEY.replace("/", "%2F"), KEY.lower(), KEY.upper()])
def test_key_is_removed_in_every_spelling(spelling: str) -> None:
    assert redact(f"before {spelling} after", [None, "", KEY]) == "before [key] after"


@pytest.mark.parametrize("before", range(MAX_TEXT - 45, MAX_TEXT + 5, 5))
def test_no_part_of_a_key_stays_in_a_failure_that_is_cut(before: int) -> None:
    error = RuntimeError(KEY + "x" * before)
    failure = failure_of(error, "w", Lease("t", 1, "fetch", {}, 1.0), KEY)
    assert "abcdef" not in failure.message


@pytest.mark.parametrize("before", range(ORIGIN_LIMIT - 45, ORIGIN_LIMIT + 5, 5))
def test_no_part_of_a_key_stays_in_an_origin_that_is_cut(before: int) -> None:
    world = {"X-Emulator-World": "w" * before + KEY}
    assert "Se/c" not in HttpResponse(200, world, b"", False, "host", 0.0, "").origin(KEY)


def test_pieces_of_a_key_are_not_joined_by_dropped_characters() -> None:
    world = {"X-Emulator-World": f"{KEY[:20]}\x1b{KEY[20:]}"}
    assert KEY not in HttpResponse(200, world, b"", False, "host", 0.0, "").origin(KEY)


def test_record_of_a_log_is_one_line_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIA_API_KEY", KEY)
    made = logging.getLogger("test").makeRecord
    try:
        raise ValueError(f"{KEY}\n2026-01-01 INFO 70 of 70 shards verified\x1b[2J")
    except ValueError:
        record = made("test", logging.INFO, "", 1, "dropped %s", (f"\x1b[2J\r\n{KEY}",), sys.exc_info())
    first, *rest = LineFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == r"INFO dropped \u001b[2J\r\n[key]"
    assert rest and all(line.startswith("  ") and line.isprintable() for line in rest)
    assert KEY not in "".join(rest)


def test_stream_escapes_what_nobody_escaped_and_a_display_can_draw() -> None:
    raw = io.BytesIO()
    stream = SafeStream(raw, "ascii", "backslashreplace")
    print("Σ\ta\x1b[2J\r\x9b", file=stream)
    print("\x1b[1mbold", file=unescaped(stream), end="")
    stream.flush()
    assert raw.getvalue() == b"\\u03a3\ta\\u001b[2J\\r\\u009b\n\x1b[1mbold"
    plain = io.StringIO()
    assert unescaped(plain) is plain


def test_character_that_an_encoding_lacks_is_a_plain_one_that_means_the_same_or_an_escape() -> None:
    """Cells of tables without a value were an escape."""
    raw = io.BytesIO()
    stream = SafeStream(raw, "ascii", PLAINLY)
    print("a – b … Σ", file=stream, flush=True)
    assert raw.getvalue() == b"a - b ... \\u03a3\n"


# -- streams of real processes -----------------------------------------------------------------------------------------------

PROGRAM = r"""
import os, sys
from ingest.console import protect
protect()
protect()
file = os.open("opened", os.O_CREAT | os.O_RDWR)  # must not get the number of a closed stream
for _ in range(300):
    print("\u03a3" * 400)
    print("\u00e9" * 400, file=sys.stderr)
sys.stdout.flush()
os.system("echo child; echo child >&2")
assert os.fstat(file).st_size == 0, "a stream went into another file"
sys.exit(7)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


CASES: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": ("", ASCII),
    "latin-1": ("", {"PYTHONIOENCODING": "latin-1"}),
    "unbuffered": (">/dev/full", {"PYTHONUNBUFFERED": "1"}),
    "stdout full": (">/dev/full", ASCII),
    "stderr full": ("2>/dev/full", {}),
    "stdout closed": (">&-", {}),
    "stderr closed": ("2>&-", ASCII),
    "all closed": ("<&- >&- 2>&-", {}),
    "stdout read-only": ("1</dev/null", {}),
    "head": ("2>&1 | head -1; exit ${PIPESTATUS[0]}", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_streams_do_not_change_the_exit_code(name: str, tmp_path: Path) -> None:
    words, variables = CASES[name]
    ended = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {words}', sys.executable, PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 7, ended.stderr
    if name == "ascii":
        assert rb"\u03a3" in ended.stdout
    if name == "stdout full":
        assert ended.stderr.count(b"some of the output is lost") == 1
    if name == "stderr full":
        assert ended.stdout.count(b"\n") == 301


def test_slow_reader_of_a_non_blocking_pipe_gets_all(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = subprocess.Popen(
        [sys.executable, "-c", "from ingest.console import protect; protect(); print('x' * 1_000_000)"],
        cwd=ROOT,
        stdout=write,
    )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert len(pipe.read()) == 1_000_001
    assert process.wait(60) == 0


def test_signal_handler_can_print_while_a_print_is_in_progress() -> None:
    """As the handler of Ctrl-C does, which the print of a step must not end with an error."""
    child = """
import signal, sys
from ingest.console import protect
protect()
seen = 0
def handle(*_):
    global seen
    seen += 1
    print("handler", file=sys.stderr, flush=True)
signal.signal(signal.SIGVTALRM, handle)
signal.setitimer(signal.ITIMER_VIRTUAL, 1e-4, 1e-4)
while seen < 200:
    print("main", file=sys.stderr, flush=True)
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stderr.count("handler") == int(done.stdout)


def test_crash_of_native_code_leaves_the_stack_of_its_threads() -> None:
    code = "from ingest.console import protect; protect(); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert 'File "<string>"' in done.stderr
