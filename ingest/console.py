"""Text from outside, made safe to show, and standard streams that never end a program.

Text of a server, a worker, a file or another host passes through `printable` (or `printable_lines`) before it is shown. Each program calls
`protect` first: it escapes once more what reaches stdout, stderr or a log, so that text which nobody thought of cannot set a terminal's title,
clear its screen or hide a line.
"""

import codecs
import faulthandler
import io
import json
import logging
import os
import re
import select
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO
from urllib.parse import quote

API_KEY = "EIA_API_KEY"  # environment variable
REDACTED = "[key]"
MAX_BRIEF = 300  # characters
SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")  # at the end of a variable's name
SHORTEST_SECRET = 6  # characters: removing a shorter one would spoil words that only contain it
_USER = re.compile(r"(?<=//)[^/@\s]+(?=@)")  # user:password of a URL
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
PLAIN = {"–": "-", "—": "-", "…": "...", "·": "|", "×": "x", "→": "->"}  # what tables and lines of our own have
PLAINLY = "plainly"  # name of the error handler of a stream's encoding
_OURS = "\n\t"  # what a program itself writes to a stream: ends of lines, and columns for other programs


def printable(text: str) -> str:
    """Return text on one line, without a character that a terminal, a pager or a browser acts on.

    Escaped are C0 with the newline, DEL, C1, the separators of lines and paragraphs, the controls of direction and other invisible characters,
    spaces that only look like one, and surrogates, which a file name outside the locale's encoding has. The escapes are those of JSON, so
    that a JSON document with such a character stays one.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Return text of several lines of our own: each is `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return _NAMED.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def spellings(secret: str) -> tuple[str, ...]:
    """Return the secret as such, as in JSON (with and without an escaped slash) and as in a URL, each once."""
    in_json = json.dumps(secret)[1:-1]
    return tuple(dict.fromkeys((secret, in_json, in_json.replace("/", r"\/"), quote(secret, safe=""))))


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """Return text without the secrets, in any spelling and case. Always before it is cut: half a key is a leak too.

    Args:
        text: The text.
        secrets: The secrets; None or "" is none.
    """
    for secret in filter(None, secrets):
        for spelling in spellings(secret):
            text = re.sub(re.escape(spelling), REDACTED, text, flags=re.IGNORECASE)
    return text


def brief(error: BaseException) -> str:
    """Return an exception of a library that is not ours as one line of at most `MAX_BRIEF` characters, without secrets.

    Of a traceback that is the last line. Secrets are what environment variables hold whose names
    end in KEY, TOKEN, PASSWORD and the like, and a user's name and password in a URL.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(lines)
    names = [name for name in os.environ if name.upper().endswith(SECRET_NAMES)]
    secrets = [secret for name in names if len(secret := os.environ[name].strip()) >= SHORTEST_SECRET]
    text = _USER.sub(REDACTED, redact(text, secrets)).rstrip(".")
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= MAX_BRIEF else f"{line[: MAX_BRIEF - 1]}…"


class LineFormatter(logging.Formatter):
    """Formats a record of the log as one line, without control characters and without the API key; a traceback follows indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(redact(super().formatMessage(record), [os.environ.get(API_KEY)]))

    def formatException(self, ei: Any) -> str:
        """Return the traceback, every line of it indented: none can pass for a record."""
        text = redact(super().formatException(ei), [os.environ.get(API_KEY)])
        return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


class _ForgivingFile(io.FileIO):
    """A file whose writes never fail: what a closed, full or broken one does not take is dropped.

    A text stream writes to it without a buffer between them, whose lock a print in a signal handler would find held by the print that it
    interrupts: a RuntimeError.
    """

    lost = False
    refused = False  # not because its reader has gone, which has what it wanted

    def write(self, data: Any) -> int:
        """Write or drop all bytes, and return their number."""
        rest = memoryview(data)
        try:
            while rest:
                if (written := super().write(rest)) is None:  # non-blocking, and its reader is slow
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            self.refused = self.refused or not isinstance(error, BrokenPipeError)
            if not self.lost and self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                text = f"stdout: {error.strerror}; some of the output is lost"
                print(json.dumps({"event": "note", "text": text}) if "--json" in sys.argv else text, file=sys.stderr)
            self.lost = True
        return len(data)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what stands for characters that an encoding lacks: a plain one that means the same, or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacked = error.object[error.start : error.end]
    plain = [PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lacked]
    return "".join(plain), error.end


codecs.register_error(PLAINLY, _plainly)


class SafeStream(io.TextIOWrapper):
    """A text stream that escapes control characters and what its encoding lacks, and never fails."""

    def write(self, text: str) -> int:
        """Write text, escaped but for newlines and tabs.

        Raises:
            TypeError: it is not text. Typer tells text streams from binary ones by this.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        super().write("".join(c if c in _OURS else _escaped(c) for c in text))
        return len(text)

    def write_unescaped(self, text: str) -> int:
        """Write text with its control characters, for a display that draws."""
        return super().write(text)


class _Unescaped(io.TextIOBase):
    """The same stream, for a display that draws with control characters and escapes the text that it shows."""

    def __init__(self, stream: SafeStream) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        return self._stream.write_unescaped(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def unescaped(stream: TextIO) -> Any:
    """Return a standard stream as rich's console needs it: control characters reach the terminal."""
    return _Unescaped(stream) if isinstance(stream, SafeStream) else stream


def protect() -> None:
    """Make stdout, stderr and the log safe. Each program calls this first; a second call changes nothing.

    A descriptor that the caller closed becomes /dev/null, because the next file that is opened would get its number, and a child's messages
    would be written into it.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    sys.stdout = _protected(sys.stdout)
    sys.stderr = _protected(sys.stderr)
    faulthandler.enable(2)  # a crash of native code writes the stack of each thread
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())


def ending(code: int) -> int:
    """Return the exit code of a program whose result is what it prints: 1 in the place of 0 where stdout refused some of it."""
    sys.stdout.flush()
    refused = isinstance(sys.stdout, SafeStream) and getattr(sys.stdout.buffer, "refused", False)
    return 1 if refused and not code else code


def _protected(stream: Any) -> Any:
    if isinstance(stream, SafeStream):
        return stream
    if stream is None:
        return SafeStream(_ForgivingFile(os.open(os.devnull, os.O_WRONLY), "w"), "utf-8")
    with suppress(OSError, ValueError):
        stream.flush()
    return SafeStream(
        _ForgivingFile(stream.fileno(), "w", closefd=False),
        stream.encoding,
        PLAINLY,
        line_buffering=stream.line_buffering or stream.write_through,
    )
