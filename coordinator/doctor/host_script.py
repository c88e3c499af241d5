"""The program that `coordinator doctor` runs on each host: one JSON order a line on stdin, one JSON answer a line on stdout.

It changes nothing on the host. The doctor sends this file unchanged over ssh, so that a host without the project can be examined.
Therefore it uses the standard library alone and only syntax of Python 3.6: an old Python is a finding, not a syntax error.
"""

import errno
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time

PROBE_S = 120.0  # bound of one probe of speeds
DIAL_S = 3.0  # time-out of a connection to a neighbour
ROUND_TRIPS = 21
BURST_S = 0.4  # duration of sending at full speed
PIECE = 1 << 18  # bytes


def facts(order):
    """Collect the facts of this host.

    Args:
        order: data (folder), keys (folder), ports, packages, addresses, probe (whether to measure speeds), environment (variables
            of the probes).
    """
    data = os.path.expanduser(order["data"])
    there = data
    while not os.path.exists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(terse=True),
        **system(),
        "versions": {name: version_of(name) for name in order["packages"]},
        "busy": [port for port in order["ports"] if port_refusal("", port, order["addresses"])],
        "data": data,
        "free": shutil.disk_usage(there).free,
        "unwritable": unwritable(there),
        "open_keys": open_keys(os.path.expanduser(order["keys"])),
        "holder": holder(data),
        "formats": formats(data),
        "sleep": sleep_settings(),
        "asked_from": os.environ.get("SSH_CONNECTION", "").partition(" ")[0],
        "addresses": [address for address in order["addresses"] if own(address)],
        "probe": probe(order["environment"]) if order["probe"] else None,
        "rank_probe": probe(order["environment"], "--as-rank") if order["probe"] else None,
    }


def system():
    """Return what decides whether mlx has a wheel for this Python."""
    libc, version = platform.libc_ver()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "macos": platform.mac_ver()[0],
        "glibc": version if libc == "glibc" else "",
    }


def version_of(name):
    """Return the version of an installed package, or None."""
    try:
        from importlib import metadata

        return metadata.version(name)
    except Exception:  # no such package, or a Python without this module: unusable in both cases
        return None


def port_refusal(address, port, more_addresses=()):
    """Return why a server cannot use this port of this host, or "" when it can.

    BSD's SO_REUSEADDR, which servers set so that connections of an ended run do not block the port, lets a socket bind the wildcard beside a
    listener on one address, and the reverse. So each address is bound and dialled on its own.

    Args:
        address: where the server will listen; "" means every IPv4 address.
        port: the port.
        more_addresses: further addresses to try; those that are not this host's are left out.
    """
    loopback = "::1" if ":" in address else "127.0.0.1"
    for one in [address] + [other for other in [loopback, *more_addresses] if other != address and own(other)]:
        refusal = bind_refusal(one, port)
        if refusal:
            return refusal
        if port and answers(one or loopback, port):
            return "%s answers there already" % (one or loopback)
    return ""


