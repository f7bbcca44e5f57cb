"""The table: whoever is in a state can get out of it, and failures lead back to what is proven."""

import pytest

from edgewright.device.update.state_machine import TRANSITIONS, Event, LifecycleError, State, after, diagram


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.EMPTY, State.IDLE} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


def test_every_event_has_a_place() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", [state for state in State if state not in (State.EMPTY, State.IDLE)])
def test_whatever_goes_wrong_leads_back_to_the_proven_model(state: State) -> None:
    seen, edge = {state}, {state}
    while edge:
        edge = {TRANSITIONS[s, e] for s, e in TRANSITIONS if s in edge} - seen
        seen |= edge
    assert State.IDLE in seen


def test_without_a_proven_model_a_device_is_empty_and_not_idle() -> None:
    assert after(State.TESTING, Event.TEST_FAILED, has_proven=False) is State.EMPTY
    assert after(State.TESTING, Event.TEST_FAILED, has_proven=True) is State.IDLE
    assert after(State.PROBATION, Event.PROMOTED, has_proven=True) is State.IDLE


def test_what_the_table_does_not_know_is_refused() -> None:
    with pytest.raises(LifecycleError, match="cannot be 'fetched'"):
        after(State.IDLE, Event.FETCHED, has_proven=True)


def test_the_diagram_has_an_arrow_for_each_entry() -> None:
    assert diagram().count("-->") == len(TRANSITIONS)
