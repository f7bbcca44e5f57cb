"""What devices and the control plane say to each other over HTTP; updates themselves need none of it.

=========================  =====================================  =============================================
request                    body                                   answer
=========================  =====================================  =============================================
POST /device/enrol         `EnrolRequest`                            `EnrolResponse`; 403 if the token is none
POST /device/check-in      `CheckInRequest`, with a proof             `CheckInResponse`
POST /device/job           nothing, with a proof                  a job's bytes under `JOB`; 204 if there is none
POST /device/job/ID/done   what came of it, with a proof          204
POST /device/job/ID/failed why, with a proof                      204
GET  /repo/…                                                      the repository's files
POST /sums/…               as `privacy/aggregation_handler.py` has it
=========================  =====================================  =============================================

A proof is the header `PROOF`, made by `trust.identity.DeviceKey.sign` for the audience that enrolment gave. All
records are JSON; what a newer server adds to an answer is ignored by an older device. A refusal is a `ErrorResponse`.
"""

import msgspec

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.errors import InputError

__all__ = ["JOB", "PROOF", "CheckInRequest", "CheckInResponse", "EnrolRequest", "EnrolResponse", "ErrorResponse"]

PROOF = "Edgewright-Proof"
JOB = "Edgewright-Job"

_KEY_DIGITS = 64
_MAX_TOKEN = 200


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that wants to belong to the fleet.

    Attributes:
        token: That somebody was given for it.
        public_key: Its Ed25519 key, 64 hexadecimal digits.
    """

    token: str
    public_key: str

    def __post_init__(self) -> None:
        """Refuse what is no token or key."""
        digits = len(self.public_key) == _KEY_DIGITS and all(each in "0123456789abcdef" for each in self.public_key)
        if not digits or not 0 < len(self.token) <= _MAX_TOKEN:
            raise InputError(
                f"a token of {len(self.token)} letters and a key of {len(self.public_key)}",
                remedy="Give the token as it was shown, and the key as 64 hexadecimal digits.",
            )


class EnrolResponse(msgspec.Struct, frozen=True):
    """What a device is from now on.

    Attributes:
        device_id: Its name, which its key alone can prove.
        device_class: Its own.
        audience: Whom its requests are for; a proof for another fleet counts for nothing.
        repository: Address of the repository; relative to the server's if it does not begin with http.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        profiling: Whether it takes profiling jobs.
    """

    device_id: str
    device_class: str
    audience: str
    repository: str
    labels: dict[str, str] = {}
    channel: str = ""
    profiling: bool = False


class CheckInRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device is, and how it fared in the rollout that it knows of.

    Attributes:
        status: How it is.
        outcome: Of the stage that it knows, None if it knows of no rollout.
    """

    status: DeviceStatus
    outcome: StageOutcome | None = None


class CheckInResponse(msgspec.Struct, frozen=True):
    """What a device is told when it has checked in.

    Attributes:
        at: The server's clock, seconds since 1970, UTC.
        job_waiting: Whether a profiling job waits for it.
    """

    at: float
    job_waiting: bool = False


class ErrorResponse(msgspec.Struct, frozen=True):
    """Why a request was not done.

    Attributes:
        code: What kind of error it is, as in the JSON of the command line.
        message: What is wrong.
        remedy: What to do.
    """

    code: str
    message: str
    remedy: str = ""
