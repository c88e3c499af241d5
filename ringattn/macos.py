"""What macOS does differently and its errors do not say: refused permissions, RDMA without a deadline, a variable that locks GPUs."""

import errno
import platform
import sys
from collections.abc import Mapping

LOCAL_NETWORK = (
    "macOS 15 and later refuse programs the local network in this way: allow this one in System Settings → Privacy & Security → "
    "Local Network, or start it from Terminal, over ssh, or as a LaunchDaemon, which need no permission (a LaunchAgent does)"
)
FAST_SYNCH = "MLX_METAL_FAST_SYNCH"
JACCL_REFUSAL = (
    "JACCL (RDMA over Thunderbolt 5) has no deadline: when a rank dies or a cable is pulled, the others wait for ever or crash (mlx issues "
    "3910, 4278, 4192), and with two hosts its mesh may take a finished send for a received block"
)
_JACCL_VARIABLES = ("MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR")


def local_name_problem(address: str) -> str:
    """Return why a ring takes no name of multicast DNS as an address; "" for any other address."""
    if not address.lower().rstrip(".").endswith(".local"):
        return ""
    return (
        f"{address} is a name that may resolve to IPv6 first, while mlx's ring opens IPv4 sockets. Write the address "
        "(`ipconfig getifaddr en0` on that host shows it)"
    )


def describes_jaccl(environ: Mapping[str, str]) -> bool:
    """Return whether these variables make mlx start JACCL, as `mlx.launch --backend jaccl` sets them."""
    return any(environ.get(name) for name in _JACCL_VARIABLES)


def fast_synch_warning(environ: Mapping[str, str]) -> str:
    """Return what is wrong with a set MLX_METAL_FAST_SYNCH, or ""."""
    value = environ.get(FAST_SYNCH, "")
    if value in ("", "0"):
        return ""
    return f"{FAST_SYNCH}={value} can lock a Mac's GPU until it is restarted (mlx issues 3142, 3830)"


def refused_python(system: str = "", machine: str = "") -> str:
    """Return why this Python cannot run the project, or "". There is no mlx for x86_64 on macOS, so pip and uv install none.

    Args:
        system: `sys.platform`; "" asks this Python.
        machine: `platform.machine()`; "" asks this Python.
    """
    if (system or sys.platform) != "darwin" or (machine or platform.machine()) != "x86_64":
        return ""
    return (
        "this Python is built for x86_64, and mlx exists for Apple Silicon alone: an Intel Mac cannot run this project. On a Mac with "
        "Apple Silicon use a Python for arm64: `uv python install cpython-3.12-macos-aarch64`, then `uv sync` in a new environment"
    )


def compiler_hint(system: str = "") -> str:
    """Return how to get a C compiler on this system, or on that of `system`, a `sys.platform`.

    `/usr/bin/clang` is there on every Mac, but without Xcode's tools it is a stub that fails, so a search on PATH finds it.
    """
    if (system or sys.platform) == "darwin":
        return "`xcode-select --install` (until then macOS's own `clang` is a stub without a compiler)"
    return "install gcc or clang"


def local_network_hint(error: str, system: str = "") -> str:
    """Return what to do about a failed connection, or "" where macOS's local network privacy is not its cause.

    Since macOS 15 a program without the permission gets EHOSTUNREACH at once (Apple's technote TN3179). Written from it; never
    run on a Mac.

    Args:
        error: name of the connection's errno, as `error_name` returns: the numbers differ between systems.
        system: `sys.platform` or `platform.system()` of the host that connected; "" for this one.
    """
    return LOCAL_NETWORK if error == "EHOSTUNREACH" and (system or sys.platform).lower() == "darwin" else ""


def error_name(error: OSError) -> str:
    """Return the name of an error's errno, such as "EHOSTUNREACH", or ""."""
    return errno.errorcode.get(error.errno or 0, "")
