"""Certificates of HTTPS sources: which authorities are trusted, and what to do about a certificate that is not."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from ingest.errors import SourceError, UsageError

VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # the first that is set names the trusted authorities
KIND = "certificate"


def ca_bundle() -> str:
    """Return the file or folder of trusted authorities that the environment names, or ""."""
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")


def certificate_error(host: str, error: BaseException) -> SourceError | None:
    """Return the error to raise where a server's certificate is the cause of `error`, else None."""
    open_, seen = [error], set()
    while open_:
        cause = open_.pop()
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceError(
                f"the certificate of {host} is not trusted: {cause.verify_message or cause.reason}. If the server is the right one, "
                "`export REQUESTS_CA_BUNDLE=FILE` with the certificates (PEM) of the authority that signed its certificate, or of "
                "the proxy that inspects TLS here; a self-signed certificate is its own authority.",
                KIND,
            )
        seen.add(id(cause))
        linked = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        open_ += [one for one in linked if isinstance(one, BaseException) and id(one) not in seen]
    return None


def trusted_context() -> ssl.SSLContext:
    """Return a TLS context that trusts what `ca_bundle` names; without one, the authorities that `requests` trusts.

    Raises:
        UsageError: the file or folder that the environment names can't be read, or holds no certificate.
    """
    context, bundle = create_urllib3_context(), ca_bundle() or DEFAULT_CA_BUNDLE_PATH
    folder = Path(bundle).is_dir()
    try:
        context.load_verify_locations(None if folder else bundle, bundle if folder else None)
    except OSError as error:  # an SSLError is one
        variable = next((name for name in VARIABLES if os.environ.get(name) == bundle), "certifi")
        cause = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(
            f"{variable} names {bundle}: {cause}. Set it to a file of certificates (PEM), or `unset {variable}`."
        ) from None
    return context


def check_certificate(connection: socket.socket, host: str) -> None:
    """Do a TLS handshake on a new connection, with the trust of `make_session`.

    UsageError is raised as by `trusted_context`; an OSError of the connection is raised as it is.

    Raises:
        SourceError: kind "certificate": the server's certificate is not trusted.
    """
    try:
        trusted_context().wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        problem = certificate_error(host, error)
        assert problem is not None
        raise problem from None
