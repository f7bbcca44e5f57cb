"""Telling another service: signed, and never a neighbour."""

import datetime
import hashlib
import hmac
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewright.contract.errors import InputError, WorkError
from edgewright.server.alerting.webhook import SIGNATURE_HEADER, Webhook, checked_addresses, deliver_webhook

SECRET = b"sixteen bytes or"
LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"),)


def at(*addresses: str) -> Any:
    return lambda host, port, **_: [(0, 0, 0, "", (address, port)) for address in addresses]


class Receiver:
    """A service with a certificate for `hooks.example`."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (folder / "cert.pem").write_bytes(made.public_bytes(pem))
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "key.pem").write_bytes(secret)
        self.trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.status, self.location = 200, ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append((self.path, dict(self.headers), body))
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(b"a secret of the neighbourhood")

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def hook(self, host: str = "hooks.example", path: str = "/in?a=1", **more: Any) -> Webhook:
        return Webhook(f"https://{host}:{self.port}{path}", SECRET, more.get("listed", LOOPBACK))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def told(receiver: Receiver, hook: Webhook, *addresses: str) -> int:
    return deliver_webhook(
        hook, b"{}", now=1000.0, resolve=at(*(addresses or ("127.0.0.1",))), trust=receiver.trust
    )


def test_the_receiver_can_prove_who_said_what_and_when(receiver: Receiver) -> None:
    body = json.dumps({"alert": "too-many"}).encode()
    status = deliver_webhook(receiver.hook(), body, now=1000.5, resolve=at("127.0.0.1"), trust=receiver.trust)
    assert status == 200
    ((path, headers, came),) = receiver.seen
    assert (path, came) == ("/in?a=1", body)
    assert headers["Host"] == f"hooks.example:{receiver.port}"
    time, mac = (part.split("=")[1] for part in headers[SIGNATURE_HEADER].split(","))
    assert (time, mac) == ("1000", hmac.new(SECRET, b"1000." + body, hashlib.sha256).hexdigest())


FORBIDDEN = {
    "loopback": "127.0.0.1",
    "loopback, other": "127.8.9.1",
    "any": "0.0.0.0",  # noqa: S104 - it is what must be refused
    "private 10": "10.0.0.5",
    "private 172": "172.16.4.4",
    "private 192": "192.168.1.1",
    "link-local, the cloud's own": "169.254.169.254",
    "carrier's": "100.64.0.1",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1",
    "documentation": "192.0.2.1",
    "IPv6 loopback": "::1",
    "IPv6 any": "::",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "IPv6 unique local": "fd00::1",
    "IPv6 multicast": "ff02::1",
    "mapped": "::ffff:127.0.0.1",
    "mapped, hexadecimal": "::ffff:a9fe:a9fe",
    "6to4 of a private one": "2002:a00:1::",
    "NAT64 of a private one": "64:ff9b::a00:1",
    "teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_neighbour_is_never_asked(receiver: Receiver, name: str) -> None:
    with pytest.raises(WorkError, match="not on the public internet"):
        told(receiver, receiver.hook(listed=()), FORBIDDEN[name])
    with pytest.raises(WorkError, match="not on the public internet"):
        told(receiver, receiver.hook(listed=()), "93.184.215.14", FORBIDDEN[name])
    assert receiver.seen == []


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_permitted(address: str) -> None:
    assert checked_addresses("h", 443, resolve=at(address)) == [address]


def test_the_name_is_looked_up_once(receiver: Receiver) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])

    def rebinding(host: str, port: int, **_: Any) -> Any:
        return at(*next(answers))(host, port)

    assert deliver_webhook(receiver.hook(), b"{}", now=1.0, resolve=rebinding, trust=receiver.trust) == 200


def test_a_redirect_is_not_followed_and_the_answer_is_not_shown(receiver: Receiver) -> None:
    receiver.status, receiver.location = 302, f"https://hooks.example:{receiver.port}/other"
    with pytest.raises(WorkError) as caught:
        told(receiver, receiver.hook())
    assert "302" in str(caught.value)
    assert "neighbourhood" not in str(caught.value)
    assert len(receiver.seen) == 1


def test_another_certificate_is_refused(receiver: Receiver) -> None:
    with pytest.raises(WorkError, match="cannot be told"):
        told(receiver, receiver.hook(host="other.example"))
    with pytest.raises(WorkError, match="cannot be told"):
        deliver_webhook(receiver.hook(), b"{}", now=1.0, resolve=at("127.0.0.1"))
    assert receiver.seen == []


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert told(receiver, receiver.hook()) == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "https:///x",
        "https://user:pass@hooks.example/",
        "https://hooks.example/#x",
        "https://hooks.example/\r\nX: y",
        "https://hooks.example/ x",
        "https://höoks.example/",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_plain_https_url_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Webhook(url, SECRET)


def test_a_short_secret_and_a_large_body_are_refused(receiver: Receiver) -> None:
    with pytest.raises(InputError, match="secret"):
        Webhook("https://hooks.example/", b"short")
    with pytest.raises(WorkError, match="bytes"):
        deliver_webhook(receiver.hook(), b"x" * 300_000, now=1.0, resolve=at("127.0.0.1"), trust=receiver.trust)
