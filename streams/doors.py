"""Find out why a Kafka refuses a connection: probe it with a bare socket, because the client only reports a timeout.

Each step is one question, and the first that fails is the answer. Is the address valid? Is the name known? Does anybody
listen? Does the TLS handshake succeed? Does a Kafka answer? Does it accept our sign-in mechanism and our password?
kafka-python 3.0 retries after each of these failures and finally reports only that time is up.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from kafka.net.sasl import get_sasl_mechanism

from streams.errors import SettingsError
from streams.secrets import reveal
from streams.tls import client_context, explain_tls, speaks_tls

PROBE_SECONDS = 3.0
SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
NO_ERROR, UNSUPPORTED_MECHANISM, NO_SASL_HERE = 0, 33, 34  # Kafka's error codes for a SaslHandshake.
ANSWER_BYTES_MAX = 64 * 1024


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why no broker answers. lasting: waiting would not help."""

    text: str
    lasting: bool


class _LeftError(Exception):
    """The other side closed the connection, or its answer is not Kafka's."""

    def __init__(self, answer: bytes = b"") -> None:
        super().__init__()
        self.answer = answer


def addresses(bootstrap: str) -> list[tuple[str, int]]:
    """Return (host, port) of each broker.

    Raises SettingsError if one of them is not an address.
    """
    found = []
    for text in bootstrap.split(","):
        host, _, port = text.strip().rpartition(":")
        if not host.strip("[]") or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
            raise SettingsError(f"kafka.bootstrap: expected host:port[,host:port], got {text.strip()!r}")
        found.append((host.strip("[]"), int(port)))
    return found


def explain_silence(settings: Any, timeout_seconds: float = PROBE_SECONDS) -> Problem | None:
    """Return why no broker of these Kafka settings answers, or None if at least one would accept the connection."""
    problems = []
    for host, port in addresses(settings.bootstrap):
        problem = _look(settings, host, port, timeout_seconds)
        if problem is None:
            return None
        problems.append(problem)
    return next((problem for problem in problems if problem.lasting), problems[0])


def refused_login(settings: Any) -> str:
    """Return the message for a broker that refuses the name and password."""
    return (
        f"Kafka at {settings.bootstrap} refuses the user {settings.sasl_username!r}: the password is wrong, or there "
        f"is no such user for {settings.sasl_mechanism or 'PLAIN'}. Check kafka.sasl_username, kafka.sasl_password and "
        "kafka.sasl_mechanism"
    )


