"""What macOS does differently and its errors do not say: a refused permission looks like a network without a route."""

import errno
import sys

LOCAL_NETWORK = (
    "macOS 15 and later refuse programs the local network in this way: allow this one in System Settings → Privacy & Security → "
    "Local Network, or start it from Terminal, over ssh, or as a LaunchDaemon, which need no permission (a LaunchAgent does)"
)


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
