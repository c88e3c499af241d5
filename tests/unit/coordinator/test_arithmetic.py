"""What decides bits: compared between hosts, and carried to them."""

from __future__ import annotations

from coordinator.workers.arithmetic import describe_difference
from coordinator.workers.hostfile import Hosts


def test_difference_names_each_group_of_hosts() -> None:
    assert describe_difference({"m0": "OpenBLAS, kernel Haswell", "m1": "OpenBLAS, kernel Haswell", "m2": ""}) == ""
    words = describe_difference({"m0": "kernel Haswell", "m1": "kernel SkylakeX", "m2": "kernel Haswell"})
    assert words.startswith("m0, m2: kernel Haswell; m1: kernel SkylakeX: ") and "OPENBLAS_CORETYPE" in words


def test_kernel_of_this_environment_goes_to_every_host() -> None:
    environ = {"OPENBLAS_CORETYPE": "Haswell", "HOME": "/root"}
    assert Hosts((), 0).worker_environment(environ) == {"OPENBLAS_CORETYPE": "Haswell"}
    named = Hosts((), 0, (("OPENBLAS_CORETYPE", "Nehalem"), ("A", "1")))
    assert named.worker_environment(environ) == {"OPENBLAS_CORETYPE": "Nehalem", "A": "1"}
