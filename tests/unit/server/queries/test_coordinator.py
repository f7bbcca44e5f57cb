"""Private sums on the server: kept in the database, closed in time, taken up by any process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round
from tests.unit.privacy.examples import HISTOGRAM, query_of, template_like

from edgewright.cli.aggregation_server import serving
from edgewright.contract.config.fleet import Fleet as FleetFile
from edgewright.contract.query.query import Query, Template
from edgewright.contract.timestamps import time_of
from edgewright.privacy.aggregation_handler import HelperDesk
from edgewright.privacy.helper import Helper, UsedInMemory
from edgewright.privacy.protocol_params import terms_of
from edgewright.privacy.roster import Terms
from edgewright.privacy.secagg_server import Collector
from edgewright.server.queries import coordinator
from edgewright.server.queries.coordinator import Asking, Live
from edgewright.server.services import Services
from edgewright.server.store.store import Store, make_store
from edgewright.trust.storage.storage import LocalStore

FLEET = Fleet(8)
BEGINS, ENDS = (time_of(text).timestamp() for text in ("2026-06-02", "2026-06-20"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = make_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    for name in FLEET.names:
        token = store.devices.invite("camera", made_by="test", now_s=0.0, lifetime_s=9e9)
        store.devices.enrol(token, name, now_s=1.0)
    yield store
    store.close()


@pytest.fixture
def services(store: Store, tmp_path: Path) -> Callable[..., Services]:
    def make(**given: str) -> Services:
        files = LocalStore(tmp_path)
        return Services(store, "fleet", lambda: None, files, None, FleetFile(), lambda: BEGINS, **given)  # type: ignore[arg-type, return-value]

    return make


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Query, Template, Terms]]:
    def run(**changes: Any) -> tuple[Query, Template, Terms]:
        template = template_like(HISTOGRAM, backends=("helper", "secagg"), model="digits")
        query = query_of(template, **changes)
        monkeypatch.setattr(coordinator, "live_queries", lambda _: [Live("digits", query, template)])
        return query, template, terms_of(query, template)

    return run


@pytest.fixture
def helper() -> Helper:
    return Helper(HELPER_KEY, FLEET.enrolment(), UsedInMemory())


@pytest.fixture
def helper_url(helper: Helper) -> Iterator[str]:
    desk = HelperDesk(helper)
    with serving(desk.handle, "127.0.0.1", 0, knows=desk.knows) as url:
        yield url


def sent(services: Services, terms: Terms, act: str, content: bytes) -> int:
    return services.desk.handle(f"/sums/{terms.digest.hex()}/{act}", content)[0]


def ones(terms: Terms) -> dict[bytes, np.ndarray]:
    return {name: np.ones(terms.length, np.uint32) for name in FLEET.names}


def test_a_sum_with_a_helper_is_opened_when_all_have_answered(
    store: Store,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, Template, Terms]],
    helper: Helper,
    helper_url: str,
) -> None:
    query, _, terms = ask()
    server = services(helper_url=helper_url)
    all_in_one = Asking(server, answers=True)
    all_in_one.tend(BEGINS)
    gifts = list(FLEET.gifts(terms, helper.public, ones(terms)))
    assert [sent(server, terms, "gift", gift) for gift in gifts[:7]] == [200] * 7
    assert all_in_one.step(BEGINS + 1) == []
    assert sent(server, terms, "gift", gifts[7]) == 200
    assert all_in_one.step(BEGINS + 1) == ["query q0: 8 devices"]
    kept = store.sums.get(query.id)
    assert kept is not None
    assert (kept.state, kept.devices) == ("done", 8)
    assert kept.result is not None
    assert msgspec.json.decode(kept.result)["sums"]["mean"] == [8.0] * 4
    assert store.sums.count_letters(terms.digest.hex(), "gift") == 0
    assert all_in_one.step(BEGINS + 2) == []


def test_a_sum_is_closed_at_its_time_and_given_up_at_its_deadline(
    store: Store,
    services: Callable[..., Services],
    ask: Callable[..., tuple[Query, Template, Terms]],
    helper: Helper,
    helper_url: str,
) -> None:
    _, _, terms = ask()
    server = services(helper_url=helper_url)
    all_in_one = Asking(server, answers=True)
    all_in_one.tend(BEGINS)
    for gift in list(FLEET.gifts(terms, helper.public))[:5]:  # fewer than the cohort of 8
        assert sent(server, terms, "gift", gift) == 200
    assert all_in_one.step(BEGINS + 0.95 * (ENDS - BEGINS)) == []
    assert store.sums.get("q0").state == "open"  # type: ignore[union-attr]
    (words,) = all_in_one.step(ENDS)
    assert "no sum" in words
    assert store.sums.get("q0").state == "failed"  # type: ignore[union-attr]
    assert store.audit.page()[0].action == "end query"


def test_two_workers_and_a_controller_come_to_one_sum_without_a_helper(
    store: Store, services: Callable[..., Services], ask: Callable[..., tuple[Query, Template, Terms]]
) -> None:
    _, _, terms = ask(backend="secagg")
    workers = [Asking(services(), answers=True) for _ in range(2)]
    controller = Asking(services(), answers=False)
    for worker in workers:
        worker.tend(BEGINS)
    fleet = Round(FLEET, terms, ones(terms))
    for number, step in enumerate(("join", "share", "mask", "reveal")):
        for at, name in enumerate(FLEET.names):
            taking = workers[(at + number) % 2].services
            opened = taking.desk.open(terms)
            assert isinstance(opened, Collector)
            assert opened.step == step
            fleet.server = opened
            fleet.members[name] = fleet.act(name)
            assert sent(taking, terms, step, fleet.members[name].said) == 200
        (words,) = controller.step(BEGINS + 1)
        for worker in workers:
            worker.tend(BEGINS + 1)
    assert words == "query q0: 8 devices"
    kept = store.sums.get("q0")
    assert kept is not None
    assert kept.result is not None
    assert msgspec.json.decode(kept.result)["sums"]["confidence"] == [8.0] * 4


def test_a_letter_that_another_worker_took_after_the_step_was_closed_is_in_no_roster(
    store: Store, services: Callable[..., Services], ask: Callable[..., tuple[Query, Template, Terms]]
) -> None:
    query, template, terms = ask(backend="secagg", cohort=8)
    late, other = Asking(services(), answers=True), Asking(services(), answers=True)
    late.tend(BEGINS)
    fleet = Round(FLEET, terms, ones(terms))
    joins = {name: fleet.act(name).said for name in FLEET.names}
    for name in FLEET.names[:7]:
        assert sent(late.services, terms, "join", joins[name]) == 200
    controller = Asking(services(), answers=False)
    controller._rebuild(Live("digits", query, template), terms, 0)
    assert sent(late.services, terms, "join", joins[FLEET.names[7]]) == 200  # meanwhile
    listed = controller._listed[terms.digest.hex()]["join"]
    controller._keep(terms, "join.closed", b"")
    assert len(listed) == 7 * 32
    assert store.sums.count_letters(terms.digest.hex(), "join") == 8
    assert len([name for name in other._kept(terms) if name.startswith("join-")]) == 7
