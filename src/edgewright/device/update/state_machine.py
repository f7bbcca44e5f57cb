"""The life of an update, as one table: every state, every event, failures included.

No files or clocks here. `agent.py` performs what the table says; docs/reference/lifecycle.md is drawn from it.
"""

from enum import StrEnum

from edgewright.contract.errors import WorkError

__all__ = [
    "TRANSITIONS",
    "LifecycleError",
    "UpdateEvent",
    "UpdateLifecycleState",
    "lifecycle_diagram",
    "next_state",
]


class UpdateLifecycleState(StrEnum):
    """Where the update of a device stands; the proven model serves in all of them but the first."""

    EMPTY = "empty"
    IDLE = "idle"
    WAITING = "waiting"
    FETCHING = "fetching"
    STAGED = "staged"
    TESTING = "testing"
    PROBATION = "probation"


class UpdateEvent(StrEnum):
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
    CORRUPTION_FOUND = "corruption found"
    ROLLED_BACK = "rolled back"


class LifecycleError(WorkError):
    """An event came in a state that has no place for it."""

    code = "invalid_transition"


# From a state, an event leads to a state. `EMPTY` stands for "no proven model yet": what would return to the
# proven model returns there.
TRANSITIONS: dict[tuple[UpdateLifecycleState, UpdateEvent], UpdateLifecycleState] = {
    (UpdateLifecycleState.IDLE, UpdateEvent.CHOSEN): UpdateLifecycleState.WAITING,
    (UpdateLifecycleState.WAITING, UpdateEvent.ADMITTED): UpdateLifecycleState.FETCHING,
    (UpdateLifecycleState.WAITING, UpdateEvent.WITHDRAWN): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.WAITING, UpdateEvent.REFUSED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.FETCHING, UpdateEvent.FETCHED): UpdateLifecycleState.STAGED,
    (UpdateLifecycleState.FETCHING, UpdateEvent.FETCH_FAILED): UpdateLifecycleState.WAITING,
    (UpdateLifecycleState.FETCHING, UpdateEvent.REFUSED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.FETCHING, UpdateEvent.WITHDRAWN): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.STAGED, UpdateEvent.SWITCHED): UpdateLifecycleState.TESTING,
    (UpdateLifecycleState.STAGED, UpdateEvent.WITHDRAWN): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.STAGED, UpdateEvent.CORRUPTION_FOUND): UpdateLifecycleState.WAITING,
    (UpdateLifecycleState.STAGED, UpdateEvent.REFUSED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.TESTING, UpdateEvent.TEST_PASSED): UpdateLifecycleState.PROBATION,
    (UpdateLifecycleState.TESTING, UpdateEvent.TEST_FAILED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.TESTING, UpdateEvent.POSTPONED): UpdateLifecycleState.STAGED,
    (UpdateLifecycleState.TESTING, UpdateEvent.CORRUPTION_FOUND): UpdateLifecycleState.STAGED,
    (UpdateLifecycleState.TESTING, UpdateEvent.WITHDRAWN): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.TESTING, UpdateEvent.ROLLED_BACK): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.PROBATION, UpdateEvent.PROMOTED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.PROBATION, UpdateEvent.PROBATION_FAILED): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.PROBATION, UpdateEvent.WITHDRAWN): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.PROBATION, UpdateEvent.CORRUPTION_FOUND): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.PROBATION, UpdateEvent.ROLLED_BACK): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.IDLE, UpdateEvent.ROLLED_BACK): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.IDLE, UpdateEvent.CORRUPTION_FOUND): UpdateLifecycleState.IDLE,
    (UpdateLifecycleState.EMPTY, UpdateEvent.CHOSEN): UpdateLifecycleState.WAITING,
}


def next_state(state: UpdateLifecycleState, event: UpdateEvent, *, has_proven: bool) -> UpdateLifecycleState:
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
    return UpdateLifecycleState.EMPTY if found is UpdateLifecycleState.IDLE and not has_proven else found


def lifecycle_diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {state.name.lower()}: {state}" for state in UpdateLifecycleState]
    lines += [
        f"    {before.name.lower()} --> {result.name.lower()}: {event}"
        for (before, event), result in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"
