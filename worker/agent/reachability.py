"""Say why no coordinator answers: ZeroMQ connects again for ever and reports no error of a connection."""

import logging
import socket
import threading

from coordinator.wire.auth import is_loopback
from ringattn.macos import error_name, local_network_hint

log = logging.getLogger(__name__)

DIAL_S = 3.0  # bound of one attempt


def explain_silence(endpoint: str) -> str:
    """Return why `tcp://host:port` takes no connection, or that it does. Blocks for at most `DIAL_S` seconds and the look-up of the name."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_S).close()
    except OSError as error:
        hint = local_network_hint(error_name(error))
        return f"{error.strerror or error}{hint and f'; {hint}'}"
    except ValueError as error:
        return str(error)
    return "the port accepts connections"


def key_advice(endpoint: str, *, keyed: bool) -> str:
    """Return how a worker's key can be the reason of the silence, to follow the words "check that `coordinator start` runs there"."""
    if is_loopback(endpoint):
        reason = "; a coordinator on loopback uses no keys, so start this worker without --key"
        return reason if keyed else ""
    if keyed:
        return " and that this worker's key is on its list (`coordinator keys list`)"
    return "; off loopback it needs --key FILE, made by `coordinator keys add NAME`"


def warn_of_silence(endpoint: str) -> None:
    """Log in a separate thread why no coordinator answers, since a connection may take seconds to fail."""

    def warn() -> None:
        log.warning("no coordinator answers at %s yet (%s); still trying", endpoint, explain_silence(endpoint))

    threading.Thread(target=warn, name="reachability", daemon=True).start()
