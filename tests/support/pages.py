"""Read README and the pages of docs: fenced blocks by language, and every command that a page quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "hostfiles" / "README.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNERS = ("uv run ", ".venv/bin/", "$ ")
COMMAND = re.compile(
    r"(coordinator [a-z]|worker --|mlx\.launch( |$)|python3? |scripts/(check|(bench|evaluate|dev)/[a-z_]+\.py)( |$)|pytest( |$)|uv sync|--group "
    r"|scp |ssh -|apt-get |systemctl |launchctl )"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language; "" for blocks without one."""
    return [content for kind, content in FENCE.findall(text) if kind == language]


def commands(text: str) -> Iterator[str]:
    """Yield every command of a page: in a shell block, an indented line, or between backticks; without runner and comment."""
    quoted = [line for kind in ("sh", "console", "") for block in blocks(text, kind) for line in joined(block)]
    rest = FENCE.sub("", text)
    quoted += re.findall(r"^    (\S.*)$", rest, re.MULTILINE) + re.findall(r"`([^`\n]+)`", rest)
    for line in quoted:
        line = re.sub(r"(^|\s+)#\s.*", "", line).strip()
        for runner in RUNNERS:
            line = line.removeprefix(runner)
        if COMMAND.match(line):
            yield line


def joined(block: str) -> list[str]:
    """Return the lines of a block, with continued lines joined."""
    return block.replace("\\\n", " ").splitlines()
