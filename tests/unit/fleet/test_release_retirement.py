"""Which old releases may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.config.fleet import RetirementPolicy
from edgewright.contract.names import version_key
from edgewright.fleet.release_retirement import RetirementInputs, propose_retirement

FIVE = ("1.0", "1.1", "1.2", "1.10", "2.0")
BY_COUNT, BY_USE = RetirementPolicy(after_newer_versions=2), RetirementPolicy(unused_seconds=86400.0)
CASES = {
    "nothing is said": (RetirementPolicy(), FIVE, ("2.0",), (), "0", None),
    "two stay": (BY_COUNT, FIVE, ("2.0",), (), "0", ("1.10", ("1.0", "1.1", "1.2"))),
    "a device runs an old one": (BY_COUNT, FIVE, ("1.1", "2.0"), (), "0", ("1.1", ("1.0",))),
    "the oldest is run": (BY_COUNT, FIVE, ("1.0",), (), "0", None),
    "a rollout gives an old one": (BY_COUNT, FIVE, ("2.0",), ("1.2",), "0", ("1.2", ("1.0", "1.1"))),
    "it is done already": (BY_COUNT, FIVE, ("2.0",), (), "1.10", None),
    "more than there are": (RetirementPolicy(after_newer_versions=9), FIVE, ("2.0",), (), "0", None),
    "unused": (BY_USE, FIVE, ("1.10",), (), "0", ("1.10", ("1.0", "1.1", "1.2"))),
    "nobody runs anything": (BY_USE, FIVE, (), (), "0", ("2.0", ("1.0", "1.1", "1.2", "1.10"))),
    "both must hold": (RetirementPolicy(4, 86400.0), FIVE, ("2.0",), (), "0", ("1.1", ("1.0",))),
    "devices below the floor keep it": (BY_COUNT, FIVE, ("1.0",), (), "1.2", None),
    "no releases": (BY_COUNT, (), (), (), "0", None),
}


@pytest.mark.parametrize("what", CASES)
def test_what_goes(what: str) -> None:
    rule, versions, used, planned, floor, wanted = CASES[what]
    found = propose_retirement(RetirementInputs(rule, versions, used, planned, floor))
    assert (None if found is None else (found.min_version, found.retired)) == wanted


versions = st.lists(st.sampled_from([f"{a}.{b}" for a in range(4) for b in range(12)]), unique=True)


@given(versions, versions, versions, st.integers(1, 5), st.sampled_from(["0", "1.3", "2"]))
def test_nothing_that_is_used_planned_or_new_ever_goes(
    there: list[str], used: list[str], planned: list[str], keep: int, floor: str
) -> None:
    found = propose_retirement(
        RetirementInputs(RetirementPolicy(keep), tuple(there), tuple(used), tuple(planned), floor)
    )
    if found is not None:
        newest = sorted(there, key=version_key)[-keep:]
        assert not set(found.retired) & {*used, *planned, *newest}
        assert version_key(found.min_version) > version_key(floor)
        assert all(version_key(each) < version_key(found.min_version) for each in found.retired)
