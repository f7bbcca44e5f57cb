"""Sums between processes over HTTP, and what is stored so that nobody forgets what was said."""

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import urllib3
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round, helper_terms, neighbour_terms
from benchmarks.summing.wire import Task

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.contract.errors import OutputError
from edgewright.device.queries.sum_client import (
    MessageStore,
    ServerUnavailableError,
    SumClient,
    UsedSeedsFile,
    post_bytes,
)
from edgewright.privacy.aggregation_handler import AggregationService, HelperService
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.helper import InMemoryUsedSeeds, MaskedSumCollector, MaskHelper
from edgewright.privacy.roster import DeclinedError, EnrolmentList, ProtocolTerms
from edgewright.privacy.secagg_server import SecAggServer
from edgewright.trust.keys.device_identity import DeviceKey, load_or_create_device_key

ROOT = Path(__file__).resolve().parents[3]
HELPER = MaskHelper(HELPER_KEY, EnrolmentList(1, frozenset()), InMemoryUsedSeeds()).public_key


def started(role: str, folder: Path, *more: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.summing.wire", role, str(folder), *map(str, more)]
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def summed(
    folder: Path, terms: ProtocolTerms, expected: tuple[int, ...], stops: dict[int, str]
) -> tuple[UnsignedArray, list[UnsignedArray]]:
    """Return what a server found, and what each device had, all of them processes."""
    states = [folder / f"device{number}" for number in range(expected[0])]
    rng = np.random.default_rng(3)
    values: list[UnsignedArray] = []
    names = []
    for number, state in enumerate(states):
        state.mkdir()
        names.append(load_or_create_device_key(state / "device.key").public)
        values.append(rng.integers(0, 1 << terms.bits, terms.vector_length).astype(np.uint32))
        np.save(state / "values.npy", values[-1])
        if number in stops:
            (state / "stops").write_text(stops[number])
    task = Task(terms, HELPER_KEY, HELPER, EnrolmentList(1, frozenset(names)), expected)
    (folder / "task").write_bytes(msgspec.msgpack.encode(task))
    parties = [started(role, folder) for role in ("server", "helper")]
    fleet = [started("device", folder, state) for state in states]
    try:
        for device in fleet:
            _, error = device.communicate(timeout=60)
            assert device.returncode == 0, error.decode()
        ends = time.monotonic() + 30
        while not (folder / "total.npy").exists():
            assert time.monotonic() < ends
            assert parties[0].poll() is None, parties[0].communicate()[1].decode()
            time.sleep(0.02)
    finally:
        for party in parties:
            party.kill()
            party.communicate()
    return np.load(folder / "total.npy"), values


def test_processes_find_the_sum_with_a_helper(tmp_path: Path) -> None:
    terms = helper_terms(bits=12, length=50)
    total, values = summed(tmp_path, terms, (4,), {})
    assert np.array_equal(total, np.sum(values, axis=0) % (1 << 12))
    assert (tmp_path / "used").stat().st_size > 4 * 16


def test_processes_find_the_sum_without_one_though_devices_drop_out(tmp_path: Path) -> None:
    terms = neighbour_terms(bits=20, length=50, degree=6, threshold=4, min_cohort=7)
    total, values = summed(tmp_path, terms, (8, 8, 7, 6), {1: "shared", 4: "masked"})
    survivors = [value for number, value in enumerate(values) if number != 1]
    assert np.array_equal(total, np.sum(survivors, axis=0) % (1 << 20))


@pytest.fixture
def key(tmp_path: Path) -> DeviceKey:
    return load_or_create_device_key(tmp_path / "device.key")


def test_a_device_says_again_what_it_said_though_its_noise_were_drawn_afresh(
    tmp_path: Path, key: DeviceKey
) -> None:
    terms, heard = helper_terms(), []
    drawn = iter(np.arange(8, dtype=np.uint32) + draw for draw in range(5))

    def handle(path: str, body: bytes) -> tuple[int, bytes]:
        heard.append((path, body))
        return (500, b"") if len(heard) == 1 else (200, b"")

    with serve_aggregation(handle, "127.0.0.1", 0) as url, urllib3.PoolManager() as pool:
        with pytest.raises(ServerUnavailableError, match="500"):
            SumClient(url, key, MessageStore(tmp_path / "kept"), pool).submit(terms, HELPER, lambda: next(drawn))
        # The process ends, and another one begins.
        SumClient(url, key, MessageStore(tmp_path / "kept"), pool).submit(terms, HELPER, lambda: next(drawn))
        other = msgspec.structs.replace(terms, min_cohort=2)
        with pytest.raises(DeclinedError, match="under other terms") as refusal:
            SumClient(url, key, MessageStore(tmp_path / "kept"), pool).submit(other, HELPER, lambda: next(drawn))
    assert refusal.value.reason == "equivocation"
    assert len(heard) == 2
    assert heard[0] == heard[1]
    assert len(heard[0][1]) > 16
    assert next(drawn)[0] == 1


def test_what_a_device_keeps_is_for_its_eyes_alone(tmp_path: Path, key: DeviceKey) -> None:
    terms = neighbour_terms()
    desk = AggregationService()
    desk.open_sum(terms)
    with serve_aggregation(desk.handle, "127.0.0.1", 0) as url, urllib3.PoolManager() as pool:
        client = SumClient(url, key, MessageStore(tmp_path / "kept"), pool)
        assert client.poll_step(terms, lambda: np.zeros(8, np.uint32)) == "advertised"
        assert client.poll_step(terms, lambda: np.zeros(8, np.uint32)) == "waiting"
        with pytest.raises(DeclinedError, match="under other terms"):
            client.poll_step(neighbour_terms(bits=12), lambda: np.zeros(8, np.uint32))
    files = list((tmp_path / "kept").iterdir())
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_letter_that_did_not_arrive_is_sent_again_before_anything_else(tmp_path: Path, key: DeviceKey) -> None:
    terms, heard = neighbour_terms(), []
    desk = AggregationService()
    opened = desk.open_sum(terms)

    def handle(path: str, body: bytes) -> tuple[int, bytes]:
        heard.append(body)
        return (503, b"") if len(heard) == 1 else desk.handle(path, body)

    with serve_aggregation(handle, "127.0.0.1", 0) as url, urllib3.PoolManager() as pool:
        client = SumClient(url, key, MessageStore(tmp_path / "kept"), pool)
        with pytest.raises(ServerUnavailableError, match="503"):
            client.poll_step(terms, lambda: np.zeros(8, np.uint32))
        assert client.poll_step(terms, lambda: np.zeros(8, np.uint32)) == "advertised"
    assert heard[0] == heard[1]
    assert opened.device_count == 1


def test_a_server_that_is_not_there_is_no_reason_to_stop(tmp_path: Path) -> None:
    with (
        urllib3.PoolManager(timeout=2, retries=False) as pool,
        pytest.raises(ServerUnavailableError, match="reached"),
    ):
        post_bytes(pool, "http://127.0.0.1:9/sums/x/advertise", b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/sums", 404),
        ("/sums/00/advertise", 404),
        ("/sums/{id}", 404),
        ("/sums/{id}/total", 404),
        ("/sums/{id}/submit", 404),
        ("/sums/{id}/inbox/zz", 404),
        ("/sums/{id}/participants", 409),
        ("/sums/{id}/survivors", 409),
        ("/sums/{id}/inbox/00", 409),
        ("/sums/{id}/advertise", 403),
        ("/sums/{id}/done", 404),
    ],
)
def test_a_desk_answers_what_it_has_and_nothing_else(path: str, status: int) -> None:
    desk, terms = AggregationService(), neighbour_terms()
    assert isinstance(desk.open_sum(terms), SecAggServer)
    assert desk.handle(path.format(id=terms.digest.hex()), b"\xc1")[0] == status


