"""What `coordinator doctor` runs on each host: answers orders, a JSON line each, until its stdin ends. Changes nothing there.

Sent over ssh as it stands, so that a host without the project can still say what it lacks. Hence the standard library alone, and
nothing that Python 3.6 would not read: an old Python is a finding, not a syntax error.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time

PROBE_S = 120.0  # at most, for a probe of speeds
DIAL_S = 3.0  # for a connection to a neighbour
ROUND_TRIPS = 21
BURST_S = 0.4  # of sending as fast as the link takes it
PIECE = 1 << 18  # bytes


def facts(order):
    """What this host is and has. `order`: data (folder), ports, packages, probe (whether to measure), manifest_format."""
    data = os.path.expanduser(order["data"])
    there = data
    while not os.path.exists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.system(),
        "platform": platform.platform(terse=True),
        "versions": {name: version_of(name) for name in order["packages"]},
        "busy": [port for port in order["ports"] if not free(port)],
        "data": data,
        "free": shutil.disk_usage(there).free,
        "unwritable": unwritable(there),
        "open_keys": open_keys(os.path.expanduser(order["keys"])),
        "holder": holder(data),
        "formats": formats(data),
        "sleep": sleep_settings(),
        "asked_from": os.environ.get("SSH_CONNECTION", "").partition(" ")[0],
        "addresses": [address for address in order["addresses"] if own(address)],
        "probe": probe() if order["probe"] else None,
        "rank_probe": probe("--as-rank") if order["probe"] else None,
    }


def version_of(name):
    """Of an installed package; None where there is none."""
    try:
        from importlib import metadata

        return metadata.version(name)
    except Exception:  # no such package, or a Python without this module: either way it can't be used
        return None


def free(port):
    """Whether nothing listens on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def own(address):
    """Whether this host has the address: it can listen on it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def unwritable(folder):
    """Why nothing can be written there, or "". Tried with a file, since root may write where the mode says no and NFS may not."""
    path = os.path.join(folder, f".doctor-{os.urandom(8).hex()}")  # hosts that share it may share process ids too
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
    """Key files that others can read."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            if name.endswith((".key", "allowed.json")) and os.stat(path).st_mode & 0o077:
                found.append(path)
    return sorted(found)


def holder(data):
    """Who holds the data folder: [pid, command], or whose endpoint file was left behind: [0, endpoint]. None: nobody."""
    import fcntl

    try:
        with open(os.path.join(data, ".lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                known = json.load(file)
                return [known["pid"], known["command"]]
        with open(os.path.join(data, ".endpoint")) as file:
            return [0, file.read()]
    except (OSError, ValueError, KeyError):
        return None


def formats(data):
    """Formats of manifests found in the data folder, one of each folder."""
    found = []
    for base, _, names in os.walk(os.path.join(data, "manifests")):
        name = next((name for name in sorted(names) if name.endswith(".json")), None)
        if name is not None:
            try:
                with open(os.path.join(base, name)) as file:
                    found.append(json.load(file).get("format", 1))  # the first format's did not say so
            except (OSError, ValueError, AttributeError):
                found.append(None)
    return found


def sleep_settings():
    """macOS: `pmset -g custom` on mains power, name → minutes. None elsewhere. Written from its manual page, not run here."""
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


def probe(*arguments):
    """What `python -m worker.process.probe` prints, or the last words of its failure."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MLX_RANK", "MLX_HOSTFILE")}
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
    """A port of this address at which a neighbour may measure the link, once within 30 s. Address "": any of IPv4."""
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
    """The listening end of a link's measurement: sends back what it gets, then says how much came, and in what time."""
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
        pass  # the one who dials tells of it


def dial(order):
    """Reach a neighbour: {"delay_s", "bytes_per_s"} of the link, or {"error"}."""
    try:
        connection = socket.create_connection((order["address"], order["port"]), timeout=DIAL_S)
    except OSError as error:
        return {"error": error.strerror or str(error)}
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
        return {"error": f"it answered, and then no more: {error}"}


def clock(order):
    """This host's time, s since 1970."""
    return {"time": time.time()}


ORDERS = {"facts": facts, "listen": listen, "dial": dial, "clock": clock}


def main():
    """One order a line from stdin, one answer a line to stdout."""
    for line in sys.stdin.buffer:
        order = json.loads(line.decode())
        print(json.dumps(ORDERS[order["do"]](order)), flush=True)


if __name__ == "__main__":
    main()
