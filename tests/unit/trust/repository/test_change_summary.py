"""Whoever signs what a fleet may be asked sees what that is, and what it was before."""

import msgspec
from tests.unit.trust.conftest import Place

from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import CountedSignal, QueryTemplate
from edgewright.trust.publishing.signed_queries import publish_permit
from edgewright.trust.repository.staging import describe_changes, discard_staged, staged_metadata

TEMPLATE = QueryTemplate(
    *("signals", "histogram", "camera"),
    clip=100.0,
    min_noise=0.05,
    min_cohort=100,
    max_rho=0.05,
    min_interval_seconds=86400.0,
    expires_at="2099-01-01",
    signals=(CountedSignal("mean", 4),),
)
BEFORE = QueryPermit("m", "camera", 1, "https://sums.example", "ab" * 32, (TEMPLATE,))


def read(place: Place, record: QueryPermit) -> list[str]:
    repository = place.repository()
    publish_permit(repository, place.keys(), record, only_stage=True)
    found = describe_changes(place.repository(), staged_metadata(place.repository()))
    discard_staged(place.repository())
    return found


def test_a_signer_sees_what_a_permit_permits(place: Place) -> None:
    said = read(place, BEFORE)
    assert "  server_url: 'https://sums.example'" in said
    assert f"  helper_public_key: '{'ab' * 32}'" in said
    assert "  template signals, which is new" in said
    for line in (
        "clip: 100.0",
        "min_cohort: 100",
        "max_rho: 0.05",
        "min_interval_seconds: 86400.0",
        'backends: ["helper"]',
    ):
        assert f"    {line}" in said


def test_a_signer_sees_what_a_permit_was_before(place: Place) -> None:
    publish_permit(place.repository(), place.keys(), BEFORE)
    laxer = msgspec.structs.replace(TEMPLATE, min_cohort=2, backends=("helper", "secagg"), assumed_colluders=1)
    after = msgspec.structs.replace(BEFORE, revision=2, server_url="http://elsewhere.example", templates=(laxer,))
    said = read(place, after)
    assert "  server_url: 'http://elsewhere.example', before 'https://sums.example'" in said
    assert "    min_cohort: 2, before 100" in said
    assert '    backends: ["helper","secagg"], before ["helper"]' in said
    assert "    assumed_colluders: 1, before 0" in said
    assert "    clip: 100.0" in said
    gone = read(place, msgspec.structs.replace(BEFORE, revision=3, templates=()))
    assert "  template signals is no more" in gone
