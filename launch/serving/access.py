"""Who may speak to the server: those that hold its token; without one, those that call it by its address."""

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple


class Denied(NamedTuple):
    """Why a request is turned away."""

    status: int  # status of the HTTP answer
    reason: str  # for the metrics
    sentence: str


class Access:
    """The rules of one server."""

    def __init__(self, token: str | None, names: tuple[str, ...]):
        """names: that the server may be called by without a token, beside addresses and localhost."""
        self._token, self._names = token, {"localhost", *names}

    def denies_host(self, headers: Mapping[str, str]) -> Denied | None:
        """A page elsewhere can have its own name lead here, and read what its browser is answered: without a token,
        only an address, which no name server gives out, or a name of this server will do."""
        host = headers.get("Host", "localhost")
        if self._token is not None or self._is_allowed(host):
            return None
        return Denied(403, "host", f"without a token this server answers to its address, not to {host!r}")

    def denies_token(self, headers: Mapping[str, str]) -> Denied | None:
        """Compares the request's token with the server's, in constant time."""
        given = headers.get("Authorization", "").encode()
        expected = (f"Bearer {self._token}", f"Api-Key {self._token}")  # openpi-client sends the second
        if self._token is None or any(hmac.compare_digest(given, one.encode()) for one in expected):
            return None
        return Denied(401, "token", "a bearer token is needed: Authorization: Bearer TOKEN")

    def _is_allowed(self, host: str) -> bool:
        name = re.sub(r"(?<=[^:]):\d*$", "", host)
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the port and does not yet listen: who comes is refused until the model is warm.

    Raises OSError where the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, number, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    bound = socket.socket(family, kind, number)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(f"--host={host} --port={port}: {error.strerror}") from error
    return bound
