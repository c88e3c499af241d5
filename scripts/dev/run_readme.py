"""README's commands and snippets in their order, as a stranger would paste them: `uv run scripts/dev/run_readme.py [--tests] [--folder DIR]`.

In an empty folder, in a fresh clone of this repository's last commit with nothing beside it. What a block needs beyond that stands in
a comment before its fence in README, and is all that this script knows of a block:

    <!-- run: in a clone of its own -->          it makes an environment that another block made in another way
    <!-- run: in small -->                       as it stands it takes hours: small settings lie in cluster.toml
    <!-- run: in small, on the test bed -->      on hosts in network namespaces, whose names are filled into the hostfile (root, Linux)
    <!-- skip: why -->                           not run, and why
    <!-- output: COMMAND -->                     the lines that the command said which ends in this; times and rates differ

The suite itself (pytest) takes minutes: `--tests`. The summary goes to stdout, what commands say to the folder's `log/`; exit code 1
when a command failed or said something else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT)]

from scripts.testbed.bed import BY_HAND, Bed, missing, sweep  # noqa: E402
from tests.support.control_data import config as control_config  # noqa: E402
from tests.support.program import PLAN, TRAINING  # noqa: E402

FENCE = re.compile(r"(?:<!-- (run|skip|output):? ?(.*?) ?-->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBERS = re.compile(r"[\d,.]+(?= s\b| rows/s\b)")  # what differs from run to run
LIMIT_S = 900.0  # of a command
TESTS_LIMIT_S = 1_800.0
MODES = ("in a clone of its own", "in small", "in small, on the test bed")


@dataclass(frozen=True)
class Step:
    """One command or snippet. `mode`: "" or one of MODES; `skip`: why it is not run; `output`: what it has to say.

    `codes`: exit codes that are as they should be: 0, and the one that its own comment names.
    """

    text: str
    kind: str  # sh | python
    mode: str = ""
    skip: str = ""
    output: str = ""
    codes: tuple[int, ...] = (0,)


def steps(page: str) -> list[Step]:
    """All of a page, in its order. ValueError for a mark that means nothing."""
    found: list[Step] = []
    for mark, words, kind, content in FENCE.findall(page):
        if mark == "output":
            found = [replace(step, output=content) if step.text.endswith(words) else step for step in found]
        elif kind == "sh":
            if mark == "run" and words not in MODES:
                raise ValueError(f"<!-- run: {words} -->: known are {', '.join(MODES)}")
            mode, skip = (words, "") if mark == "run" else ("", words)
            found += [Step(line, "sh", mode, skip, codes=codes) for line, codes in lines(content)]
        elif kind == "python":
            found.append(Step(content, "python"))
    return found


def lines(block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Commands of a block of shell with their exit codes: continued lines as one, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        command, _, comment = re.sub(r"(^|\s)#\s", "\0", line).partition("\0")
        if command.strip():
            code = re.search(r"exit code (\d+)", comment)
            yield command.strip(), (0, int(code[1])) if code else (0,)


def differs(said: str, wanted: str) -> str:
    """The first line of `wanted` that does not stand in `said`, in order; "" where all do. A line `…` stands for any."""
    rest = [NUMBERS.sub("N", line.strip()) for line in said.splitlines()]
    for line in wanted.splitlines():
        words = NUMBERS.sub("N", line.strip())
        if words in ("", "…"):
            continue
        if words not in rest:
            return line.strip()
        rest = rest[rest.index(words) + 1 :]
    return ""


def is_suite(step: Step) -> bool:
    """Whether it is the whole suite of tests."""
    return step.kind == "sh" and bool(re.search(r"(^|/| )pytest$", step.text))


class Stranger:
    """An empty folder, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.log.mkdir(parents=True)
        self.home = self.clone("ring-attention-energy")
        self.bed: Bed | None = None
        self.number = 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORDINATOR_", "EIA_"))}
        for name in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT"):
            kept.pop(name, None)
        self.environment = kept

    def clone(self, name: str) -> Path:
        """A fresh clone in the folder."""
        path = self.folder / name
        subprocess.run(["git", "clone", "--quiet", ROOT, path], check=True)
        return path

    def run(self, step: Step) -> tuple[int, str]:
        """Exit code, and what it said on stdout. 124: it ran into its limit."""
        place, text = self.home, step.text
        if step.mode == "in a clone of its own":
            place = self.folder / "by-pip"
            place = place if place.exists() else self.clone(place.name)
        elif step.mode.startswith("in small"):
            self.small(on_bed="bed" in step.mode)
            if text.startswith(("mlx.launch", "uv run mlx.launch")):
                text += " --config small.toml --data fleet --run by-hand"  # it reads no cluster.toml
        if step.kind == "python":
            (place / "program.py").write_text(text)
            start = re.search(r"start with: (.*)", text)
            text = "uv run " + (start[1].strip() if start else "python program.py")
        command = ["bash", "-c", text]
        if self.bed is not None and "bed" in step.mode:
            command = self.bed.hosts[0].inside(["bash", "-c", f"cd {shlex.quote(str(place))} && {text}"])
        return self.told(command, place, TESTS_LIMIT_S if is_suite(step) else LIMIT_S)

    def told(self, command: list[str], place: Path, limit_s: float) -> tuple[int, str]:
        """Run it in `place`, its words to the log."""
        self.number += 1
        out, err = (self.log / f"{self.number:02d}.{name}" for name in ("out", "err"))
        with out.open("w") as said, err.open("w") as narrated:
            process = subprocess.Popen(
                command,
                cwd=place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=narrated,
                start_new_session=True,
            )
            try:
                code = process.wait(limit_s)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, KeyboardInterrupt):
                    raise
                code = 124
        return code, out.read_text()

    def small(self, *, on_bed: bool) -> None:
        """Settings for minutes in place of hours; on the bed a smaller period too, and its hosts in the hostfile."""
        training = {**TRAINING, "steps": 4, "validate_every": 4, "checkpoint_every": 2}
        (self.home / "small.toml").write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in training.items())
        )
        control_config(self.home / "small-control.toml", 2)
        settings = {"train-config": "small.toml", "control-config": "small-control.toml"}
        if on_bed:
            if self.bed is None:
                sweep()
                self.bed = Bed(4, BY_HAND).up()
            # Its PATH begins with this interpreter's folder; a stranger's is the clone's.
            here, theirs = str(Path(sys.executable).parent), str(self.home / ".venv" / "bin")
            (self.home / "hostfiles" / "m2x4.json").write_text(self.bed.hostfile.read_text().replace(here, theirs))
            settings |= {
                "data": "fleet",
                **{name.removeprefix("--"): value for name, value in zip(PLAN[::2], PLAN[1::2], strict=True)},
            }
        (self.home / "cluster.toml").write_text(
            "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        )

    def close(self) -> None:
        """The bed goes, whatever happened."""
        if self.bed is not None:
            self.bed.down()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tests", action="store_true", help="the suite as well: minutes")
    parser.add_argument("--folder", type=Path, help="an empty folder, which stays; else a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="readme-"))
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: name another --folder")
    no_bed = missing()
    stranger, wrong = Stranger(folder.resolve()), 0
    try:
        for step in steps((ROOT / "README.md").read_text()):
            skip = step.skip or ("" if options.tests or not is_suite(step) else "the suite: give --tests")
            if "bed" in step.mode and no_bed:
                skip = no_bed
            began = time.monotonic()
            code, said = (0, "") if skip else stranger.run(step)
            how = f"skipped: {skip}" if skip else "ok"
            if not skip and code not in step.codes:
                how = f"exit code {code}"
            elif not skip and (other := differs(said, step.output)):
                how = f"did not say: {other}"
            wrong += how not in ("ok", f"skipped: {skip}")
            title = step.text if step.kind == "sh" else f"python: {step.text.strip().splitlines()[-1]}"
            took = "" if skip else f"{time.monotonic() - began:.1f} s"
            print(f"{took:>8}  {how:<10}  {title}", flush=True)
    finally:
        stranger.close()
    print(f"{wrong} failed; words in {stranger.log}")
    if options.folder is None and not wrong:
        shutil.rmtree(folder)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