def test_a_desk_tells_whom_it_goes_on_without() -> None:
    fleet, terms = Fleet(3), helper_terms()
    stranger = MaskHelper(HELPER_KEY, EnrolmentList(1, frozenset(fleet.names[1:])), InMemoryUsedSeeds())
    gatherer = MaskedSumCollector(terms)
    for gift in fleet.gifts(terms, HELPER):
        gatherer.accept(gift)
    with serve_aggregation(HelperService(stranger).handle, "127.0.0.1", 0) as url, urllib3.PoolManager() as pool:
        with pytest.raises(DeclinedError, match="not enrolled") as refusal:
            post_bytes(pool, f"{url}/help", gatherer.helper_request())
        assert refusal.value.culprits == (fleet.names[0],)
        with pytest.raises(ServerUnavailableError, match="404"):
            post_bytes(pool, f"{url}/sums", b"")


def test_desks_are_opened_and_closed_by_their_terms() -> None:
    desk, terms = AggregationService(), helper_terms()
    opened = desk.open_sum(terms)
    assert desk.open_sum(terms) is opened
    desk.close_sum(terms)
    assert desk.open_sum(terms) is not opened


ONCE, ASKED = b"o" * 32, b"a" * 32
TAGS = [bytes([number]) * 16 for number in range(5)]


