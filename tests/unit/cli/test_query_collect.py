"""Collecting a sum: nobody slips in, and a process that is broken off goes on where it was."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round, helper_terms, neighbour_terms

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.cli.device_list import read_enrolled
from edgewright.cli.query_collect import (
    CollectTimeouts,
    _collect_with_helper,
    _collect_with_neighbours,
    stored_messages,
)
from edgewright.contract.errors import InputError, OutputError
from edgewright.device.queries.sum_client import MessageStore, post_bytes
from edgewright.privacy.aggregation_handler import AggregationService, HelperService
from edgewright.privacy.helper import InMemoryUsedSeeds, MaskedSumCollector, MaskHelper
from edgewright.privacy.roster import DeclinedError, ProtocolTerms
from edgewright.privacy.secagg_server import SecAggServer

FLEET = Fleet(6)
TERMS = helper_terms(min_cohort=4)
PUBLIC = MaskHelper(HELPER_KEY, FLEET.enrolment(), InMemoryUsedSeeds()).public_key
AT_ONCE = CollectTimeouts(0, 0.0, 0.0)


def desk_with(
    folder: Path, terms: ProtocolTerms = TERMS
) -> tuple[AggregationService, SecAggServer | MaskedSumCollector]:
    """A server's process, from what another one left."""
    desk = AggregationService()
    opened = desk.open_sum(terms, enrolment_list=FLEET.enrolment(), store_message=MessageStore(folder).write)
    desk.restore_sum(terms, stored_messages(folder))
    return desk, opened


def path_of(act: str, terms: ProtocolTerms = TERMS) -> str:
    return f"/sums/{terms.digest.hex()}/{act}"


@pytest.fixture
def helper() -> MaskHelper:
    return MaskHelper(HELPER_KEY, FLEET.enrolment(), InMemoryUsedSeeds())


@pytest.fixture
def helper_url(helper: MaskHelper) -> Iterator[str]:
    desk = HelperService(helper)
    with serve_aggregation(desk.handle, "127.0.0.1", 0, knows=desk.has_path) as url:
        yield url


def test_a_server_that_is_broken_off_asks_the_helper_the_same_and_finds_the_same_sum(
    tmp_path: Path, helper: MaskHelper, helper_url: str
) -> None:
    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    first, _ = desk_with(tmp_path)
    for gift in gifts[:3]:
        assert first.handle(path_of("submit"), gift)[0] == 200
    # Power is cut: the devices have been told that their letters arrived.
    second, opened = desk_with(tmp_path)
    assert opened.device_count == 3
    assert second.handle(path_of("submit"), gifts[0])[0] == 200
    assert second.handle(path_of("submit"), gifts[3])[0] == 200
    asked = second.helper_request(TERMS)
    helper.answer_request(asked)
    # And again, after the helper has answered, which it does once for a set.
    third, opened = desk_with(tmp_path)
    assert isinstance(opened, MaskedSumCollector)
    assert opened.is_closed
    assert third.helper_request(TERMS) == asked
    assert third.handle(path_of("submit"), gifts[4])[0] == 409
    total, devices = _collect_with_helper(third, opened, helper_url, AT_ONCE)
    values = list(FLEET.values(TERMS).values())[:4]
    assert np.array_equal(total, np.sum(values, axis=0, dtype=np.uint64) % (1 << TERMS.bits))
    assert devices == 4


def test_a_sum_without_a_helper_is_taken_up_at_every_step(tmp_path: Path) -> None:
    fleet = Round(FLEET, neighbour_terms(min_cohort=4, degree=3, threshold=2))
    desk, opened = desk_with(tmp_path, fleet.terms)
    for step in ("advertise", "share", "mask", "reveal"):
        assert isinstance(opened, SecAggServer)
        fleet.server = opened
        for name in FLEET.names:
            fleet.members[name] = fleet.act(name)
            assert desk.handle(path_of(step, fleet.terms), fleet.members[name].last_message)[0] == 200
            desk, opened = desk_with(tmp_path, fleet.terms)
            assert isinstance(opened, SecAggServer)
            fleet.server = opened
        assert desk.device_count(fleet.terms) == 6
        desk.advance(fleet.terms)
        desk, opened = desk_with(tmp_path, fleet.terms)
    assert isinstance(opened, SecAggServer)
    total, devices = _collect_with_neighbours(desk, opened, AT_ONCE)
    assert np.array_equal(total, fleet.plain(FLEET.names))
    assert devices == 6


def test_a_letter_that_was_not_stored_is_not_said_to_have_arrived(tmp_path: Path) -> None:
    full = True

    def keep(name: str, content: bytes) -> None:
        if full:
            raise OutputError("the disk is full", remedy="Free space.")
        MessageStore(tmp_path).write(name, content)

    desk = AggregationService()
    desk.open_sum(TERMS, store_message=keep)
    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    assert [desk.handle(path_of("submit"), gift)[0] for gift in gifts] == [503] * 6
    with pytest.raises(OutputError):
        desk.helper_request(TERMS)
    full = False
    assert desk.handle(path_of("submit"), gifts[0])[0] == 200
    assert len(stored_messages(tmp_path)) == 1
    # Nobody is asked about letters that a power cut would lose.
    asked = desk.helper_request(TERMS)
    assert len(stored_messages(tmp_path)) == 7
    assert desk_with(tmp_path)[0].helper_request(TERMS) == asked


def test_who_was_left_out_stays_out_after_a_crash(tmp_path: Path) -> None:
    desk, _ = desk_with(tmp_path)
    for gift in FLEET.gifts(TERMS, PUBLIC):
        desk.handle(path_of("submit"), gift)
    desk.helper_request(TERMS)
    desk.exclude(TERMS, [FLEET.names[0]])
    asked = desk.helper_request(TERMS)
    again, opened = desk_with(tmp_path)
    assert opened.device_count == 5
    assert again.helper_request(TERMS) == asked


def test_a_helper_that_names_strangers_ends_the_collecting(tmp_path: Path) -> None:
    desk, opened = desk_with(tmp_path)
    for gift in FLEET.gifts(TERMS, PUBLIC):
        desk.handle(path_of("submit"), gift)

    class Liar:
        def answer_request(self, _: bytes) -> bytes:
            raise DeclinedError("signature", "no", [b"x" * 32])

    lying = HelperService(Liar())  # type: ignore[arg-type]
    assert isinstance(opened, MaskedSumCollector)
    with (
        serve_aggregation(lying.handle, "127.0.0.1", 0, knows=lying.has_path) as url,
        pytest.raises(DeclinedError, match="not in the sum"),
    ):
        _collect_with_helper(desk, opened, url, AT_ONCE)


def test_the_desk_closes_a_sum_between_letters_and_never_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, inside, go = AggregationService(), threading.Event(), threading.Event()
    opened = desk.open_sum(TERMS)
    take = MaskedSumCollector.accept

    def slow(self: MaskedSumCollector, content: bytes) -> None:
        inside.set()
        assert go.wait(10)
        take(self, content)

    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    for gift in gifts[:5]:
        desk.handle(path_of("submit"), gift)
    monkeypatch.setattr(MaskedSumCollector, "accept", slow)
    asked: list[bytes] = []
    device = threading.Thread(target=desk.handle, args=(path_of("submit"), gifts[5]))
    server = threading.Thread(target=lambda: asked.append(desk.helper_request(TERMS)))
    device.start()
    assert inside.wait(10)
    server.start()
    server.join(0.2)
    assert asked == []
    go.set()
    device.join(10)
    server.join(10)
    assert isinstance(opened, MaskedSumCollector)
    monkeypatch.undo()
    assert opened.helper_request() == asked[0]
    assert opened.device_count == 6


def test_strangers_are_not_taken_over_http(tmp_path: Path) -> None:
    strangers = Fleet(2, seed=9)
    desk, opened = desk_with(tmp_path)
    with serve_aggregation(desk.handle, "127.0.0.1", 0, knows=desk.has_path) as url, urllib3.PoolManager() as pool:
        for gift in strangers.gifts(TERMS, PUBLIC):
            with pytest.raises(DeclinedError, match="not enrolled"):
                post_bytes(pool, url + path_of("submit"), gift)
    assert opened.device_count == 0
    assert stored_messages(tmp_path) == {}
    joining = SecAggServer(neighbour_terms(), enrolment_list=FLEET.enrolment())
    with pytest.raises(DeclinedError, match="not enrolled"):
        joining.accept("advertise", Round(strangers, neighbour_terms()).act(strangers.names[0]).last_message)


def status_of(url: str, path: str, length: str) -> int:
    """Send no body at all: what answers has not read one."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", length)
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/nothing", "1000", 404),
        ("/sums/00/submit", "1000", 404),
        ("known/total", "1000", 404),
        ("known/submit", "67108865", 413),
        ("known/submit", "9" * 5000, 413),
        ("known/submit", "0000000001", 413),
        ("known/submit", "-1", 411),
        ("known/submit", "x", 411),
    ],
)
def test_what_is_not_wanted_is_not_read(tmp_path: Path, path: str, length: str, status: int) -> None:
    desk, _ = desk_with(tmp_path)
    with serve_aggregation(desk.handle, "127.0.0.1", 0, knows=desk.has_path) as url:
        assert status_of(url, path.replace("known", path_of("")[:-1]), length) == status


def test_so_many_connections_are_held_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.cli.aggregation_server._MAX_CONNECTIONS", 3)
    with serve_aggregation(lambda *_: (200, b""), "127.0.0.1", 0) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(3)]
        for one in held:  # until it has a thread
            one.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection((host, int(port)), timeout=5) as more:
            assert more.recv(100) == b""
        held.pop().close()
        for _ in range(100):
            try:
                if status_of(url, "/", "0") == 200:
                    break
            except (http.client.HTTPException, OSError):
                continue
        else:
            pytest.fail("no place became free")
        for one in held:
            one.close()


def test_a_desk_that_fails_says_nothing_of_who_came(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(path: str, body: bytes) -> tuple[int, bytes]:
        raise KeyError(path)

    with serve_aggregation(fails, "127.0.0.1", 0) as url, pytest.raises(http.client.HTTPException):
        status_of(url, "/secret", "0")
    said = capfd.readouterr().err
    assert "127.0.0.1" not in said
    assert "secret" not in said
    assert "KeyError" in said


def test_what_is_no_list_of_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devices.txt"
    path.write_text("# all\n" + "ab" * 32 + " # the first\n\n")
    assert read_enrolled(path).devices == {b"\xab" * 32}
    for wrong in ("x", "abcd"):
        path.write_text(wrong)
        with pytest.raises(InputError):
            read_enrolled(path)
