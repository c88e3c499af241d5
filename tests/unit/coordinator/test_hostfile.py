"""Hostfiles in mlx's format, and the version check before a remote worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.stages.fleet import reachable_bind
from coordinator.wire.auth import CurveError
from coordinator.workers.hostfile import Host, Hosts, per_host, read_hosts
from coordinator.workers.remote import check_handshake
from ingest.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
REQUIRED = {"python": "3.12", "ring-attention-energy": "0.1.0", "mlx": "0.32.0"}


def write_hostfile(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps(content))
    return path


def test_project_hostfiles_are_valid() -> None:
    four = read_hosts(ROOT / "hostfiles" / "m2x4.json", {"": "py", "m2-1.local": "other"}, {"": "~/data"})
    assert [host.name for host in four.remote] == [f"m2-{n}.local" for n in range(4)]
    assert [host.python for host in four.remote] == ["py", "other", "py", "py"]
    assert (four.remote[3].address, four.remote[3].data, four.size) == ("10.0.0.13", "~/data", 4)
    two = read_hosts(ROOT / "hostfiles" / "local2.json", {}, {})
    assert (two.remote, two.here, two.size) == ((), 2, 2)


def test_envs_and_a_bare_list_are_accepted(tmp_path: Path) -> None:
    entries = [{"ssh": "one", "ips": ["10.0.0.1"]}, {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]
    found = read_hosts(write_hostfile(tmp_path, {"hosts": entries, "envs": ["A=b=c"]}), {}, {})
    assert found.environment == (("A", "b=c"),) and found.here == 1
    assert read_hosts(write_hostfile(tmp_path, entries), {}, {}).size == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"hosts": []}, "expected a list"),
        ([{"ips": ["10.0.0.1"]}], "host 0 needs"),
        ([{"ssh": "-oProxyCommand=evil"}], "host 0 needs"),
        ([{"ssh": "a b"}], "host 0 needs"),
        ([{"ssh": "a", "ips": "10.0.0.1"}], 'a needs "ips"'),
        ([{"ssh": "a"}, {"ssh": "a"}], "is listed twice"),
        ({"hosts": [{"ssh": "a"}], "envs": ["PATH"]}, "NAME=value"),
        ([{"ssh": "a", "ips": ["10.0.0.1", "m2-1.Local."]}], r"a: in \"ips\", m2-1.Local. is a name .* IPv4 sockets"),
        ({"backend": "mpi", "hosts": [{"ssh": "a"}]}, "the coordinator starts mlx's TCP ring only"),
        ({"backend": ["jaccl"], "hosts": [{"ssh": "a"}]}, "is not supported"),
    ],
)
def test_invalid_hostfile_names_the_entry(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_hosts(write_hostfile(tmp_path, content), {}, {})


@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_rdma_is_never_run_as_tcp(tmp_path: Path, backend: str) -> None:
    """The file that `mlx.distributed_config --backend jaccl` writes."""
    entries = [
        {"ssh": "m5-0", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2"]},
        {"ssh": "m5-1", "ips": [], "rdma": ["rdma_en2", None]},
    ]
    path = write_hostfile(tmp_path, {"backend": backend, "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": entries})
    with pytest.raises(
        UsageError, match=rf'"backend": "{backend}" is not supported: JACCL .* no deadline.* Write "ring"'
    ):
        read_hosts(path, {}, {})


@pytest.mark.parametrize("value", ["", "any", "ring"])
def test_backends_of_the_tcp_ring_are_accepted(tmp_path: Path, value: str) -> None:
    assert read_hosts(write_hostfile(tmp_path, {"backend": value, "hosts": [{"ssh": "a"}]}), {}, {}).size == 1


def test_per_host_settings_are_parsed(tmp_path: Path) -> None:
    assert per_host("/py") == {"": "/py"}
    assert per_host("a=/x, /py") == {"a": "/x", "": "/py"} and per_host("") == {}
    assert per_host({"a": "/x"}) == {"a": "/x"}
    with pytest.raises(ValueError, match="listed twice"):
        per_host("/x,/y")
    with pytest.raises(UsageError, match="names 'b', but"):
        read_hosts(write_hostfile(tmp_path, [{"ssh": "a"}]), {"b": "/x"}, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"python": "3.9"}, "python 3.9 there, 3.12 here: name one of the same version with --host-python"),
        ({"mlx": "0.31.0"}, r"mlx 0.31.0 there, 0.32.0 here: `py -m pip install mlx==0.32.0` there"),
        ({"mlx": ""}, "mlx none there"),
    ],
)
def test_different_versions_are_refused(change: dict[str, str], words: str) -> None:
    found = check_handshake(Host("m2", "", "py", "d"), json.dumps(REQUIRED | change).encode(), REQUIRED)
    assert words in found if words else not found


def test_output_of_the_login_shell_is_named() -> None:
    assert "'Welcome to m2'" in check_handshake(Host("m2", "", "py", "d"), b"Welcome to m2\n", REQUIRED)


def test_bind_is_the_address_that_hosts_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts((Host("somewhere", "127.0.0.5", "py", "d"),), 0)
    assert reachable_bind("tcp://127.0.0.1:0", None) == "tcp://127.0.0.1:0"
    assert reachable_bind("tcp://10.0.0.9:5555", hosts) == "tcp://10.0.0.9:5555"
    with pytest.raises(UsageError, match=r"somewhere: .* is 127.*no other host reaches. Correct its `ips`"):
        reachable_bind("tcp://127.0.0.1:7", hosts)
    with pytest.raises((UsageError, CurveError), match="Give its `ips`"):
        reachable_bind("tcp://127.0.0.1:0", Hosts((Host("no-such-host.invalid", "", "py", "d"),), 0))
    for own, where in (("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")):
        monkeypatch.setattr("coordinator.stages.fleet.local_address_towards", lambda endpoint, own=own: own)
        assert reachable_bind("tcp://127.0.0.1:7", hosts) == f"tcp://{where}:7"
