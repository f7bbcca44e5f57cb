"""What a device answers when it is asked, and what it refuses; each refusal tells why."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.unit.device.conftest import NOW, World, answer

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.contract.query.permit import LiveQueries, QueryPermit
from edgewright.contract.query.query import CountedSignal, DeviceQueryLimits, Query, QueryTemplate
from edgewright.contract.refusal import RefusedError
from edgewright.contract.release import StoredFile
from edgewright.device.agent import Agent
from edgewright.device.queries import sum_client
from edgewright.privacy.aggregation_handler import AggregationService
from edgewright.privacy.helper import MaskedSubmission
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.query_calibration import fill_template
from edgewright.privacy.roster import decode_message
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.publishing.signed_queries import publish_permit, publish_query
from edgewright.trust.repository.metadata_renewal import renew_metadata
from edgewright.trust.repository.signed_records import change_online
from edgewright.trust.target_paths import queries_path

LIMITS = DeviceQueryLimits(rho_per_period=0.2, min_cohort=10)
HELPER = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
PROFILE = ReferenceProfile("x", 4, (ReferenceSignal("mean", (0.5, 1.5, 2.5), (25, 25, 25, 25, 0)),))
DAY = timedelta(days=1)


class Asked:
    """A fleet of one device that serves a release with a profile, and a server that takes answers."""

    def __init__(self, world: World, url: str, desk: "Desk") -> None:
        self.world, self.desk = world, desk
        self.template = QueryTemplate(
            "signals",
            "histogram",
            "default",
            clip=50.0,
            min_noise=0.05,
            min_cohort=10,
            max_rho=0.05,
            min_interval_seconds=60.0,
            expires_at=(NOW + 300 * DAY).isoformat(),
            model="m",
            signals=(CountedSignal("mean", 5), CountedSignal("rejected", 8)),
            subgroups=("site",),
        )
        self.server = url
        world.publish("1.0.0", 1.0, change=with_profile)
        world.start("1.0.0")
        world.enrol(query_limits=LIMITS, labels={"site": "berlin"})
        self.device = world.agent()
        self.device.check_for_update()
        assert self.device.monitor is not None
        self.device.monitor.wall_clock = lambda: world.clock().timestamp()

    def permit(self, revision: int = 1, **changes: Any) -> None:
        template = msgspec.structs.replace(self.template, **changes)
        record = QueryPermit("m", "default", revision, self.server, HELPER, (template,))
        publish_permit(self.world.repository(), self.world.keys, record)
        self.template = template

    def query(self, name: str = "q1", **changes: Any) -> Query:
        hour = self.world.clock().replace(minute=0, second=0, microsecond=0)
        whole = Query(
            id=name,
            template="signals",
            template_digest="0" * 64,
            window_start=(hour - DAY).isoformat(),
            window_end=hour.isoformat(),
            deadline=(hour + 2 * DAY).isoformat(),
            bits=32,
            scale=1.0,
            sigma=2.0,
            min_cohort=10,
            max_cohort=100,
            rho=1.0,
            backend="helper",
            seed="ab" * 32,
            release=dict(list_releases(self.world.repository(), "m"))["1.0.0"],
        )
        return msgspec.structs.replace(fill_template(whole, self.template, 1.0), **changes)

    def asks(self, *queries: Query) -> None:
        """Sign questions, whatever they say: so would whoever has stolen the online keys."""
        repository = self.world.repository()
        with repository.locked():
            content = msgspec.json.encode(LiveQueries("m", "default", queries))
            change_online(repository, self.world.keys, queries_path("m", "default"), content)

    def gifts(self, query: Query) -> list[MaskedSubmission]:
        return self.desk.taken.get(protocol_terms(query, self.template).digest.hex(), [])

    def told(self) -> dict[str, Any]:
        return self.device.privacy_report()


def with_profile(variant: Any, contents: dict[str, bytes]) -> tuple[Any, dict[str, bytes]]:
    content = msgspec.json.encode(PROFILE)
    file = StoredFile("profile.json", hashlib.sha256(content).hexdigest(), len(content))
    changed = msgspec.structs.replace(variant, files=(*variant.files, file), reference_profile="profile.json")
    return changed, {**contents, "profile.json": content}


class Desk(AggregationService):
    """Takes everything, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, list[MaskedSubmission]] = {}
        self.bodies: list[bytes] = []
        self.away = 0

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        _, name, _ = path.strip("/").split("/")
        self.bodies.append(body)
        if self.away:
            self.away -= 1
            return 503, b""
        self.taken.setdefault(name, []).append(decode_message(body, MaskedSubmission))
        return 200, b""


