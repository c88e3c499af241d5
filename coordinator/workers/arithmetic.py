"""Compare what decides the bits of matrix products between hosts: BLAS library and kernel, as `ringattn.blas.library` and `ringattn.blas.loader` name them."""

from __future__ import annotations

from collections.abc import Mapping

REMEDY = (
    "results agree to rounding, not to the bit; to make them equal, install the same packages (`uv sync`) and set "
    "OPENBLAS_CORETYPE to a kernel that every host can run, e.g. Haswell"
)


def describe_difference(by_host: Mapping[str, str]) -> str:
    """Return which hosts round differently, and what to do; "" where all are equal.

    Args:
        by_host: Host's name → library and kernel; "" where the host did not tell, which is not compared.
    """
    groups: dict[str, list[str]] = {}
    for host, words in by_host.items():
        if words:
            groups.setdefault(words, []).append(host)
    if len(groups) < 2:
        return ""
    return "; ".join(f"{', '.join(hosts)}: {words}" for words, hosts in groups.items()) + f": {REMEDY}"
