"""An experiment ends by itself, and admits what it does not know."""

import datetime

import msgspec
import pytest

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import CONTROL_ARM, ExperimentResult, OutcomeCounts, StageEvidence
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.rollout.experiment import evaluate_experiment, replay_experiment

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
POLICY = RolloutPolicy("digits", "pi", 1, "0123456789abcdef")
ARMS = (RolloutArm("1.1", "ab" * 32), RolloutArm("1.2", "cd" * 32))


def _plan(end: str = "", arms: tuple[RolloutArm, ...] = ARMS) -> RolloutPlan:
    return RolloutPlan(
        "digits", "pi", "ab", 1, 1, arms, (RolloutStage(1.0, 0, (HealthRule("outcome:taps", 0.05),)),), end_at=end
    )


def _evidence(*arms: tuple[int, int]) -> StageEvidence:
    tallies = [
        OutcomeCounts("outcome:taps", arm, (0.0, 1.0), (devices - failed, failed))
        for arm, (failed, devices) in enumerate(arms)
    ]
    return StageEvidence("ab", 0, (*tallies, OutcomeCounts("outcome:taps", CONTROL_ARM, (), ())))


@pytest.mark.parametrize(
    ("first", "second", "outcome", "words"),
    [
        ((200, 2000), (200, 2000), "within_margin", "worse by less than 5.00%"),
        ((300, 2000), (150, 2000), "within_margin", "worse by less than 5.00%, and better"),
        ((2000, 20_000), (2500, 20_000), "within_margin", "worse by less than 5.00%, though worse"),
        ((100, 2000), (400, 2000), "excluded", "worse by more than 5.00%"),
    ],
)
def test_it_ends_when_its_question_is_answered(
    first: tuple[int, int], second: tuple[int, int], outcome: str, words: str
) -> None:
    trial = evaluate_experiment(_plan(), POLICY, _evidence(first, second), NOW)
    assert (trial.ended, trial.outcomes) == (True, (outcome,))
    assert trial.reasons[0].endswith(words)
    assert trial.comparisons[0].low <= trial.comparisons[0].difference <= trial.comparisons[0].high


def test_it_goes_on_without_an_answer_and_ends_inconclusive() -> None:
    few = _evidence((10, 100), (11, 100))
    assert evaluate_experiment(_plan(), POLICY, few, NOW).outcomes == ("running",)
    assert not evaluate_experiment(_plan("2026-11-21T12:00:01"), POLICY, few, NOW).ended
    over = evaluate_experiment(_plan("2026-11-21T12:00:00"), POLICY, few, NOW)
    assert (over.ended, over.outcomes) == (True, ("inconclusive",))
    assert "is not known" in over.reasons[0]


def test_worse_for_sure_is_not_worse_by_the_margin() -> None:
    trial = evaluate_experiment(_plan(), POLICY, _evidence((400, 4000), (600, 4000)), NOW)
    assert 0 < trial.comparisons[0].low < 0.05 < trial.comparisons[0].high
    assert trial.outcomes == ("running",)


def test_arms_of_any_weights_are_compared() -> None:
    arms = (RolloutArm("1.1", "ab" * 32, 9.0), RolloutArm("1.2", "cd" * 32, 1.0))
    assert evaluate_experiment(_plan(arms=arms), POLICY, _evidence((900, 9000), (100, 1000)), NOW).outcomes == (
        "within_margin",
    )
    # The same devices were not drawn from arms of even weights.
    askew = evaluate_experiment(_plan(), POLICY, _evidence((900, 9000), (100, 1000)), NOW)
    assert askew.outcomes == ("running",)
    assert "nothing follows" in askew.reasons[0]


def test_more_arms_take_more_evidence() -> None:
    arms = (*ARMS, RolloutArm("1.3", "ef" * 32))
    two = evaluate_experiment(_plan(), POLICY, _evidence((200, 2000), (200, 2000)), NOW).comparisons[0]
    three = evaluate_experiment(
        _plan(arms=arms), POLICY, _evidence((200, 2000), (200, 2000), (200, 2000)), NOW
    ).comparisons
    assert len(three) == 2
    assert three[0].high > two.high


def test_it_is_judged_again_from_its_bytes() -> None:
    trial = evaluate_experiment(_plan(), POLICY, _evidence((10, 100), (11, 90)), NOW)
    assert replay_experiment(msgspec.json.decode(msgspec.json.encode(trial), type=ExperimentResult)) == trial


def test_what_is_no_experiment_is_refused() -> None:
    with pytest.raises(InputError, match="two arms or more"):
        evaluate_experiment(_plan(arms=ARMS[:1]), POLICY, _evidence((1, 2)), NOW)
