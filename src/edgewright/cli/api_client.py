"""Asking a control plane: its address and a token from the environment, or from its own state folder."""

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3

from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.schema import decode_record
from edgewright.trust.client.fetcher import checked_url
from edgewright.trust.keys.keystore import write_secret

__all__ = [
    "SERVER_VARIABLE",
    "TOKEN_VARIABLE",
    "ControlPlaneApi",
    "add_remote_options",
    "open_api",
    "quote_path",
    "store_access",
]

SERVER_VARIABLE, TOKEN_VARIABLE = "EDGEWRIGHT_SERVER", "EDGEWRIGHT_API_TOKEN"
_FILE = "operator.json"
_TIMEOUT_SECONDS = 60.0
# A server on this machine takes that long to start, at most.
_STARTING_SECONDS = 30.0
_LARGEST = 64 << 20

_T = TypeVar("_T")


class _Access(msgspec.Struct):
    """How a control plane's own machine reaches it.

    Attributes:
        server: Address.
        token: Of an operator, "" for none.
    """

    server: str
    token: str = ""


class ControlPlaneApi:
    """A control plane.

    Attributes:
        server: Its address, without a slash at its end.
    """

    def __init__(self, server: str, token: str, *, starting_seconds: float = 0.0) -> None:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(
                "the token holds what no token does", remedy=f"Set {TOKEN_VARIABLE} to it, without a line's end."
            )
        self.server = checked_url(server).rstrip("/")
        self._token = token
        # A server on this machine may just be starting.
        self._ends = time.monotonic() + starting_seconds
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT_SECONDS, retries=False)

    def get(self, path: str, kind: type[_T], query: Mapping[str, Any] | None = None) -> _T:
        """Return what is at a path.

        Args:
            path: Below /api/, its parts quoted by `quote_path`.
            kind: Of the answer.
            query: Names and values; None is left out, a list is repeated.

        Raises:
            InputError: The server finds the request wrong, or does not let this token do it.
            WorkError: It cannot be reached, or cannot do it now.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        suffix = f"?{urlencode(given, doseq=True)}" if given else ""
        return self._request("GET", path + suffix, None, kind)

    def post(self, path: str, body: object, kind: type[_T]) -> _T:
        """Do what a path is for, and return what came of it; see `get`."""
        return self._request("POST", path, msgspec.json.encode(body), kind)

    def delete(self, path: str, kind: type[_T]) -> _T:
        """Remove what is at a path; see `get`."""
        return self._request("DELETE", path, None, kind)

    def _request(self, method: str, path: str, body: bytes | None, kind: type[_T]) -> _T:
        headers = {"Authorization": f"Bearer {self._token}", "User-Agent": "edgewright"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            answer = self._send(method, f"{self.server}/api/{path}", body, headers)
            content = answer.read(_LARGEST)
        except urllib3.exceptions.HTTPError as error:
            raise WorkError(
                f"{self.server} cannot be reached: {type(error).__name__}",
                remedy="Check the address; is it running?",
            ) from error
        if not 200 <= answer.status < 300:
            raise _failure(self.server, answer.status, content)
        try:
            return decode_record(content, type=kind)
        except msgspec.MsgspecError as error:
            raise WorkError(
                f"{self.server} answered what this version does not read: {error}",
                remedy="Use the same version on both sides.",
            ) from error

    def _send(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        while True:
            try:
                return self._pool.request(
                    method, url, body=body, headers=headers, redirect=False, preload_content=False
                )
            except urllib3.exceptions.NewConnectionError:
                if time.monotonic() > self._ends:
                    raise
                time.sleep(0.1)


def _failure(server: str, status: int, content: bytes) -> Exception:
    try:
        problem = msgspec.json.decode(content, type=ErrorResponse)
    except msgspec.MsgspecError:
        return WorkError(f"{server} answered {status}", remedy="Is this the address of 'edgewright serve'?")
    if status == 401:
        return InputError(f"{server} does not know the token", remedy=f"Set {TOKEN_VARIABLE} to one that is valid.")
    kind = InputError if status in (400, 403, 404) else WorkError
    return kind(problem.message, remedy=problem.remedy or "See the server's log.")


def quote_path(*parts: str) -> str:
    """Return parts of a path so that none of them is two.

    >>> quote_path("rollouts", "a/b")
    'rollouts/a%2Fb'
    """
    return "/".join(quote(part, safe="") for part in parts)


def add_remote_options(act: argparse.ArgumentParser) -> None:
    """Add the options by which a control plane is named."""
    act.add_argument("--server", metavar="URL", help=f"of the control plane (${SERVER_VARIABLE})")
    act.add_argument("--fleet", metavar="DIR", type=Path, help="its state folder, on its own machine")


def open_api(arguments: argparse.Namespace) -> ControlPlaneApi | None:
    """Return the control plane that the arguments or the environment name, None if they name none.

    Raises:
        InputError: There is no token for it, or the folder is none.
    """
    folder = getattr(arguments, "fleet", None)
    if folder is not None:
        access = _access_in(folder)
        return ControlPlaneApi(
            access.server, os.environ.get(TOKEN_VARIABLE) or access.token, starting_seconds=_STARTING_SECONDS
        )
    server, token = (
        getattr(arguments, "server", None) or os.environ.get(SERVER_VARIABLE, ""),
        os.environ.get(TOKEN_VARIABLE, ""),
    )
    if not server:
        return None
    if not token:
        raise InputError(f"there is no token for {server}", remedy=f"Set {TOKEN_VARIABLE}.")
    return ControlPlaneApi(server, token)


def _access_in(folder: Path) -> _Access:
    ends = time.monotonic() + _STARTING_SECONDS
    while True:
        try:
            return msgspec.json.decode((folder / _FILE).read_bytes(), type=_Access)
        except (OSError, msgspec.MsgspecError) as error:
            if not folder.is_dir() or time.monotonic() > ends:
                raise InputError(
                    f"{folder} is no state folder of a control plane: {error}",
                    remedy="Name the DIR of 'edgewright serve --state DIR', or --server.",
                ) from error
            time.sleep(0.1)


def store_access(folder: Path, server: str, token: str | None) -> None:
    """Keep for commands on this machine how the control plane is reached; its owner alone can read it.

    Args:
        folder: Its state folder.
        server: Address.
        token: That was just made; None for the one before.
    """
    path = folder / _FILE
    if token is None:
        try:
            token = msgspec.json.decode(path.read_bytes(), type=_Access).token
        except (OSError, msgspec.MsgspecError):
            token = ""
    write_secret(path, msgspec.json.encode(_Access(server, token)))
