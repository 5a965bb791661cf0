"""TLS as a client: one context for every connection, and TLS errors in plain words."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from collections.abc import Iterable, Iterator
from functools import cache

from streams.errors import SettingsError

log = logging.getLogger(__name__)

NOT_TRUSTED = {2, 18, 19, 20, 21}  # OpenSSL's codes: no issuer certificate, self-signed, and chains ending in neither.
EXPIRED = {9, 10}
OTHER_HOST = {62, 64}


def client_context(
    *, cafile: str = "", certfile: str = "", keyfile: str = "", password: str = "", table: str, ca_setting: str
) -> ssl.SSLContext:
    """Return a context that verifies certificates and host names.

    cafile: a PEM file with the trusted authorities; empty: those of the system.
    table, ca_setting: the names of the settings, for errors.
    Raises SettingsError if a file is missing or has the wrong content.
    """
    where = f"{table}.{ca_setting}"
    try:
        context = ssl.create_default_context(cafile=cafile or None)
    except ssl.SSLError as error:
        raise SettingsError(
            f"{where}: expected certificates in PEM in {cafile}, found none that can be read"
        ) from error
    except OSError as error:
        raise SettingsError(f"{where}: expected a PEM file, got {cafile}: {error.strerror}") from error
    if certfile:
        try:
            # A password is always given: without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(certfile, keyfile or None, password=lambda: str.__str__(password))
        except ssl.SSLError as error:
            raise SettingsError(
                f"{table}.ssl_certfile: expected a certificate and its key in PEM, got {certfile} and "
                f"{keyfile or 'no other'}: {error.reason or 'the password of the key is wrong'}"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"{table}.ssl_certfile: expected PEM files, got {certfile}, {keyfile or 'no other'}: {error.strerror}"
            ) from error
    return context


def explain_tls(error: BaseException, *, host: str, cafile: str, ca_setting: str) -> str:
    """Return in words why a TLS handshake failed; '' if neither the error nor its causes are TLS errors."""
    found = next((each for each in causes(error) if isinstance(each, ssl.SSLError)), None)
    if isinstance(found, ssl.SSLCertVerificationError):
        trusted = f"{ca_setting} = {cafile}" if cafile else f"the system's authorities, as {ca_setting} is empty"
        if found.verify_code in OTHER_HOST:
            return f"its certificate is for another host than {host!r}; use a name that the certificate contains"
        if found.verify_code in NOT_TRUSTED:
            return f"its certificate is not trusted by {trusted}; name the authority that signed it"
        if found.verify_code in EXPIRED:
            return f"its certificate is out of date ({found.verify_message}), or the clock of this machine is wrong"
        return f"its certificate is refused: {found.verify_message} ({trusted})"
    if found is None:
        return ""
    reason = (found.reason or "").upper()
    if "CERTIFICATE_REQUIRED" in reason or "BAD_CERTIFICATE" in reason:
        return "it asks for a client certificate, and refuses ours or got none"
    if "ALERT" in reason:
        return f"it refuses our TLS: {found.reason}"
    return "it does not speak TLS on this port"


def speaks_tls(connection: socket.socket) -> bool:
    """Return whether a TLS handshake succeeds on a fresh connection; then close it without sending anything."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # The owner of the certificate does not matter.
    try:
        with connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "").upper()  # The server refuses us with a TLS alert.
    except OSError:
        return False


def causes(error: BaseException | None, depth: int = 8) -> Iterator[BaseException]:
    """Yield an error and everything that it wraps; HTTP libraries hide the cause in arguments and attributes."""
    if error is None or depth == 0:
        return
    yield error
    wrapped: list[object] = [error.__cause__, error.__context__, getattr(error, "reason", None), *error.args]
    more = getattr(error, "errors", ())
    for each in [*wrapped, *(more if isinstance(more, list | tuple) else ())]:
        if isinstance(each, BaseException):
            yield from causes(each, depth - 1)


def is_loopback(host: str) -> bool:
    """Return whether a host is certainly this machine, judged only by its name or number."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback  # The address may have a zone: "::1%lo".
    except ValueError:
        return False


def guard_plain(table: str, *, what: str, hosts: Iterable[str], instead: str, allowed: bool) -> None:
    """Warn once that a secret travels without TLS; refuse it beyond this machine, unless the settings allow it.

    table: the settings table. what: the secret, in words. instead: how to get TLS. allowed: the settings allow it; on
    this machine no warning is then needed.
    Raises SettingsError.
    """
    beyond = sorted({host for host in hosts if not is_loopback(host)})
    if beyond and not allowed:
        raise SettingsError(
            f"{table}: expected TLS before {what} is sent beyond this machine, got a plain connection to "
            f"{', '.join(beyond)}. {instead}, or set {table}.allow_insecure = true if you trust every machine between"
        )
    if beyond or not allowed:
        where = f"to {', '.join(beyond)}" if beyond else "on this machine"
        _say_once(f"{table}: {what} travels without TLS {where}. {instead}")


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)
