"""The local launcher: output by rank, failures named, deadlines kept, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ringattn import RankFailed, RunTimeout, StartTimeout, launch


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # also if it ends between two calls
        return False


def gone(pids: list[int], within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(map(lives, pids)):
            return True
        time.sleep(0.05)
    return False


def test_output_arguments_and_environment_by_rank(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import os, sys, mlx.core as mx\n"
        "g = mx.distributed.init()\n"
        "print(g.rank(), g.size(), sys.argv[1:], os.environ['RINGATTN_THREADS'], os.environ['X'])\n",
    )
    echoed: list[tuple[int, str]] = []
    out = launch.run(
        2, [path, "a", "b"], env=lambda r: {"X": str(10 * r)}, echo=lambda *x: echoed.append(x), timeout=60
    )
    threads = launch.rank_environment(0, 2, tmp_path)["RINGATTN_THREADS"]
    assert out == [[f"{r} 2 ['a', 'b'] {threads} {10 * r}"] for r in range(2)]
    assert sorted(echoed) == [(r, out[r][0]) for r in range(2)]


def test_module_runs_as_python_runs_it(tmp_path: Path) -> None:
    """It was refused as an unknown option."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "ranks.py").write_text(
        "import sys, pathlib, mlx.core as mx\n"
        "print(mx.distributed.init().rank(), __name__, pathlib.Path(sys.argv[0]).name, sys.argv[1:])\n"
        "sys.exit(3 if 'fail' in sys.argv else 0)\n"
    )
    words = [sys.executable, "-m", "ringattn.launch", "-n", "2", "-m", "package.ranks", "--timeout", "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"[{rank}] {rank} __main__ ranks.py ['--timeout', '1']" for rank in range(2)
    ]
    failed = subprocess.run([*words, "fail"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and "(package.ranks)" in failed.stderr, failed.stderr


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (
            "os.kill(os.getpid(), 9)",
            "was ended by signal SIGKILL; rank 0 had ended before with exit code 0; it wrote nothing",
        ),
        (
            "sys.exit('lost it')",
            "ended with exit code 1; rank 0 had ended before with exit code 0; its last lines:\n  lost it",
        ),
    ],
)
def test_a_rank_that_ended_before_the_failure_is_named(tmp_path: Path, end: str, says: str) -> None:
    """A rank that leaves early, without an error, is why the others lose it."""
    path = script(
        tmp_path,
        "import os, sys, time, pathlib\n"
        "me, pid = os.environ['MLX_RANK'], pathlib.Path(sys.argv[1])\n"
        "if me == '0':\n"
        "    pid.with_suffix('.part').write_text(str(os.getpid()))\n"
        "    os.rename(pid.with_suffix('.part'), pid)\n"
        "    sys.exit(0)\n"
        "while not pid.exists(): time.sleep(0.01)\n"
        "try:\n"
        "    while True: os.kill(int(pid.read_text()), 0) or time.sleep(0.01)\n"  # until the launcher has seen its end
        "except ProcessLookupError:\n"
        f"    {end}\n",
    )
    with pytest.raises(RankFailed) as failed:
        launch.run(2, [path, str(tmp_path / "pid")], timeout=60)
    assert says in str(failed.value)


def test_failed_rank_is_named_and_ends_the_others(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import os, sys, time\n"
        "while os.environ['MLX_RANK'] != '1' or not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "sys.exit('boom')\n",
    )
    with launch.LocalRing(3, [path, str(tmp_path / "all joined")]) as ring:
        pids = [p.pid for p in ring.processes]
        (tmp_path / "all joined").touch()
        with pytest.raises(RankFailed, match=r"rank 1 of 3 .* exit code 1; its last lines:\n  boom") as failed:
            ring.wait(60)
        assert failed.value.rank == 1
        assert gone(pids)


def test_stop_ends_stopped_ranks_and_their_children(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid)\ntime.sleep(600)\n",
    )
    with launch.LocalRing(2, [path]) as ring:
        while not all(ring.output(rank) for rank in range(2)):
            time.sleep(0.05)
        pids = [p.pid for p in ring.processes] + [int(ring.output(rank)[0]) for rank in range(2)]
        os.kill(pids[0], signal.SIGSTOP)
    assert gone(pids)


def test_deadlines_raise_timeouts(tmp_path: Path) -> None:
    path = script(tmp_path, "import time\ntime.sleep(600)\n")
    with pytest.raises(RunTimeout, match="did not end within"):
        launch.run(2, [path], timeout=0.2)
    with pytest.raises((StartTimeout, RankFailed)):
        launch.run(2, [path], start_timeout=0.01)


@pytest.mark.skipif(
    sys.platform != "linux", reason="a stopped rank outlives a killed launcher where PDEATHSIG is missing"
)
def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    path = script(tmp_path, "import os, time\nprint(os.getpid())\ntime.sleep(600)\n")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "ringattn.launch", "-n", "2", path], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    pids = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
    os.kill(pids[1], signal.SIGSTOP)
    launcher.kill()
    launcher.communicate()
    assert gone(pids)


def test_command_line_fails_if_a_rank_fails(tmp_path: Path) -> None:
    path = script(tmp_path, "import json\nprint(json.dumps({'rank': 'one'}))\nraise SystemExit(3)\n")
    done = subprocess.run([sys.executable, "-m", "ringattn.launch", "-n", "1", path], capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout.removeprefix("[0] ")) == {"rank": "one"}
    assert "RankFailed: rank 0 of 1" in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "nomodule"], "launch: nomodule: no such module"),
        (["-m", "ringattn.nomodule.inner"], "launch: ringattn.nomodule.inner: no such module"),
        (["-m", "ringattn.lm"], "launch: ringattn.lm: a package without __main__"),
        (["no script.py"], "launch: no script.py: no such script"),
    ],
)
def test_a_program_that_is_not_there_is_one_line(
    argv: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["-n", "2", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_programs_that_are_there_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("alone.py", "here/__main__.py", "here/inner.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    for name in ("alone", "here", "here.inner", "ringattn.lm.generate", "json.tool"):
        assert launch.missing_program(["-m", name]) is None
    assert launch.missing_program(["alone.py"]) is None


def test_what_a_program_refuses_is_not_said_again(tmp_path: Path) -> None:
    path = script(tmp_path, "import sys\nprint('wrong argument')\nsys.exit(2)\n")
    done = subprocess.run([sys.executable, "-m", "ringattn.launch", "-n", "1", path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "[0] wrong argument\n"
    assert "exit code 2; the message is above" in done.stderr
    assert "wrong argument" not in done.stderr
