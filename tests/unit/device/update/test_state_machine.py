"""The table: whoever is in a state can get out of it, and failures lead back to what is proven."""

import pytest

from edgewright.device.update.state_machine import (
    TRANSITIONS,
    LifecycleError,
    UpdateEvent,
    UpdateLifecycleState,
    lifecycle_diagram,
    next_state,
)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {UpdateLifecycleState.EMPTY, UpdateLifecycleState.IDLE} | set(TRANSITIONS.values())
    assert reached == set(UpdateLifecycleState)
    assert {state for state, _ in TRANSITIONS} == set(UpdateLifecycleState)


def test_every_event_has_a_place() -> None:
    assert {event for _, event in TRANSITIONS} == set(UpdateEvent)


@pytest.mark.parametrize(
    "state",
    [
        state
        for state in UpdateLifecycleState
        if state not in (UpdateLifecycleState.EMPTY, UpdateLifecycleState.IDLE)
    ],
)
def test_whatever_goes_wrong_leads_back_to_the_proven_model(state: UpdateLifecycleState) -> None:
    seen, edge = {state}, {state}
    while edge:
        edge = {TRANSITIONS[s, e] for s, e in TRANSITIONS if s in edge} - seen
        seen |= edge
    assert UpdateLifecycleState.IDLE in seen


def test_without_a_proven_model_a_device_is_empty_and_not_idle() -> None:
    assert (
        next_state(UpdateLifecycleState.TESTING, UpdateEvent.TEST_FAILED, has_proven=False)
        is UpdateLifecycleState.EMPTY
    )
    assert (
        next_state(UpdateLifecycleState.TESTING, UpdateEvent.TEST_FAILED, has_proven=True)
        is UpdateLifecycleState.IDLE
    )
    assert (
        next_state(UpdateLifecycleState.PROBATION, UpdateEvent.PROMOTED, has_proven=True)
        is UpdateLifecycleState.IDLE
    )


def test_what_the_table_does_not_know_is_refused() -> None:
    with pytest.raises(LifecycleError, match="cannot be 'fetched'"):
        next_state(UpdateLifecycleState.IDLE, UpdateEvent.FETCHED, has_proven=True)


def test_the_diagram_has_an_arrow_for_each_entry() -> None:
    assert lifecycle_diagram().count("-->") == len(TRANSITIONS)
