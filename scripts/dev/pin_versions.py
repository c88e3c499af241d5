"""Pin the versions that were tested: `python3 scripts/dev/pin_versions.py write`; try the newest: `… try`.

`write` takes the versions of this checkout's `uv.lock`, with which its tests ran, and writes them to `[tool.uv]` of pyproject.toml (for uv) and to
scripts/constraints.txt (for `pip install -c`). `write --newest` takes the newest instead. `try [pytest arguments]` installs the newest into a temporary
clone, runs every check there, and prints which versions differ and which checks fail; the checkout stays as it is.

Needs uv and nothing of the project's environment. `UV_PYTHON=3.13` chooses the interpreter of `try`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = "scripts/constraints.txt"
BLOCK = re.compile(
    r"# The versions that were tested[^\n]*\nconstraint-dependencies = \[\n.*?^\]\n", re.DOTALL | re.MULTILINE
)
HEADER = "# The versions that were tested; scripts/dev/pin_versions.py writes them here and in"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # each must install from wheels; no test has run on 3.14
PLATFORMS = (
    "x86_64-manylinux_2_35",
    "aarch64-manylinux_2_35",
    "aarch64-apple-darwin",
)  # the oldest that mlx has wheels for
OLDEST_MACOS = "14.0"  # of mlx's wheels
CHECKS = ("ruff check .", "ruff format --check .", "lint-imports", "mypy")  # of .ci/run; then pytest
TESTS = ("tests/unit", "tests/integration")


def unpinned(pyproject: str) -> str:
    """Return the text of pyproject.toml without its pins."""
    return BLOCK.sub("", pyproject)


def pinned(pyproject: str, pins: list[str]) -> str:
    """Return the text of pyproject.toml with these pins in `[tool.uv]`."""
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    block = f"[tool.uv]\n{HEADER} {CONSTRAINTS}.\nconstraint-dependencies = [\n{lines}]\n"
    return unpinned(pyproject).replace("[tool.uv]\n", block, 1)


def differences(before: list[str], now: list[str]) -> list[str]:
    """Return one line for each package whose versions differ, as `name: before → now`."""

    def versions(pins: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pin in pins:
            name, _, version = pin.partition("==")
            found.setdefault(name.strip(), []).append(version)
        return found

    old, new = versions(before), versions(now)
    return [
        f"{name}: {', '.join(old.get(name, ['absent']))} → {', '.join(new.get(name, ['absent']))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def read_pins(folder: Path) -> list[str]:
    """Return the pins of a checkout, without comments."""
    path = folder / CONSTRAINTS
    return [line for line in path.read_text().splitlines() if line and line[0] != "#"] if path.exists() else []


def resolve(folder: Path, *, newest: bool) -> list[str]:
    """Return the pins of a checkout: those of its `uv.lock`, or the newest that its pyproject.toml allows.

    Raises:
        CalledProcessError: No set of versions exists, or one has no wheel on a Python or platform; uv has printed why.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "pyproject.toml").write_text(unpinned((folder / "pyproject.toml").read_text()))
        if not newest:
            shutil.copy(folder / "uv.lock", place)
        uv(place, "lock", "-q")
        options = ["--no-hashes", "--no-annotate", "--no-header", "--no-emit-project", "-q"]
        exported = uv(place, "export", *options).splitlines()
        pins = [line.replace(" ; ", "; ") for line in exported if "'win32'" not in line]
        (place / "pins.txt").write_text("\n".join(pins))
        for python in PYTHONS:
            for platform in PLATFORMS:
                where = ("--python-version", python, "--python-platform", platform, "--only-binary", ":all:")
                uv(place, "pip", "compile", "-q", "-c", "pins.txt", "--group", "dev", *where, "pyproject.toml")
    return pins


def uv(folder: Path, *words: str) -> str:
    """Run uv in a folder and return its output."""
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS}
    return subprocess.run(
        ["uv", *words], cwd=folder, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def write(folder: Path, pins: list[str]) -> None:
    """Write the pins of a checkout for uv and for pip."""
    path = folder / "pyproject.toml"
    path.write_text(pinned(path.read_text(), pins))
    (folder / CONSTRAINTS).write_text("\n".join([f"{HEADER} pyproject.toml.", *pins, ""]))


@contextmanager
def clone() -> Iterator[Path]:
    """Yield a temporary clone of the last commit."""
    with tempfile.TemporaryDirectory(prefix="newest-") as name:
        folder = Path(name) / "clone"
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(folder)], check=True)
        yield folder


def try_newest(tests: list[str]) -> int:
    """Run every check with the newest versions; print which versions differ and which checks fail; return the exit code."""
    with clone() as folder:
        try:
            pins = resolve(folder, newest=True)
        except subprocess.CalledProcessError:
            print("broke: the newest versions can not be resolved; uv's message is above")
            return 1
        differing = differences(read_pins(folder), pins)
        if not differing:
            print("the pinned versions are the newest")
            return 0
        print(*differing, sep="\n", flush=True)
        write(folder, pins)
        uv(folder, "sync", "-q")
        commands = [*(check.split() for check in CHECKS), ["pytest", *(tests or TESTS)]]
        broken = [
            command[0] for command in commands if subprocess.run(["uv", "run", "-q", *command], cwd=folder).returncode
        ]
    if broken:
        print(f"broke with these versions: {', '.join(broken)}; output above")
        return 1
    print("nothing broke with these versions. Pin them: python3 scripts/dev/pin_versions.py write --newest")
    return 0


def main() -> int:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(description="Pin the versions that were tested, or try the newest.")
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write", help="write the pins of this checkout's uv.lock")
    writer.add_argument("--newest", action="store_true", help="the newest versions instead")
    trier = commands.add_parser("try", help="run every check with the newest versions, in a temporary clone")
    trier.add_argument("tests", nargs="*", help=f"arguments for pytest; default: {' '.join(TESTS)}")
    options = parser.parse_args()
    if options.command == "try":
        return try_newest(options.tests)
    before, pins = read_pins(ROOT), resolve(ROOT, newest=options.newest)
    write(ROOT, pins)
    print(*differences(before, pins), f"{len(pins)} pins in pyproject.toml and {CONSTRAINTS}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