@pytest.fixture
def asked(world: World) -> Iterator[Asked]:
    desk = Desk()
    with serve_aggregation(desk.handle, "127.0.0.1", 0) as url:
        yield Asked(world, url, desk)


def saw(asked: Asked, *values: float) -> None:
    for value in values:
        assert answer(asked.device, value) is not None
    assert asked.device.monitor is not None
    asked.device.monitor.flush()


def later(asked: Asked, **by: float) -> None:
    """Let time pass, and have it signed."""
    asked.world.clock.turn(**by)
    renew_metadata(asked.world.repository(), asked.world.keys)


def test_what_was_counted_in_the_window_is_told_once_and_noised(asked: Asked) -> None:
    asked.permit()
    saw(asked, 1.0, 2.0, 2.0)
    later(asked, hours=2)
    saw(asked, 0.0)  # in an hour that has not ended
    query = asked.query()
    assert asked.device.monitor is not None
    assert asked.device.monitor.query_counts(query, asked.template).tolist() == [0, 1, 2, 0, 0, *[0] * 8]
    asked.asks(query)
    asked.device.check_for_update()
    (gift,) = asked.gifts(query)
    shown = asked.told()
    (entry,) = shown["answers"]
    assert (entry.query_id, entry.summed, entry.min_cohort) == ("q1", ("mean", "rejected"), 10)
    assert entry.rho == pytest.approx(query.rho)
    assert shown["progress"] == {"q1": "submitted"}
    assert gift.sender.hex() == shown["public_key"]