def kafka_context(settings: Any) -> ssl.SSLContext | None:
    """Return the TLS context for these Kafka settings, None without TLS. Raises SettingsError."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    return client_context(
        cafile=settings.ssl_cafile,
        certfile=settings.ssl_certfile,
        keyfile=settings.ssl_keyfile,
        password=settings.ssl_key_password,
        table="kafka",
        ca_setting="ssl_cafile",
    )


def _look(settings: Any, host: str, port: int, timeout: float) -> Problem | None:
    where = f"Kafka at {host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        passing = getattr(error, "errno", None) == socket.EAI_AGAIN  # The name server itself does not answer.
        return Problem(text=f"{where}: the host name {host!r} is not known. Check kafka.bootstrap", lasting=not passing)
    try:
        plain = _connect(found, timeout)
    except TimeoutError:
        return Problem(text=f"{where}: no answer within {timeout:g} s. Is there a firewall between?", lasting=False)
    except OSError as error:
        reason = "connection refused: nobody listens there" if isinstance(error, ConnectionRefusedError) else error
        return Problem(text=f"{where}: {reason}. Run: searchloop up, or set kafka.bootstrap", lasting=False)
    context = kafka_context(settings)
    with contextlib.ExitStack() as stack:
        try:
            door = stack.enter_context(context.wrap_socket(plain, server_hostname=host) if context else plain)
            code, mechanisms = _sign_in_offer(door, settings.sasl_mechanism or "PLAIN")
            if problem := _way_to_sign_in(settings, where, code, mechanisms):
                return problem
            if settings.security_protocol.startswith("SASL") and not _signs_in(door, settings, host):
                return Problem(text=refused_login(settings), lasting=True)
            return None
        except TimeoutError:
            return Problem(text=f"{where}: connected, but no answer within {timeout:g} s", lasting=False)
        except ssl.SSLError as error:
            reason = explain_tls(error, host=host, cafile=settings.ssl_cafile, ca_setting="kafka.ssl_cafile")
            if "does not speak TLS" in reason:
                return _no_tls(settings, where, found, timeout)
            return Problem(text=f"{where}: {reason}", lasting=True)
        except (_LeftError, OSError) as left:
            plain.close()
            if context:
                return _no_tls(settings, where, found, timeout)
            return _no_kafka(where, found, timeout, getattr(left, "answer", b""))


def _connect(found: Sequence[Any], timeout: float) -> socket.socket:
    """Return a connection to the first address that accepts one; if none does, raise the OSError of the last."""
    last: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        door = socket.socket(family, kind, protocol)
        try:
            door.settimeout(timeout)
            door.connect(address)
            return door
        except OSError as error:
            door.close()
            last = error
    raise last


def _sign_in_offer(door: socket.socket, mechanism: str) -> tuple[int, list[str]]:
    """Send a SaslHandshake; return the broker's error code and the mechanisms that it accepts.

    Raises _LeftError if the answer is not Kafka's.
    """
    name = mechanism.encode()
    code, rest = _ask(door, SASL_HANDSHAKE, 1, struct.pack(">h", len(name)) + name)
    return code, _texts(rest)


def _signs_in(door: socket.socket, settings: Any, host: str) -> bool:
    """Sign in after a SaslHandshake with the client library's own mechanism; return whether the broker accepts us."""
    mechanism = get_sasl_mechanism(settings.sasl_mechanism or "PLAIN")(
        host=host,
        security_protocol=settings.security_protocol,
        sasl_mechanism=settings.sasl_mechanism or "PLAIN",
        sasl_plain_username=settings.sasl_username,
        sasl_plain_password=reveal(settings.sasl_password),
    )
    while not mechanism.is_done():
        token = mechanism.auth_bytes()
        code, rest = _ask(door, SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        if code != NO_ERROR:
            return False
        (message,) = struct.unpack_from(">h", rest)  # The length of an error's message; -1 without a message.
        mechanism.receive(rest[6 + max(message, 0) :])
    return bool(mechanism.is_authenticated())


def _ask(door: socket.socket, key: int, version: int, body: bytes) -> tuple[int, bytes]:
    """Send a Kafka request; return the error code of the answer and the bytes after it.

    Raises _LeftError if the answer is not Kafka's.
    """
    client = b"searchloop-door"
    request = struct.pack(">hhih", key, version, 1, len(client)) + client + body
    door.sendall(struct.pack(">i", len(request)) + request)
    answer = _read(door, 4)
    size = struct.unpack(">i", answer)[0]
    if not 6 <= size <= ANSWER_BYTES_MAX:
        raise _LeftError(answer)
    answer = _read(door, size)
    correlation, code = struct.unpack_from(">ih", answer)
    if correlation != 1:
        raise _LeftError(answer)
    return code, answer[6:]


def _read(door: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = door.recv(size - len(content))
        if not more:
            raise _LeftError(content)
        content += more
    return content


def _texts(content: bytes) -> list[str]:
    """Return an array of strings in Kafka's format, or as much of it as is complete."""
    texts, place = [], 4
    for _ in range(struct.unpack_from(">i", content)[0] if len(content) >= 4 else 0):
        if len(content) < place + 2:
            break
        length = struct.unpack_from(">h", content, place)[0]
        texts.append(content[place + 2 : place + 2 + length].decode(errors="replace"))
        place += 2 + length
    return texts


def _way_to_sign_in(settings: Any, where: str, code: int, mechanisms: list[str]) -> Problem | None:
    wanted = settings.security_protocol.startswith("SASL")
    offered = ", ".join(mechanisms) or "none"
    if code == NO_SASL_HERE:
        without = settings.security_protocol.removeprefix("SASL_")
        advice = f"Set kafka.security_protocol = {without!r}"
        return Problem(text=f"{where}: it takes no user name on this port. {advice}", lasting=True) if wanted else None
    if not wanted:
        with_it = "SASL_SSL" if settings.security_protocol == "SSL" else "SASL_PLAINTEXT"
        advice = f"Set kafka.security_protocol = {with_it!r}, kafka.sasl_username and kafka.sasl_password"
        return Problem(text=f"{where}: it asks for a user name (it takes {offered}). {advice}", lasting=True)
    if code == UNSUPPORTED_MECHANISM:
        asked = settings.sasl_mechanism or "PLAIN"
        return Problem(text=f"{where}: expected kafka.sasl_mechanism to be one of {offered}, got {asked}", lasting=True)
    return None


def _no_tls(settings: Any, where: str, found: Sequence[Any], timeout: float) -> Problem:
    """Return the message for a failed TLS handshake; the cause is certain if a Kafka answers without TLS."""
    without = settings.security_protocol.replace("SSL", "PLAINTEXT")
    with contextlib.suppress(OSError, _LeftError), contextlib.closing(_connect(found, timeout)) as door:
        _sign_in_offer(door, "PLAIN")
        text = (
            f"{where}: it does not speak TLS on this port. Use its TLS port, or kafka.security_protocol = {without!r}"
        )
        return Problem(text=text, lasting=True)
    text = f"{where}: it closed the connection during the TLS handshake: it does not speak TLS there, or is starting"
    return Problem(text=text, lasting=False)


def _no_kafka(where: str, found: Sequence[Any], timeout: float, answer: bytes) -> Problem:
    """Return the message for a plain connection without a Kafka answer: TLS, another service, or a starting broker."""
    if answer[:1] in (b"\x15", b"\x16") or _speaks_tls(found, timeout):
        advice = "Set kafka.security_protocol to 'SSL' or 'SASL_SSL', and kafka.ssl_cafile to its authority"
        return Problem(text=f"{where}: it speaks TLS on this port, but we do not. {advice}", lasting=True)
    if answer:
        what = "a web server" if answer.startswith(b"HTTP") else "something else"
        return Problem(text=f"{where}: {what} listens there, not Kafka. Check kafka.bootstrap", lasting=True)
    return Problem(text=f"{where}: it closed the connection at once; it may be starting", lasting=False)


def _speaks_tls(found: Sequence[Any], timeout: float) -> bool:
    with contextlib.suppress(OSError):
        return speaks_tls(_connect(found, timeout))
    return False
