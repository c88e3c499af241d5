"""Run README's commands and snippets in order, as a new user would paste them.

    uv run scripts/dev/run_readme.py [--tests] [--folder DIR]

They run in an empty folder, in a fresh clone of this repository's last commit, without the folders next to the checkout. A comment
before a block's fence in README states what else the block needs:

    <!-- run: in a separate clone -->              the block creates another kind of environment
    <!-- run: in small -->                       as written it takes hours: small settings are put into cluster.toml
    <!-- run: in small, on the test bed -->      on hosts in network namespaces, whose names are put into the hostfile (root, Linux)
    <!-- skip: why -->                           the block is not run, with the reason
    <!-- output: COMMAND -->                     expected lines of the command that ends with COMMAND; times and rates may differ

The test suite (pytest) takes minutes and runs with `--tests` only. The summary goes to stdout, the output of the commands to the folder's
`log/`. The exit code is 1 if a command failed or printed something else.
"""

import argparse
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

FENCE = re.compile(r"(?:<!-- (run|skip|output):? ?(.*?) ?-->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBERS = re.compile(r"[\d,.]+(?= s\b| rows/s\b)")  # differ from run to run
LIMIT_S = 900.0  # of a command
TESTS_LIMIT_S = 1_800.0
MODES = ("in a separate clone", "in small", "in small, on the test bed")
# Settings for minutes in place of hours.
TRAINING = """\
context = 168
pieces = 1
piece_hours = 336
layers = 1
dim = 16
hidden = 16
head_dim = 16
patience = 999
steps = 4
validate_every = 4
checkpoint_every = 2
"""
CONTROL = """\
algorithm = "vtrace"
horizon = 6
label_jobs = 2
label_plans = 8
label_hours = 30
evaluate_every = 20
every = 13
baselines = ""
[clone]
width = 16
steps = 60
batch_size = 128
[vtrace]
jobs = 3
num_envs = 4
episode_hours = 48
width = 16
minibatch_size = 192
epochs = 2
iterations = 2
"""
SETTINGS = 'train-config = "small.toml"\ncontrol-config = "small-control.toml"\n'
SETTINGS_ON_BED = SETTINGS + 'data = "fleet"\nrespondents = "PACW"\nstart = "2019"\nend = "2021"\n'


@dataclass(frozen=True)
class Step:
    """One command or snippet of a page.

    Attributes:
        text: The command line, or the Python source.
        kind: "sh" or "python".
        mode: "" or one of `MODES`.
        skip: The reason why it is not run; "" to run it.
        output: Lines that it must print.
        codes: Exit codes that are correct: 0, and the one that the comment of the line names.
    """

    text: str
    kind: str
    mode: str = ""
    skip: str = ""
    output: str = ""
    codes: tuple[int, ...] = (0,)


def steps(page: str) -> list[Step]:
    """Return the commands and snippets of a page, in order.

    Raises:
        ValueError: A `run` mark names an unknown mode.
    """
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
    """Yield the commands of a shell block with their exit codes. Continued lines are joined, comments removed."""
    for line in block.replace("\\\n", " ").splitlines():
        command, _, comment = re.sub(r"(^|\s)#\s", "\0", line).partition("\0")
        if command.strip():
            code = re.search(r"exit code (\d+)", comment)
            yield command.strip(), (0, int(code[1])) if code else (0,)


def missing_line(printed: str, expected: str) -> str:
    """Return the first line of `expected` that `printed` lacks, in order, whatever the numbers in it; "" if it has all. A line `…` matches any lines."""
    rest = [NUMBERS.sub("N", line.strip()) for line in printed.splitlines()]
    for line in expected.splitlines():
        words = NUMBERS.sub("N", line.strip())
        if words in ("", "…"):
            continue
        if words not in rest:
            return line.strip()
        rest = rest[rest.index(words) + 1 :]
    return ""


def is_suite(step: Step) -> bool:
    """Return whether the step is the whole test suite."""
    return step.kind == "sh" and bool(re.search(r"(^|/| )pytest$", step.text))


class FreshClone:
    """A folder with fresh clones of the repository, in which steps run one after the other."""

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
        """Clone the repository into the folder and return the path."""
        path = self.folder / name
        subprocess.run(["git", "clone", "--quiet", ROOT, path], check=True)
        return path

    def run(self, step: Step) -> tuple[int, str]:
        """Run a step and return its exit code and stdout. Exit code 124: it exceeded its time limit."""
        place, text = self.home, step.text
        if step.mode == "in a separate clone":
            place = self.folder / "by-pip"
            place = place if place.exists() else self.clone(place.name)
        elif step.mode.startswith("in small"):
            self.configure_small(on_bed="bed" in step.mode)
            if text.startswith(("mlx.launch", "uv run mlx.launch")):
                text += " --config small.toml --data fleet --run by-hand"  # it reads no cluster.toml
        if step.kind == "python":
            (place / "program.py").write_text(text)
            start = re.search(r"start with: (.*)", text)
            text = "uv run " + (start[1].strip() if start else "python program.py")
        command = ["bash", "-c", text]
        if self.bed is not None and "bed" in step.mode:
            command = self.bed.hosts[0].inside(["bash", "-c", f"cd {shlex.quote(str(place))} && {text}"])
        return self.execute(command, place, TESTS_LIMIT_S if is_suite(step) else LIMIT_S)

    def execute(self, command: list[str], place: Path, limit_s: float) -> tuple[int, str]:
        """Run a command in `place`, with its output in the log. Return the exit code (124 after `limit_s` seconds) and stdout."""
        self.number += 1
        out, err = (self.log / f"{self.number:02d}.{name}" for name in ("out", "err"))
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                command,
                cwd=place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
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

    def configure_small(self, *, on_bed: bool) -> None:
        """Write small settings; on the test bed also a smaller period, and its hosts into the hostfile."""
        (self.home / "small.toml").write_text(TRAINING)
        (self.home / "small-control.toml").write_text(CONTROL)
        if on_bed:
            if self.bed is None:
                sweep()
                self.bed = Bed(4, BY_HAND).up()
            # The PATH in its hostfile begins with this interpreter's folder; here it must be the clone's.
            here, theirs = str(Path(sys.executable).parent), str(self.home / ".venv" / "bin")
            (self.home / "hostfiles" / "m2x4.json").write_text(self.bed.hostfile.read_text().replace(here, theirs))
        (self.home / "cluster.toml").write_text(SETTINGS_ON_BED if on_bed else SETTINGS)

    def close(self) -> None:
        """Take the test bed down."""
        if self.bed is not None:
            self.bed.down()


def main() -> int:
    """Run all steps of README and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tests", action="store_true", help="also run the test suite: minutes")
    parser.add_argument("--folder", type=Path, help="an empty folder, which is kept; default: a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="readme-"))
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: name another --folder")
    no_bed = missing()
    clone, failures = FreshClone(folder.resolve()), 0
    try:
        for step in steps((ROOT / "README.md").read_text()):
            skip = step.skip or ("" if options.tests or not is_suite(step) else "the test suite: give --tests")
            if "bed" in step.mode and no_bed:
                skip = no_bed
            began = time.monotonic()
            code, printed = (0, "") if skip else clone.run(step)
            result = f"skipped: {skip}" if skip else "ok"
            if not skip and code not in step.codes:
                result = f"exit code {code}"
            elif not skip and (line := missing_line(printed, step.output)):
                result = f"not printed: {line}"
            failures += result not in ("ok", f"skipped: {skip}")
            title = step.text if step.kind == "sh" else f"python: {step.text.strip().splitlines()[-1]}"
            seconds = "" if skip else f"{time.monotonic() - began:.1f} s"
            print(f"{seconds:>8}  {result:<10}  {title}", flush=True)
    finally:
        clone.close()
    print(f"{failures} failed; output in {clone.log}")
    if options.folder is None and not failures:
        shutil.rmtree(folder)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