def bind_refusal(address, port):
    """Return why this address and port cannot be bound, or ""."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def answers(address, port):
    """Return whether a listener of this host accepts a connection at this address."""
    try:
        socket.create_connection((address, port), timeout=DIAL_S).close()
    except OSError:
        return False
    return True


def own(address):
    """Return whether the address is this host's: it can bind it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def unwritable(folder):
    """Return why the folder cannot be written, or "".

    It writes a file, because root may write where the mode forbids it and NFS may forbid it where the mode allows it.
    """
    path = os.path.join(
        folder, f".doctor-{os.urandom(8).hex()}"
    )  # random: hosts that share the folder may share process ids
    try:
        with open(path, "xb") as file:
            file.write(b"x" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return ""


def open_keys(folder):
    """Return the key files that other users can read."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            if name[0] != "." and name.endswith((".key", "allowed.json")) and os.stat(path).st_mode & 0o077:
                found.append(path)
    return sorted(found)


def holder(data):
    """Return which process holds the data folder.

    Returns:
        [pid, command] of a running process; [0, endpoint] that a killed coordinator left; None when it is free.
    """
    import fcntl

    try:
        with open(os.path.join(data, ".lock"), encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                known = json.load(file)
                return [known["pid"], known["command"]]
        with open(os.path.join(data, ".endpoint"), encoding="utf-8") as file:
            return [0, file.read()]
    except (OSError, ValueError, KeyError):
        return None


def formats(data):
    """Return the formats of the manifests in the data folder, one per folder; None for an unreadable one."""
    found = []
    for base, _, names in os.walk(os.path.join(data, "manifests")):
        name = next((name for name in sorted(names) if name[0] != "." and name.endswith(".json")), None)
        if name is not None:
            try:
                with open(os.path.join(base, name), encoding="utf-8") as file:
                    found.append(json.load(file).get("format", 1))  # the first format has no such key
            except (OSError, ValueError, AttributeError):
                found.append(None)
    return found


def sleep_settings():
    """Return the settings of `pmset -g custom` on mains power, name → minutes; None on other systems than macOS.

    Written from pmset's manual page; never run on a Mac.
    """
    if sys.platform != "darwin":
        return None
    try:
        text = subprocess.check_output(["pmset", "-g", "custom"], timeout=10).decode()
    except (OSError, subprocess.SubprocessError):
        return {}
    found, mains = {}, False
    for line in text.splitlines():
        if line.endswith(":"):
            mains = line.startswith("AC Power")
        elif mains and len(line.split()) == 2:
            found[line.split()[0]] = line.split()[1]
    return found


def probe(more, *arguments):
    """Return what `python -m worker.process.probe` prints with `more` environment variables, or the last line of its error."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MLX_RANK", "MLX_HOSTFILE")}
    environment.update(more)
    command = [sys.executable, "-m", "worker.process.probe", *arguments]
    try:
        done = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, stdin=subprocess.DEVNULL
        )
        out, err = done.communicate(timeout=PROBE_S)
        return (
            json.loads(out.decode().splitlines()[-1]) if done.returncode == 0 else err.decode().strip().splitlines()[-1]
        )
    except subprocess.TimeoutExpired:
        done.kill()
        done.communicate()
        return f"no answer within {PROBE_S:g} s"
    except (OSError, ValueError, IndexError) as error:
        return str(error)


def listen(order):
    """Listen on a free port of this address for one link measurement within 30 s. Address "" means any IPv4 address."""
    family = socket.AF_INET6 if ":" in order["address"] else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.bind((order["address"], 0))
        listening.listen(1)
    except OSError as error:
        listening.close()
        return {"error": f"can't listen on {order['address']}: {error.strerror}"}
    listening.settimeout(30.0)
    thread = threading.Thread(target=answer, args=(listening,))
    thread.daemon = True
    thread.start()
    return {"port": listening.getsockname()[1]}


def answer(listening):
    """Serve one link measurement: echo the round trips, then report the bytes received and the seconds."""
    try:
        with listening:
            connection, _ = listening.accept()
        with connection:
            connection.settimeout(DIAL_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUND_TRIPS):
                connection.sendall(connection.recv(1))
            taken, began = 0, time.monotonic()
            while True:
                piece = connection.recv(PIECE)
                taken += len(piece)
                if not piece or piece[-1:] == b"E":
                    break
            connection.sendall(f"{taken} {time.monotonic() - began}\n".encode())
    except OSError:
        pass  # the dialling side reports it


def dial(order):
    """Measure the link to a neighbour.

    Returns:
        {"delay_s", "bytes_per_s"}, delay one way; or {"error"}.
    """
    try:
        connection = socket.create_connection((order["address"], order["port"]), timeout=DIAL_S)
    except OSError as error:
        return {"error": error.strerror or str(error), "error_name": errno.errorcode.get(error.errno or 0, "")}
    try:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            for _ in range(ROUND_TRIPS):
                began = time.monotonic()
                connection.sendall(b"x")
                connection.recv(1)
                times.append(time.monotonic() - began)
            until = time.monotonic() + BURST_S
            while time.monotonic() < until:
                connection.sendall(b"x" * PIECE)
            connection.sendall(b"E")
            words = connection.makefile().readline().split()
            return {
                "delay_s": sorted(times)[ROUND_TRIPS // 2] / 2,
                "bytes_per_s": int(words[0]) / max(float(words[1]), 1e-6),
            }
    except (OSError, IndexError, ValueError) as error:
        return {"error": f"the connection broke during the measurement: {error}"}


def clock(order):
    """Return this host's time, in seconds since 1970."""
    return {"time": time.time()}


ORDERS = {"facts": facts, "listen": listen, "dial": dial, "clock": clock}


def main():
    """Answer one order a line from stdin until it ends."""
    for line in sys.stdin.buffer:
        order = json.loads(line.decode())
        print(json.dumps(ORDERS[order["do"]](order)), flush=True)


if __name__ == "__main__":
    main()
