"""Telling another service, by a request that cannot be turned against this network.

Whoever may name a URL could otherwise make the server ask its own neighbours. So: https, no redirects, no proxies;
the name is looked up once, every address that it has is checked, and the connection goes to one that was checked.
Private, link-local and wrapped addresses are refused unless the project file lists them. What is answered is read
by nobody but for its status.
"""

import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3

from edgewright.contract.errors import InputError, WorkError

__all__ = ["SIGNATURE_HEADER", "Webhook", "checked_addresses", "deliver_webhook", "signature_of"]

SIGNATURE_HEADER = "X-Edgewright-Signature"
"""Header with the time and the HMAC of time and body."""

_TIMEOUT_SECONDS = 10.0
_LARGEST = 256 * 1024
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Addresses that carry an IPv4 address within.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[..., Sequence[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell.

    Attributes:
        url: With https.
        secret: Shared with whoever receives, 16 bytes or more.
        allowed_networks: Networks that are permitted though they are private.
    """

    url: str
    secret: bytes
    allowed_networks: tuple[_Network, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would not be safe.

        Raises:
            InputError: It is no https URL, carries a password, or the secret is short.
        """
        parts = urlsplit(self.url)
        odd = parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.fragment
        if odd or any(ord(letter) <= 32 or ord(letter) > 126 for letter in self.url):
            raise InputError(
                f"the webhook {self.url[:200]!r} is no plain https URL",
                remedy="Write https://host/path, without user, password and fragment.",
            )
        if len(self.secret) < 16:
            raise InputError(
                f"the webhook's secret has {len(self.secret)} bytes", remedy="Share 16 or more random bytes."
            )


def signature_of(secret: bytes, body: bytes, *, now: int) -> str:
    """Return what proves sender, body and time.

    >>> signature_of(b"0" * 16, b"{}", now=1)[:11]
    't=1,v1=b8f8'
    """
    mac = hmac.new(secret, f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now},v1={mac}"


def checked_addresses(
    host: str, port: int, allowed_networks: Sequence[_Network] = (), *, resolve: Resolve = socket.getaddrinfo
) -> list[str]:
    """Return a host's addresses if every one of them may be connected to.

    Args:
        host: Name or address.
        port: Of the service.
        allowed_networks: Networks that are permitted though they are private.
        resolve: Looks the name up.

    Raises:
        WorkError: It has none, or one that may not be connected to.
    """
    try:
        found = [entry[4][0] for entry in resolve(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise WorkError(f"{host} has no address: {error}", remedy="It is tried again.") from error
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    for address in addresses:
        if not _is_allowed(address, allowed_networks):
            raise WorkError(
                f"{host} is at {address}, which is not on the public internet",
                remedy="List its network in the project file if it is meant.",
            )
    if not addresses:
        raise WorkError(f"{host} has no address", remedy="It is tried again.")
    return list(dict.fromkeys(str(address) for address in addresses))


def deliver_webhook(
    hook: Webhook,
    body: bytes,
    *,
    now: float,
    resolve: Resolve = socket.getaddrinfo,
    trust: ssl.SSLContext | None = None,
) -> int:
    """Send a body, and return the status of the answer.

    Args:
        hook: Whom to tell.
        body: JSON.
        now: Unix time.
        resolve: Looks the host's name up.
        trust: Of certificates; the system's if not given.

    Raises:
        WorkError: The host may not be asked, cannot be reached, or does not take it.
    """
    if len(body) > _LARGEST:
        raise WorkError(f"a message of {len(body)} bytes", remedy=f"At most {_LARGEST} are sent.")
    parts = urlsplit(hook.url)
    host, port = str(parts.hostname), parts.port or 443
    address = checked_addresses(host, port, hook.allowed_networks, resolve=resolve)[0]
    headers = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "User-Agent": "edgewright",
        SIGNATURE_HEADER: signature_of(hook.secret, body, now=int(now)),
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    pool = urllib3.HTTPSConnectionPool(
        address,
        port,
        timeout=_TIMEOUT_SECONDS,
        retries=False,
        ssl_context=trust or ssl.create_default_context(),
        server_hostname=host,
        assert_hostname=host,
    )
    try:
        with pool:
            answer = pool.request("POST", target, body=body, headers=headers, redirect=False, preload_content=False)
            answer.close()  # unread: what a neighbour says is not to be shown
    except urllib3.exceptions.HTTPError as error:
        kind = type(error).__name__
        raise WorkError(f"{host} cannot be told: {kind}", remedy="It is tried again.") from error
    if not 200 <= answer.status < 300:
        raise WorkError(f"{host} answered {answer.status}", remedy="See its log; it is tried again.")
    return int(answer.status)


def _is_allowed(address: _Address, listed: Sequence[_Network]) -> bool:
    if any(address in network for network in listed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = [each for each in wrapped if each is not None]
        if inner:  # none of these is a plain public address
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved
