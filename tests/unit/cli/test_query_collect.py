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

from edgewright.cli.aggregation_server import serving
from edgewright.cli.device_list import read_enrolled
from edgewright.cli.query_collect import Patience, _helped, _neighbourly, kept_in
from edgewright.contract.errors import InputError, OutputError
from edgewright.device.queries.sum_client import Kept, post
from edgewright.privacy.aggregation_handler import HelperDesk, SumDesk
from edgewright.privacy.helper import Gatherer, Helper, UsedInMemory
from edgewright.privacy.roster import DeclinedError, Terms
from edgewright.privacy.secagg_server import Collector

FLEET = Fleet(6)
TERMS = helper_terms(min_cohort=4)
PUBLIC = Helper(HELPER_KEY, FLEET.enrolment(), UsedInMemory()).public
AT_ONCE = Patience(0, 0.0, 0.0)


def desk_with(folder: Path, terms: Terms = TERMS) -> tuple[SumDesk, Collector | Gatherer]:
    """A server's process, from what another one left."""
    desk = SumDesk()
    opened = desk.open(terms, enrolled=FLEET.enrolment(), keep=Kept(folder).write)
    desk.restore(terms, kept_in(folder))
    return desk, opened


def path_of(act: str, terms: Terms = TERMS) -> str:
    return f"/sums/{terms.digest.hex()}/{act}"


@pytest.fixture
def helper() -> Helper:
    return Helper(HELPER_KEY, FLEET.enrolment(), UsedInMemory())


@pytest.fixture
def helper_url(helper: Helper) -> Iterator[str]:
    desk = HelperDesk(helper)
    with serving(desk.handle, "127.0.0.1", 0, knows=desk.knows) as url:
        yield url


def test_a_server_that_is_broken_off_asks_the_helper_the_same_and_finds_the_same_sum(
    tmp_path: Path, helper: Helper, helper_url: str
) -> None:
    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    first, _ = desk_with(tmp_path)
    for gift in gifts[:3]:
        assert first.handle(path_of("gift"), gift)[0] == 200
    # Power is cut: the devices have been told that their letters arrived.
    second, opened = desk_with(tmp_path)
    assert opened.devices == 3
    assert second.handle(path_of("gift"), gifts[0])[0] == 200
    assert second.handle(path_of("gift"), gifts[3])[0] == 200
    asked = second.ask(TERMS)
    helper.answer(asked)
    # And again, after the helper has answered, which it does once for a set.
    third, opened = desk_with(tmp_path)
    assert isinstance(opened, Gatherer)
    assert opened.closed
    assert third.ask(TERMS) == asked
    assert third.handle(path_of("gift"), gifts[4])[0] == 409
    total, devices = _helped(third, opened, helper_url, AT_ONCE)
    values = list(FLEET.values(TERMS).values())[:4]
    assert np.array_equal(total, np.sum(values, axis=0, dtype=np.uint64) % (1 << TERMS.bits))
    assert devices == 4


def test_a_sum_without_a_helper_is_taken_up_at_every_step(tmp_path: Path) -> None:
    fleet = Round(FLEET, neighbour_terms(min_cohort=4, degree=3, threshold=2))
    desk, opened = desk_with(tmp_path, fleet.terms)
    for step in ("join", "share", "mask", "reveal"):
        assert isinstance(opened, Collector)
        fleet.server = opened
        for name in FLEET.names:
            fleet.members[name] = fleet.act(name)
            assert desk.handle(path_of(step, fleet.terms), fleet.members[name].said)[0] == 200
            desk, opened = desk_with(tmp_path, fleet.terms)
            assert isinstance(opened, Collector)
            fleet.server = opened
        assert desk.devices(fleet.terms) == 6
        desk.advance(fleet.terms)
        desk, opened = desk_with(tmp_path, fleet.terms)
    assert isinstance(opened, Collector)
    total, devices = _neighbourly(desk, opened, AT_ONCE)
    assert np.array_equal(total, fleet.plain(FLEET.names))
    assert devices == 6


def test_a_letter_that_was_not_stored_is_not_said_to_have_arrived(tmp_path: Path) -> None:
    full = True

    def keep(name: str, content: bytes) -> None:
        if full:
            raise OutputError("the disk is full", remedy="Free space.")
        Kept(tmp_path).write(name, content)

    desk = SumDesk()
    desk.open(TERMS, keep=keep)
    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    assert [desk.handle(path_of("gift"), gift)[0] for gift in gifts] == [503] * 6
    with pytest.raises(OutputError):
        desk.ask(TERMS)
    full = False
    assert desk.handle(path_of("gift"), gifts[0])[0] == 200
    assert len(kept_in(tmp_path)) == 1
    # Nobody is asked about letters that a power cut would lose.
    asked = desk.ask(TERMS)
    assert len(kept_in(tmp_path)) == 7
    assert desk_with(tmp_path)[0].ask(TERMS) == asked


def test_who_was_left_out_stays_out_after_a_crash(tmp_path: Path) -> None:
    desk, _ = desk_with(tmp_path)
    for gift in FLEET.gifts(TERMS, PUBLIC):
        desk.handle(path_of("gift"), gift)
    desk.ask(TERMS)
    desk.leave_out(TERMS, [FLEET.names[0]])
    asked = desk.ask(TERMS)
    again, opened = desk_with(tmp_path)
    assert opened.devices == 5
    assert again.ask(TERMS) == asked


def test_a_helper_that_names_strangers_ends_the_collecting(tmp_path: Path) -> None:
    desk, opened = desk_with(tmp_path)
    for gift in FLEET.gifts(TERMS, PUBLIC):
        desk.handle(path_of("gift"), gift)

    class Liar:
        def answer(self, _: bytes) -> bytes:
            raise DeclinedError("signature", "no", [b"x" * 32])

    lying = HelperDesk(Liar())  # type: ignore[arg-type]
    assert isinstance(opened, Gatherer)
    with (
        serving(lying.handle, "127.0.0.1", 0, knows=lying.knows) as url,
        pytest.raises(DeclinedError, match="not in the sum"),
    ):
        _helped(desk, opened, url, AT_ONCE)


def test_the_desk_closes_a_sum_between_letters_and_never_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, inside, go = SumDesk(), threading.Event(), threading.Event()
    opened = desk.open(TERMS)
    take = Gatherer.take

    def slow(self: Gatherer, content: bytes) -> None:
        inside.set()
        assert go.wait(10)
        take(self, content)

    gifts = list(FLEET.gifts(TERMS, PUBLIC))
    for gift in gifts[:5]:
        desk.handle(path_of("gift"), gift)
    monkeypatch.setattr(Gatherer, "take", slow)
    asked: list[bytes] = []
    device = threading.Thread(target=desk.handle, args=(path_of("gift"), gifts[5]))
    server = threading.Thread(target=lambda: asked.append(desk.ask(TERMS)))
    device.start()
    assert inside.wait(10)
    server.start()
    server.join(0.2)
    assert asked == []
    go.set()
    device.join(10)
    server.join(10)
    assert isinstance(opened, Gatherer)
    monkeypatch.undo()
    assert opened.ask() == asked[0]
    assert opened.devices == 6


def test_strangers_are_not_taken_over_http(tmp_path: Path) -> None:
    strangers = Fleet(2, seed=9)
    desk, opened = desk_with(tmp_path)
    with serving(desk.handle, "127.0.0.1", 0, knows=desk.knows) as url, urllib3.PoolManager() as pool:
        for gift in strangers.gifts(TERMS, PUBLIC):
            with pytest.raises(DeclinedError, match="not enrolled"):
                post(pool, url + path_of("gift"), gift)
    assert opened.devices == 0
    assert kept_in(tmp_path) == {}
    joining = Collector(neighbour_terms(), enrolled=FLEET.enrolment())
    with pytest.raises(DeclinedError, match="not enrolled"):
        joining.take("join", Round(strangers, neighbour_terms()).act(strangers.names[0]).said)


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
        ("/sums/00/gift", "1000", 404),
        ("known/total", "1000", 404),
        ("known/gift", "67108865", 413),
        ("known/gift", "9" * 5000, 413),
        ("known/gift", "0000000001", 413),
        ("known/gift", "-1", 411),
        ("known/gift", "x", 411),
    ],
)
def test_what_is_not_wanted_is_not_read(tmp_path: Path, path: str, length: str, status: int) -> None:
    desk, _ = desk_with(tmp_path)
    with serving(desk.handle, "127.0.0.1", 0, knows=desk.knows) as url:
        assert status_of(url, path.replace("known", path_of("")[:-1]), length) == status


def test_so_many_connections_are_held_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.cli.aggregation_server._MOST_CONNECTIONS", 3)
    with serving(lambda *_: (200, b""), "127.0.0.1", 0) as url:
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

    with serving(fails, "127.0.0.1", 0) as url, pytest.raises(http.client.HTTPException):
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