def test_asked_again_it_says_the_same_bytes_and_pays_once(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    query = asked.query()
    asked.asks(query)
    asked.desk.away = 2
    asked.device.check_for_update()
    again = asked.world.agent()  # the process was killed
    for _ in range(3):
        again.check_for_update()
    bodies = asked.desk.bodies
    assert len(bodies) == 3, "twice in vain, then once"
    assert len(set(bodies)) == 1
    assert again.privacy_report()["total_answers"] == 1


def test_what_is_not_asked_any_more_is_forgotten_and_its_cost_stays(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    asked.asks(asked.query())
    asked.device.check_for_update()
    answers, letters = asked.device.state_folder / "privacy.answers", asked.device.state_folder / "sums"
    assert list(answers.iterdir())
    assert list(letters.iterdir())
    later(asked, hours=25)
    asked.asks(asked.query("q2", deadline=(NOW - DAY).isoformat()))
    asked.device.check_for_update()
    assert list(answers.iterdir()) == []
    assert list(letters.iterdir()) == []
    assert asked.told()["total_answers"] == 1


def test_the_owner_sees_from_another_process_what_was_asked_and_refused(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    asked.asks(asked.query("q1"), msgspec.structs.replace(asked.query("q2"), min_cohort=3))
    asked.device.check_for_update()
    other = Agent(asked.device.state_folder, serves_model=False)
    shown = other.privacy_report()
    assert shown["progress"] == {"q1": "submitted"}
    assert "cohort of 3" in shown["refusals"]["q2"].reason


def test_a_server_that_drips_holds_nobody_up(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sum_client, "_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with suppress(OSError):
                peer, _ = server.accept()
                with peer:
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    while True:
                        peer.sendall(b"x")
                        time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        asked.server = f"http://127.0.0.1:{server.getsockname()[1]}"
        asked.permit()
        later(asked, hours=2)
        asked.asks(asked.query())
        began = time.monotonic()
        checking = threading.Thread(target=asked.device.check_for_update)
        checking.start()
        time.sleep(0.3)
        asked.device.settle_probation()  # is not held up
        checking.join(10)
        assert time.monotonic() - began < 8
    assert asked.told()["progress"] == {"q1": "not reached"}


def test_a_vector_is_refused_before_anything_is_spent(asked: Asked) -> None:
    asked.permit(kind="vector", signals=(), vector_length=10, clip=1.0, min_noise=1e-4)
    later(asked, hours=2)
    asked.asks(asked.query(scale=64.0))
    asked.device.check_for_update()
    assert asked.told()["total_answers"] == 0
    assert asked.told()["refusals"]["q1"].code == "policy"


Change = Callable[[Asked, Query], Query]

ATTACKS: dict[str, tuple[Change, str]] = {
    "lowered noise": (lambda a, q: msgspec.structs.replace(q, sigma=1.6), "noise"),
    "noise below the sampler's": (lambda a, q: msgspec.structs.replace(q, sigma=0.5), "noise"),
    "a cost that is understated": (lambda a, q: msgspec.structs.replace(q, rho=q.rho / 2), "cost"),
    "a Sybil cohort under the template's floor": (
        lambda a, q: msgspec.structs.replace(q, min_cohort=3),
        "cohort of 3",
    ),
    "another template than was signed": (
        lambda a, q: msgspec.structs.replace(q, template_digest="1" * 64),
        "not of signals as it is signed",
    ),
    "a template that nobody signed": (lambda a, q: msgspec.structs.replace(q, template="all"), "no template all"),
    "a modulus that wraps": (lambda a, q: msgspec.structs.replace(q, bits=4), "do not hold the sum"),
    "a backend that is not permitted": (lambda a, q: msgspec.structs.replace(q, backend="secagg"), "backend"),
    "a subgroup that is not permitted": (
        lambda a, q: msgspec.structs.replace(q, subgroup={"owner": "x"}),
        "",
    ),
    "a projection of counts": (lambda a, q: msgspec.structs.replace(q, projected_length=2), "projection"),
    "a deadline that has passed": (
        lambda a, q: msgspec.structs.replace(q, deadline=(NOW - DAY).isoformat()),
        "deadline has passed",
    ),
    "a deadline after the template's end": (
        lambda a, q: msgspec.structs.replace(q, deadline=(NOW + 400 * DAY).isoformat()),
        "after the template expires",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_question_that_breaks_the_rules_is_refused_and_costs_nothing(asked: Asked, name: str) -> None:
    change, reason = ATTACKS[name]
    asked.permit()
    later(asked, hours=2)
    query = change(asked, asked.query())
    asked.asks(query)
    asked.device.check_for_update()
    shown = asked.told()
    assert asked.desk.bodies == []
    assert shown["total_answers"] == 0
    if reason:
        assert reason in shown["refusals"]["q1"].reason
    assert answer(asked.device) is not None, "the model goes on serving"


def test_the_budget_ends_whoever_asks(asked: Asked) -> None:
    asked.permit()
    answered = 0
    for number in range(20):
        later(asked, hours=25)
        asked.asks(asked.query(f"q{number}"))
        asked.device.check_for_update()
        answered = asked.told()["total_answers"]
        if f"q{number}" in asked.told()["refusals"]:
            break
    refusal = asked.told()["refusals"][f"q{number}"]
    assert refusal.code == "budget"
    assert 0 < answered < 20
    assert asked.told()["total_rho"] <= LIMITS.rho_per_period


def test_questions_are_no_more_often_than_permitted(asked: Asked) -> None:
    asked.permit(min_interval_seconds=86400.0)
    later(asked, hours=2)
    asked.asks(asked.query("q1"), asked.query("q2"))
    asked.device.check_for_update()
    assert asked.told()["total_answers"] == 1
    assert "may be every" in asked.told()["refusals"]["q2"].reason


def test_a_lost_ledger_tells_nothing_and_updates_go_on(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    asked.asks(asked.query("q1"))
    asked.device.check_for_update()
    state = asked.device.state_folder
    for name in ("privacy.0", "privacy.1"):
        (state / name).unlink()
    later(asked, hours=25)
    asked.asks(asked.query("q2"))
    again = asked.world.agent()
    before = len(asked.desk.bodies)
    asked.world.publish("1.1.0", 2.0, change=with_profile)
    asked.world.start("1.1.0")
    again.check_for_update()
    assert len(asked.desk.bodies) == before
    with pytest.raises(RefusedError, match="ledger is lost"):
        again.privacy_report()
    assert again.journal_record.slots.trial is not None
    assert again.journal_record.slots.trial.version == "1.1.0"


def test_an_older_permit_is_refused(asked: Asked) -> None:
    asked.permit(revision=2, min_interval_seconds=90.0)
    later(asked, hours=2)
    asked.asks(asked.query("q1"))
    asked.device.check_for_update()
    memory = asked.device.journal_record.trust_state.models["m"]
    assert memory.permit_revision == 2
    newer = msgspec.structs.replace(
        asked.device.journal_record.trust_state, models={"m": msgspec.structs.replace(memory, permit_revision=5)}
    )
    asked.device._updater.write_record(trust_state=newer)
    later(asked, hours=25)
    asked.asks(asked.query("q2"))
    asked.device.check_for_update()
    assert "older than 5" in asked.told()["progress"][""]
    assert asked.told()["total_answers"] == 1


def test_a_clock_that_is_ahead_answers_nothing_before_its_time(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    hour = asked.world.clock().replace(minute=0, second=0, microsecond=0)
    end = (hour + timedelta(hours=5)).isoformat()
    asked.asks(asked.query(window_end=end))
    ahead = asked.world.clock() + timedelta(hours=12)
    asked.device.clock = lambda: ahead
    asked.device._updater.clock = lambda: ahead
    asked.device.check_for_update()
    assert asked.told()["progress"] == {"q1": "not yet"}
    assert asked.told()["total_answers"] == 0


@pytest.mark.parametrize(
    ("subgroup", "answers"), [({"site": "berlin"}, 1), ({"site": "paris"}, 0), ({}, 1)], ids=str
)
def test_only_who_is_meant_answers(asked: Asked, subgroup: dict[str, str], answers: int) -> None:
    asked.permit()
    later(asked, hours=2)
    asked.asks(asked.query(subgroup=subgroup))
    asked.device.check_for_update()
    assert asked.told()["total_answers"] == answers
    assert asked.told()["refusals"] == {}


def test_who_runs_another_release_is_not_asked(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    asked.asks(asked.query(release="f" * 64))
    asked.device.check_for_update()
    assert asked.told()["progress"] == {}


def test_a_server_that_is_away_is_asked_again_with_the_same_bytes(asked: Asked) -> None:
    url, asked.server = asked.server, "http://127.0.0.1:1"
    asked.permit()
    later(asked, hours=2)
    query = asked.query()
    asked.asks(query)
    asked.device.check_for_update()
    assert asked.told()["progress"] == {"q1": "not reached"}
    assert asked.told()["total_answers"] == 1, "it was debited before it was sent"
    asked.server = url
    asked.permit(revision=2)
    asked.device.check_for_update()
    assert len(asked.gifts(query)) == 1
    assert asked.told()["total_answers"] == 1


def test_who_saw_nothing_answers_all_the_same(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    query = asked.query()
    asked.asks(query)
    asked.device.check_for_update()
    assert len(asked.gifts(query)) == 1
    assert np.all(asked.device._query_counts(query, asked.template) == 0)


def test_what_the_application_learned_can_be_summed(asked: Asked) -> None:
    asked.permit(signals=(CountedSignal("outcome.wrong", 2),))
    asked.device.record_outcome("wrong", 1.0)
    asked.device.record_outcome("wrong", 0.0)
    asked.device.record_outcome("wrong", 0.0)
    later(asked, hours=2)
    query = asked.query()
    assert asked.device.monitor is not None
    assert asked.device.monitor.query_counts(query, asked.template).tolist() == [2, 1]


def test_the_online_keys_cannot_be_made_to_ask_what_is_laxer(asked: Asked) -> None:
    asked.permit()
    later(asked, hours=2)
    query = msgspec.structs.replace(asked.query(), min_cohort=2)
    with pytest.raises(Exception, match="cohort of 2"):
        publish_query(asked.world.repository(), asked.world.keys, "m", "default", query=query)