def test_used_seeds_outlive_the_helper(tmp_path: Path) -> None:
    used = UsedSeedsFile(tmp_path / "used")
    used.claim_seeds(ONCE, ASKED, TAGS)
    used.claim_seeds(b"p" * 32, ASKED, [])
    used.close()
    again = UsedSeedsFile(tmp_path / "used")
    assert again.answered_digest(ONCE) == ASKED
    assert again.answered_digest(b"p" * 32) == ASKED
    assert again.any_used(TAGS[3:4])
    assert not again.any_used([b"x" * 16])
    with pytest.raises(OutputError, match="cannot be opened"):
        UsedSeedsFile(tmp_path / "used")
    again.close()


@pytest.mark.parametrize("left", [1, 30, 67, 68, 100, 163])
def test_a_record_that_a_power_cut_left_half_is_of_no_answer(tmp_path: Path, left: int) -> None:
    path = tmp_path / "used"
    used = UsedSeedsFile(path)
    used.claim_seeds(ONCE, ASKED, TAGS)
    whole = path.stat().st_size
    used.claim_seeds(b"p" * 32, ASKED, TAGS[:2])
    used.close()
    path.write_bytes(path.read_bytes()[: whole + min(left, path.stat().st_size - whole - 1)])
    again = UsedSeedsFile(path)
    assert again.answered_digest(ONCE) == ASKED
    assert again.answered_digest(b"p" * 32) is None
    again.claim_seeds(b"q" * 32, ASKED, TAGS[:1])
    again.close()
    last = UsedSeedsFile(path)
    assert last.answered_digest(b"q" * 32) == ASKED
    last.close()


def test_a_damaged_record_of_used_seeds_stops_the_helper(tmp_path: Path) -> None:
    path = tmp_path / "used"
    used = UsedSeedsFile(path)
    used.claim_seeds(ONCE, ASKED, TAGS)
    used.close()
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutputError, match="damaged"):
        UsedSeedsFile(path)


def test_where_nothing_can_be_stored_nothing_is_answered(full_disk: Path) -> None:
    fleet, terms = Fleet(3), helper_terms()
    used = UsedSeedsFile(full_disk / "used")
    (full_disk / "rest").write_bytes(bytes(4))
    filler = full_disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(1024)):
                pass
        except OSError:
            pass
    gatherer = MaskedSumCollector(terms)
    for gift in fleet.gifts(terms, HELPER):
        gatherer.accept(gift)
    helper = MaskHelper(HELPER_KEY, fleet.enrolment(), used)
    with pytest.raises(OutputError, match="cannot be written"):
        helper.answer_request(gatherer.helper_request())
    filler.unlink()
    with pytest.raises(OutputError, match="failed before"):
        helper.answer_request(gatherer.helper_request())
    used.close()
    restarted = UsedSeedsFile(full_disk / "used")
    again = MaskHelper(HELPER_KEY, fleet.enrolment(), restarted)
    assert (
        gatherer.unmask_sum(again.answer_request(gatherer.helper_request())).tolist()
        == Round(fleet, neighbour_terms(degree=0, threshold=0)).plain(fleet.names).tolist()
    )
    restarted.close()
