"""Private sums on the server: kept in the database, closed in time, taken up by any process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round
from tests.unit.privacy.examples import HISTOGRAM, query_of, template_like

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.contract.config.fleet import FleetConfig as FleetFile
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.contract.timestamps import parse_iso8601
from edgewright.privacy.aggregation_handler import HelperService
from edgewright.privacy.helper import InMemoryUsedSeeds, MaskHelper
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.roster import ProtocolTerms
from edgewright.privacy.secagg_server import SecAggServer
from edgewright.server.queries import coordinator
from edgewright.server.queries.coordinator import LiveQuery, QueryCoordinator
from edgewright.server.services import Services
from edgewright.server.store.store import FleetStore, create_store
from edgewright.trust.storage.storage import LocalStorage

FLEET = Fleet(8)
BEGINS, ENDS = (parse_iso8601(text).timestamp() for text in ("2026-06-02", "2026-06-20"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FleetStore]:
    store = create_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    for name in FLEET.names:
        token = store.devices.create_enrolment_token("camera", created_by="test", now=0.0, lifetime_seconds=9e9)
        store.devices.enrol(token, name, now=1.0)
    yield store
    store.close()


@pytest.fixture
def services(store: FleetStore, tmp_path: Path) -> Callable[..., Services]:
    def make(**given: str) -> Services:
        files = LocalStorage(tmp_path)
        return Services(store, "fleet", lambda: None, files, None, FleetFile(), lambda: BEGINS, **given)  # type: ignore[arg-type, return-value]

    return make


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Query, QueryTemplate, ProtocolTerms]]:
    def run(**changes: Any) -> tuple[Query, QueryTemplate, ProtocolTerms]:
        template = template_like(HISTOGRAM, backends=("helper", "secagg"), model="digits")
        query = query_of(template, **changes)
        monkeypatch.setattr(coordinator, "live_queries", lambda _: [LiveQuery("digits", query, template)])
        return query, template, protocol_terms(query, template)

    return run


@pytest.fixture
def helper() -> MaskHelper:
    return MaskHelper(HELPER_KEY, FLEET.enrolment(), InMemoryUsedSeeds())


@pytest.fixture
def helper_url(helper: MaskHelper) -> Iterator[str]:
    desk = HelperService(helper)
    with serve_aggregation(desk.handle, "127.0.0.1", 0, knows=desk.has_path) as url:
        yield url


def sent(services: Services, terms: ProtocolTerms, act: str, content: bytes) -> int:
    return services.aggregation.handle(f"/sums/{terms.digest.hex()}/{act}", content)[0]


def ones(terms: ProtocolTerms) -> dict[bytes, np.ndarray]:
    return {name: np.ones(terms.vector_length, np.uint32) for name in FLEET.names}


def test_a_sum_with_a_helper_is_opened_when_all_have_answered(
    store: FleetStore,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, QueryTemplate, ProtocolTerms]],
    helper: MaskHelper,
    helper_url: str,
) -> None:
    query, _, terms = ask()
    server = services(helper_url=helper_url)
    all_in_one = QueryCoordinator(server, handles_messages=True)
    all_in_one.sync_open_sums(BEGINS)
    gifts = list(FLEET.gifts(terms, helper.public_key, ones(terms)))
    assert [sent(server, terms, "submit", gift) for gift in gifts[:7]] == [200] * 7
    assert all_in_one.advance_sums(BEGINS + 1) == []
    assert sent(server, terms, "submit", gifts[7]) == 200
    assert all_in_one.advance_sums(BEGINS + 1) == ["query q0: 8 devices"]
    kept = store.queries.get(query.id)
    assert kept is not None
    assert (kept.state, kept.devices) == ("done", 8)
    assert kept.result is not None
    assert msgspec.json.decode(kept.result)["sums"]["mean"] == [8.0] * 4
    assert store.queries.count_messages(terms.digest.hex(), "submit") == 0
    assert all_in_one.advance_sums(BEGINS + 2) == []


def test_a_sum_is_closed_at_its_time_and_given_up_at_its_deadline(
    store: FleetStore,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, QueryTemplate, ProtocolTerms]],
    helper: MaskHelper,
    helper_url: str,
) -> None:
    _, _, terms = ask()
    server = services(helper_url=helper_url)
    all_in_one = QueryCoordinator(server, handles_messages=True)
    all_in_one.sync_open_sums(BEGINS)
    for gift in list(FLEET.gifts(terms, helper.public_key))[:5]:  # fewer than the cohort of 8
        assert sent(server, terms, "submit", gift) == 200
    assert all_in_one.advance_sums(BEGINS + 0.95 * (ENDS - BEGINS)) == []
    assert store.queries.get("q0").state == "open"  # type: ignore[union-attr]
    (words,) = all_in_one.advance_sums(ENDS)
    assert "no sum" in words
    assert store.queries.get("q0").state == "failed"  # type: ignore[union-attr]
    assert store.audit.entries()[0].action == "end query"


def test_two_workers_and_a_controller_come_to_one_sum_without_a_helper(
    store: FleetStore,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, QueryTemplate, ProtocolTerms]],
) -> None:
    _, _, terms = ask(backend="secagg")
    workers = [QueryCoordinator(services(), handles_messages=True) for _ in range(2)]
    controller = QueryCoordinator(services(), handles_messages=False)
    for worker in workers:
        worker.sync_open_sums(BEGINS)
    fleet = Round(FLEET, terms, ones(terms))
    for number, step in enumerate(("advertise", "share", "mask", "reveal")):
        for at, name in enumerate(FLEET.names):
            taking = workers[(at + number) % 2].services
            opened = taking.aggregation.open_sum(terms)
            assert isinstance(opened, SecAggServer)
            assert opened.step == step
            fleet.server = opened
            fleet.members[name] = fleet.act(name)
            assert sent(taking, terms, step, fleet.members[name].last_message) == 200
        (words,) = controller.advance_sums(BEGINS + 1)
        for worker in workers:
            worker.sync_open_sums(BEGINS + 1)
    assert words == "query q0: 8 devices"
    kept = store.queries.get("q0")
    assert kept is not None
    assert kept.result is not None
    assert msgspec.json.decode(kept.result)["sums"]["confidence"] == [8.0] * 4


def test_a_letter_that_another_worker_took_after_the_step_was_closed_is_in_no_roster(
    store: FleetStore,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, QueryTemplate, ProtocolTerms]],
) -> None:
    query, template, terms = ask(backend="secagg", min_cohort=8)
    late, other = (
        QueryCoordinator(services(), handles_messages=True),
        QueryCoordinator(services(), handles_messages=True),
    )
    late.sync_open_sums(BEGINS)
    fleet = Round(FLEET, terms, ones(terms))
    joins = {name: fleet.act(name).last_message for name in FLEET.names}
    for name in FLEET.names[:7]:
        assert sent(late.services, terms, "advertise", joins[name]) == 200
    controller = QueryCoordinator(services(), handles_messages=False)
    controller._rebuild(LiveQuery("digits", query, template), terms, 0)
    assert sent(late.services, terms, "advertise", joins[FLEET.names[7]]) == 200  # meanwhile
    listed = controller._listed[terms.digest.hex()]["advertise"]
    controller._store_message(terms, "advertise.closed", b"")
    assert len(listed) == 7 * 32
    assert store.queries.count_messages(terms.digest.hex(), "advertise") == 8
    assert len([name for name in other._stored_messages(terms) if name.startswith("advertise-")]) == 7
