"""Files that the language model commands cannot use: subject, cause and next step, once for all ranks, and no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

from ringattn import launch
from ringattn._errors import ArgumentError
from ringattn.lm import finetune, generate, tiny_model
from ringattn.lm.load import load

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "g b"
    assert tiny_model.main([str(folder)]) == 0
    return folder


def one_line(capfd: Capture, *parts: str) -> None:
    err = capfd.readouterr().err
    for part in parts:
        assert part in err, err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_is_named(name: str, model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if path.name == name else data)
    with pytest.raises(
        ArgumentError, match=rf"{tmp_path}: the model cannot be loaded: .*; copy or download"
    ) as refusal:
        load(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("program", [generate, finetune])
def test_the_commands_say_a_damaged_model_in_one_line(program, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "config.json").write_text("{")
    rest = ["--prompt", "x"] if program is generate else ["--data", "x"]
    with pytest.raises(SystemExit, match="2"):
        program.main(["--model", str(tmp_path), *rest])
    one_line(capfd, f"{tmp_path}: the model cannot be loaded")


@pytest.mark.parametrize(("data", "cause"), [(None, "No such file or directory"), (b"\x9a", "'utf-8' codec")])
def test_a_prompt_file_that_cannot_be_read_is_named(
    data: bytes | None, cause: str, tmp_path: Path, capfd: Capture
) -> None:
    path = tmp_path / "prompt.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--model", str(tmp_path), "--prompt-file", str(path)])
    one_line(capfd, f"generate: {path} cannot be read: {cause}", "name a text file in UTF-8 with --prompt-file")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (None, "No such file or directory"),
        (b"\x9a", "'utf-8' codec"),
        (b"{", "Expecting property name"),
        (b"3", "example 1 is no JSON object"),
        (b'{"text": "a"}\n{"t": "b"}', "example 2 has no 'text'"),
    ],
)
def test_data_that_cannot_be_used_is_named(data: bytes | None, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArgumentError, match=rf"{path}: {cause}.*; give JSON lines"):
        finetune.read_data(path, None, mask_prompt=False)


def test_a_model_that_cannot_be_written_is_named(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "file").touch()
    assert tiny_model.main([str(tmp_path / "file" / "x")]) == 2
    one_line(capfd, f"tiny_model: {tmp_path / 'file' / 'x'}: the model cannot be written: Not a directory")


def test_adapters_that_cannot_be_written_or_read_are_named(model: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "data").write_text(json.dumps({"text": "hello"}))
    (tmp_path / "file").touch()
    small = ["--model", str(model), "--data", str(tmp_path / "data"), "--batch-size", "1", "--num-layers", "1"]
    with pytest.raises(SystemExit, match="2"):
        finetune.main([*small, "--adapter-path", str(tmp_path / "file" / "x")])
    one_line(capfd, f"{tmp_path / 'file' / 'x'}: adapter_config.json cannot be written: Not a directory")
    (tmp_path / "training_state.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        finetune.main([*small, "--adapter-path", str(tmp_path), "--resume"])
    one_line(capfd, f"finetune: {tmp_path}: the checkpoint cannot be read")


def test_one_of_two_ranks_says_it(tmp_path: Path) -> None:
    argv = ["-m", "ringattn.lm.generate", "--model", "x", "--prompt-file", str(tmp_path / "nope.txt")]
    done = subprocess.run(
        [sys.executable, "-m", "ringattn.launch", "-n", "2", *argv], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("nope.txt cannot be read") == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.long
def test_one_of_two_ranks_says_that_a_checkpoint_is_damaged(model: Path, tmp_path: Path) -> None:
    """The other rank was in the exchange of the weights, and its PeerLost hid the cause."""
    (tmp_path / "data").write_text('{"text": "hello"}\n' * 2)
    (tmp_path / "training_state.json").write_text("{")
    argv = ["-m", "ringattn.lm.finetune", "--model", str(model), "--data", str(tmp_path / "data"), "--batch-size", "1"]
    argv += ["--num-layers", "1", "--adapter-path", str(tmp_path), "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "ringattn.launch", "-n", "2", *argv], capture_output=True, text=True, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1 and said.count("the checkpoint cannot be read") == 1, said
    assert "PeerLost" not in said and "Traceback" not in said and "[ring]" not in said, said


@pytest.mark.long
def test_a_fault_of_the_other_rank_ends_both_on_all_hosts(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in launch.free_ports(2)]))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "prompt").write_text("x")
    (tmp_path / "1").mkdir()
    assert tiny_model.main([str(tmp_path / "model")]) == 0
    argv = [sys.executable, "-m", "ringattn.lm.generate", "--model", str(tmp_path / "model"), "--prompt-file", "prompt"]
    ranks = [
        subprocess.Popen(
            argv, cwd=tmp_path / str(rank), stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **launch.rank_environment(rank, 2, hosts)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "generate: prompt cannot be read" in said[1]
    assert "generate:" not in said[0]
