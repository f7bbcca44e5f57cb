"""Whoever signs what a fleet may be asked sees what that is, and what it was before."""

import msgspec
from tests.unit.trust.conftest import Place

from edgewright.contract.query.permit import Permit
from edgewright.contract.query.query import Counted, Template
from edgewright.trust.publishing.signed_queries import permit
from edgewright.trust.repository.staging import changes, discard, staged

TEMPLATE = Template(
    *("signals", "histogram", "camera"),
    clip=100.0,
    least_noise=0.05,
    min_cohort=100,
    dearest_rho=0.05,
    every_s=86400.0,
    expires="2099-01-01",
    signals=(Counted("mean", 4),),
)
BEFORE = Permit("m", "camera", 1, "https://sums.example", "ab" * 32, (TEMPLATE,))


def read(place: Place, record: Permit) -> list[str]:
    repository = place.repository()
    permit(repository, place.keys(), record, only_stage=True)
    found = changes(place.repository(), staged(place.repository()))
    discard(place.repository())
    return found


def test_a_signer_sees_what_a_permit_permits(place: Place) -> None:
    said = read(place, BEFORE)
    assert "  server: 'https://sums.example'" in said
    assert f"  helper: '{'ab' * 32}'" in said
    assert "  template signals, which is new" in said
    for line in ("clip: 100.0", "min_cohort: 100", "dearest_rho: 0.05", "every_s: 86400.0", 'backends: ["helper"]'):
        assert f"    {line}" in said


def test_a_signer_sees_what_a_permit_was_before(place: Place) -> None:
    permit(place.repository(), place.keys(), BEFORE)
    laxer = msgspec.structs.replace(TEMPLATE, min_cohort=2, backends=("helper", "secagg"), colluders=1)
    after = msgspec.structs.replace(BEFORE, revision=2, server="http://elsewhere.example", templates=(laxer,))
    said = read(place, after)
    assert "  server: 'http://elsewhere.example', before 'https://sums.example'" in said
    assert "    min_cohort: 2, before 100" in said
    assert '    backends: ["helper","secagg"], before ["helper"]' in said
    assert "    colluders: 1, before 0" in said
    assert "    clip: 100.0" in said
    gone = read(place, msgspec.structs.replace(BEFORE, revision=3, templates=()))
    assert "  template signals is no more" in gone
