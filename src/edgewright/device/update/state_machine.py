"""The life of an update, as one table: every state, every event, failures included.

No files or clocks here. `agent.py` performs what the table says; docs/reference/lifecycle.md is drawn from it.
"""

from enum import StrEnum

from edgewright.contract.errors import WorkError

__all__ = ["TRANSITIONS", "Event", "LifecycleError", "State", "after", "diagram"]


class State(StrEnum):
    """Where the update of a device stands; the proven model serves in all of them but the first."""

    EMPTY = "empty"
    IDLE = "idle"
    WAITING = "waiting"
    FETCHING = "fetching"
    STAGED = "staged"
    TESTING = "testing"
    PROBATION = "probation"


class Event(StrEnum):
    """What happens to an update."""

    CHOSEN = "chosen"
    WITHDRAWN = "withdrawn"
    ADMITTED = "admitted"
    FETCHED = "fetched"
    FETCH_FAILED = "fetch failed"
    REFUSED = "refused"
    SWITCHED = "switched"
    TEST_PASSED = "test passed"
    TEST_FAILED = "test failed"
    POSTPONED = "postponed"
    PROMOTED = "promoted"
    PROBATION_FAILED = "probation failed"
    FOUND_BROKEN = "found broken"
    ROLLED_BACK = "rolled back"


class LifecycleError(WorkError):
    """An event came in a state that has no place for it."""

    code = "invalid_transition"


# From a state, an event leads to a state. `EMPTY` stands for "no proven model yet": what would return to the
# proven model returns there.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.CHOSEN): State.WAITING,
    (State.WAITING, Event.ADMITTED): State.FETCHING,
    (State.WAITING, Event.WITHDRAWN): State.IDLE,
    (State.WAITING, Event.REFUSED): State.IDLE,
    (State.FETCHING, Event.FETCHED): State.STAGED,
    (State.FETCHING, Event.FETCH_FAILED): State.WAITING,
    (State.FETCHING, Event.REFUSED): State.IDLE,
    (State.FETCHING, Event.WITHDRAWN): State.IDLE,
    (State.STAGED, Event.SWITCHED): State.TESTING,
    (State.STAGED, Event.WITHDRAWN): State.IDLE,
    (State.STAGED, Event.FOUND_BROKEN): State.WAITING,
    (State.STAGED, Event.REFUSED): State.IDLE,
    (State.TESTING, Event.TEST_PASSED): State.PROBATION,
    (State.TESTING, Event.TEST_FAILED): State.IDLE,
    (State.TESTING, Event.POSTPONED): State.STAGED,
    (State.TESTING, Event.FOUND_BROKEN): State.STAGED,
    (State.TESTING, Event.WITHDRAWN): State.IDLE,
    (State.TESTING, Event.ROLLED_BACK): State.IDLE,
    (State.PROBATION, Event.PROMOTED): State.IDLE,
    (State.PROBATION, Event.PROBATION_FAILED): State.IDLE,
    (State.PROBATION, Event.WITHDRAWN): State.IDLE,
    (State.PROBATION, Event.FOUND_BROKEN): State.IDLE,
    (State.PROBATION, Event.ROLLED_BACK): State.IDLE,
    (State.IDLE, Event.ROLLED_BACK): State.IDLE,
    (State.IDLE, Event.FOUND_BROKEN): State.IDLE,
    (State.EMPTY, Event.CHOSEN): State.WAITING,
}


def after(state: State, event: Event, *, has_proven: bool) -> State:
    """Return the state that an event leads to.

    Args:
        state: Before.
        event: What happened.
        has_proven: Whether there is a proven model afterwards.

    Raises:
        LifecycleError: The event has no place in this state.
    """
    try:
        found = TRANSITIONS[state, event]
    except KeyError:
        raise LifecycleError(
            f"an update that is {state} cannot be '{event}'", remedy="This is a fault of Edgewright; report it."
        ) from None
    return State.EMPTY if found is State.IDLE and not has_proven else found


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {state.name.lower()}: {state}" for state in State]
    lines += [
        f"    {before.name.lower()} --> {result.name.lower()}: {event}"
        for (before, event), result in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"
