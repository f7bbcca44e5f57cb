"""Telling people by e-mail, to a server that speaks SMTP."""

import base64
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.alerting.test_webhook import Receiver

from edgewright.contract.config.fleet import EmailTarget
from edgewright.contract.errors import InputError, WorkError
from edgewright.server.alerting.email import compose_email, send_email

VARIABLE, PASSWORD = "P", "secret"


class Mailbox:
    """A mail server with the certificate of `hooks.example`; it keeps what it was handed."""

    def __init__(self, folder: Path, *, tls: str = "starttls") -> None:
        https = Receiver(folder)
        https.server.shutdown()
        https.server.server_close()
        self.trust = https.trust
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.tls = tls
        self.letters: list[tuple[str, list[str], bytes]] = []
        self.seen: list[str] = []
        self.refuses = False
        self.login = ""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.secure, self.line = False, self.request
                try:
                    if tls == "tls":
                        self.wrap()
                    self.talk()
                except OSError:
                    pass
                finally:
                    self.line.close()

            def wrap(self) -> None:
                self.line = outer.context.wrap_socket(self.line, server_side=True)
                self.secure = True

            def say(self, words: str) -> None:
                self.line.sendall(words.encode() + b"\r\n")

            def hear(self) -> bytes:
                heard = b""
                while not heard.endswith(b"\n") and (byte := self.line.recv(1)):
                    heard += byte
                return heard

            def talk(self) -> None:
                sender, to = "", list[str]()
                self.say("220 mail.example")
                while command := self.hear().decode().strip():
                    outer.seen.append(command)
                    verb, named = command.split()[0].upper(), command.partition("<")[2].partition(">")[0]
                    if verb == "EHLO":
                        offer = "AUTH PLAIN" if self.secure else "STARTTLS" if tls == "starttls" else "HELP"
                        self.say(f"250-mail.example\r\n250 {offer}")
                    elif verb == "STARTTLS":
                        self.say("220 go on")
                        self.wrap()
                    elif verb == "AUTH":
                        outer.login = base64.b64decode(command.split()[-1]).decode()
                        self.say("235 welcome")
                    elif verb == "DATA":
                        self.say("354 go on")
                        body = b""
                        while (part := self.hear()) != b".\r\n":
                            body += part
                        outer.letters.append((sender, to, body))
                        self.say("250 ok")
                    elif verb == "RCPT":
                        to.append(named)
                        self.say("550 nobody" if outer.refuses else "250 ok")
                    else:
                        sender = named or sender
                        self.say("221 bye" if verb == "QUIT" else "250 ok")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def mail(self, **more: Any) -> EmailTarget:
        given = {
            "host": "hooks.example",
            "sender": "fleet@a.example",
            "recipients": ("ann@b.example", "bob@c.example"),
        }
        return EmailTarget(**(given | {"port": self.port} | more))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hooks.example` is this machine."""
    real = socket.getaddrinfo

    def resolve(host: Any, *given: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "hooks.example" else host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(params=["starttls", "tls"])
def mailbox(request: pytest.FixtureRequest, tmp_path: Path, known: None) -> Iterator[Mailbox]:
    made = Mailbox(tmp_path, tls=request.param)
    yield made
    made.close()


def test_a_letter_arrives_for_everybody_over_tls_with_a_login(mailbox: Mailbox) -> None:
    mail = mailbox.mail(user="fleet", password_env=VARIABLE, tls=mailbox.tls)
    made = compose_email(mail, "camera is dark: 12 %", "für alle\n.\nEnde", name="edgewright.f.7", at=1000.5)
    send_email(mail, made, password=PASSWORD, trust=mailbox.trust)
    ((sender, to, body),) = mailbox.letters
    assert (sender, to) == ("fleet@a.example", ["ann@b.example", "bob@c.example"])
    assert mailbox.login == f"\0fleet\0{PASSWORD}"
    came = message_from_bytes(body, policy=default)
    assert came["Subject"] == "camera is dark: 12 %"
    assert came["Message-ID"] == "<edgewright.f.7@a.example>"
    assert came["Date"].datetime.timestamp() == 1000
    assert "für alle" in came.get_content()


def test_a_server_that_does_not_offer_tls_is_told_nothing(tmp_path: Path, known: None) -> None:
    plain = Mailbox(tmp_path, tls="none")
    mail = plain.mail(user="fleet", password_env=VARIABLE)
    with pytest.raises(WorkError, match="does not take the letter"):
        send_email(mail, compose_email(mail, "s", "b", name="n", at=0), password=PASSWORD, trust=plain.trust)
    assert plain.letters == []
    assert not any(line.startswith(("AUTH", "MAIL")) for line in plain.seen)
    plain.close()


def test_another_certificate_gets_no_letter_and_no_password(mailbox: Mailbox) -> None:
    mail = mailbox.mail(user="fleet", password_env=VARIABLE, tls=mailbox.tls)
    with pytest.raises(WorkError, match="SSLCertVerificationError"):
        send_email(mail, compose_email(mail, "s", "b", name="n", at=0), password=PASSWORD)
    assert (mailbox.letters, mailbox.login) == ([], "")


def test_a_server_that_takes_it_for_nobody_or_is_away_has_not_been_told(mailbox: Mailbox) -> None:
    mail = mailbox.mail(tls=mailbox.tls)
    made = compose_email(mail, "s", "b", name="n", at=0)
    mailbox.refuses = True
    with pytest.raises(WorkError, match="SMTPRecipientsRefused"):
        send_email(mail, made, trust=mailbox.trust)
    mailbox.close()
    with pytest.raises(WorkError, match="ConnectionRefusedError"):
        send_email(mail, made, trust=mailbox.trust)


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0", "\x85", "\u2028", "\x0b"])
def test_nobody_begins_a_header_of_his_own(end: str) -> None:
    mail = EmailTarget("h", "a@b", ("c@d",))
    for subject, name in ((f"dark{end}Bcc: eve@e.example", "n"), ("dark", f"n{end}Bcc: eve@e.example")):
        with pytest.raises(InputError, match="more than a line"):
            compose_email(mail, subject, "b", name=name, at=0)


def test_a_long_subject_is_cut_and_stays_one_header() -> None:
    made = compose_email(EmailTarget("h", "a@b", ("c@d",)), "x" * 5000, "b", name="n", at=0)
    assert len(str(made["Subject"])) == 200
