"""The processes of a private sum over HTTP: `python -m benchmarks.summing.wire ROLE FOLDER`."""

import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import urllib3

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.device.queries.sum_client import (
    MessageStore,
    ServerUnavailableError,
    SumClient,
    UsedSeedsFile,
    post_bytes,
)
from edgewright.privacy.aggregation_handler import AggregationService, HelperService
from edgewright.privacy.helper import MaskHelper
from edgewright.privacy.roster import DeclinedError, EnrolmentList, ProtocolTerms
from edgewright.privacy.secagg_server import SecAggServer
from edgewright.trust.keys.device_identity import load_or_create_device_key

__all__ = ["Task"]

_TIMEOUT_SECONDS = 30.0
_HOST = "127.0.0.1"


class Task(msgspec.Struct, frozen=True):
    """What the processes of a sum are told, in the file `task`.

    Attributes:
        terms: Of the sum.
        helper_key: Private key of the helper; tests only: nobody else may know it.
        helper: Its public key.
        enrolled: Devices that exist.
        expected: Devices that are waited for at each step.
    """

    terms: ProtocolTerms
    helper_key: bytes
    helper: bytes
    enrolled: EnrolmentList
    expected: tuple[int, ...]


def _address(folder: Path, role: str) -> str:
    ends = time.monotonic() + _TIMEOUT_SECONDS
    while not (folder / role).exists():
        if time.monotonic() > ends:
            raise TimeoutError(role)
        time.sleep(0.02)
    return (folder / role).read_text()


def _tell(folder: Path, role: str, address: str) -> None:
    (folder / f".{role}").write_text(address)
    (folder / f".{role}").rename(folder / role)


def _help(folder: Path, task: Task) -> None:
    helper = MaskHelper(task.helper_key, task.enrolled, UsedSeedsFile(folder / "used"))
    with serve_aggregation(HelperService(helper).handle, _HOST, 0) as address:
        _tell(folder, "helper", address)
        sys.stdin.read()


def _collect(folder: Path, task: Task) -> None:
    desk = AggregationService()
    opened = desk.open_sum(task.terms)
    with serve_aggregation(desk.handle, _HOST, 0) as address, urllib3.PoolManager() as pool:
        _tell(folder, "server", address)
        for expected in task.expected:
            while opened.device_count < expected:
                time.sleep(0.01)
            if isinstance(opened, SecAggServer):
                opened.advance()
        if isinstance(opened, SecAggServer):
            total = opened.unmask_sum()
        else:
            total = opened.unmask_sum(
                post_bytes(pool, f"{_address(folder, 'helper')}/help", opened.helper_request())
            )
        np.save(folder / "total.npy", total)
        sys.stdin.read()


def _answer(folder: Path, task: Task, state: Path) -> None:
    """Be one device; its values are in a file, and a file `stops` names the step after which it is gone."""
    key = load_or_create_device_key(state / "device.key")
    stops = (state / "stops").read_text() if (state / "stops").exists() else "revealed"
    with urllib3.PoolManager(timeout=10) as pool:
        client = SumClient(_address(folder, "server"), key, MessageStore(state / "kept"), pool)
        if not task.terms.degree:
            client.submit(task.terms, task.helper, lambda: np.load(state / "values.npy"))
            return
        ends = time.monotonic() + _TIMEOUT_SECONDS
        done = ""
        while done != stops and time.monotonic() < ends:
            try:
                done = client.poll_step(task.terms, lambda: np.load(state / "values.npy"))
            except ServerUnavailableError:
                done = "waiting"
            if done == "waiting":
                time.sleep(0.02)


def main() -> int:
    """Play one role; 1 if the device, server or helper declined."""
    role, folder = sys.argv[1], Path(sys.argv[2])
    task = msgspec.msgpack.decode((folder / "task").read_bytes(), type=Task)
    try:
        if role == "device":
            _answer(folder, task, Path(sys.argv[3]))
        else:
            {"helper": _help, "server": _collect}[role](folder, task)
    except DeclinedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
