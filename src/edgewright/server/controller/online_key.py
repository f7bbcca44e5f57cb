"""The online key: who signs plans on the server, one at a time, and never with an offline key."""

import datetime
import os
import socket

from edgewright.contract.errors import InputError
from edgewright.contract.timestamps import parse_iso8601
from edgewright.server.services import Services
from edgewright.trust.keys.signing_keys import OFFLINE_ROLES, KeyFolder
from edgewright.trust.repository.repository import Repository

__all__ = ["online_keys", "release_stale_lock"]


def online_keys(services: Services) -> KeyFolder:
    """Return the folder of the online keys.

    Raises:
        InputError: There is none, or it holds a key that belongs to people.
    """
    if services.online_keys is None:
        raise InputError("this server has no online keys", remedy="Start it with the folder of the online keys.")
    offline = sorted(services.online_keys.private_roles() & {*OFFLINE_ROLES})
    if offline:
        raise InputError(
            f"{services.online_keys.path} holds private keys for {' and '.join(offline)}",
            remedy="Keep them elsewhere: a server that can sign releases can be made to.",
        )
    return services.online_keys


def release_stale_lock(repository: Repository, born: datetime.datetime) -> bool:
    """Remove the lock of a publisher that was killed on this machine, and return whether there was one.

    Args:
        repository: That may be locked.
        born: Since when this process runs; one that was killed may have had its number.
    """
    holder = repository.lock_holder()
    if holder is None or holder.get("host") != socket.gethostname():
        return False
    try:
        process, since = int(holder["process"]), parse_iso8601(str(holder["since"]))
    except (KeyError, TypeError, ValueError, InputError):
        return False
    if since >= born if process == os.getpid() else _is_running(process):
        return False
    repository.unlock()
    return True


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
