"""Telling people by e-mail: one letter to all of them, over TLS unless the project file says otherwise.

What comes from outside could end a line and begin a header of its own: such a letter is refused, not mended.
"""

import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from edgewright.contract.config.fleet import EmailTarget
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.timestamps import to_iso8601

__all__ = ["compose_email", "send_email"]

_TIMEOUT_SECONDS = 10.0
_MAX_SUBJECT = 200


def compose_email(mail: EmailTarget, subject: str, body: str, *, name: str, at: float) -> EmailMessage:
    """Return a letter.

    Args:
        mail: From whom and to whom.
        subject: One line.
        body: Text.
        name: Of the letter: who gets it twice can tell.
        at: When, Unix time.

    Raises:
        InputError: A line of its head would not be one line.
    """
    made = EmailMessage(policy=SMTP)
    short = subject if len(subject) <= _MAX_SUBJECT else subject[: _MAX_SUBJECT - 1] + "…"
    heads = {
        "From": mail.sender,
        "To": ", ".join(mail.recipients),
        "Subject": short,
        "Date": format_datetime(to_iso8601(at)),
        "Message-ID": f"<{name}@{mail.sender.rpartition('@')[2]}>",
        "Auto-Submitted": "auto-generated",
    }
    for head, value in heads.items():
        if any(ord(each) < 32 or ord(each) in (127, 0x85, 0x2028, 0x2029) for each in value):
            raise InputError(f"the {head} of a letter is more than a line", remedy="Take control characters out.")
        made[head] = value
    made.set_content(body)
    return made


def send_email(
    mail: EmailTarget, content: EmailMessage, *, password: str = "", trust: ssl.SSLContext | None = None
) -> None:
    """Hand a letter to the mail server.

    Args:
        mail: Over which server, to whom.
        content: From `compose_email`.
        password: Of the mail server's user.
        trust: Of certificates; the system's if not given.

    Raises:
        WorkError: The server cannot be reached, is not who it should be, or does not take it for anybody.
    """
    context = trust or ssl.create_default_context()
    try:
        with (
            smtplib.SMTP_SSL(mail.host, mail.port, timeout=_TIMEOUT_SECONDS, context=context)
            if mail.tls == "tls"
            else smtplib.SMTP(mail.host, mail.port, timeout=_TIMEOUT_SECONDS)
        ) as server:
            if mail.tls == "starttls":
                server.starttls(context=context)  # raises where it is not offered: never in the clear
            if mail.user:
                server.login(mail.user, password)
            server.send_message(content, mail.sender, list(mail.recipients))
    except (OSError, smtplib.SMTPException) as error:
        kind = type(error).__name__  # a server's own words could quote the password
        raise WorkError(f"{mail.host} does not take the letter: {kind}", remedy="It is tried again.") from error
