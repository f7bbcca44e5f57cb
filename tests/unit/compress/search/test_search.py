"""The search goes on where it was stopped, however it was stopped, and tries nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import onnx
import optuna
import pytest

from edgewright.compress.model.graph import clean_model
from edgewright.compress.output_folder import JOURNAL_FILE, OutputFolder
from edgewright.compress.search.recipe import UseTrainedNetwork
from edgewright.compress.search.search import Search, SearchLimits, improves
from edgewright.compress.search.space import AS_TRAINED_FORMAT, Params, SearchSpace, build_search_space
from edgewright.compress.search.trial_runner import TrialRunner
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import InputError, OutputError

BUDGET = Budget(max_drop=0.01)

# What a trial learns only after the search.
LATE = ("on_pareto_front", "peak_memory_bytes", "energy_mj", "predicted_bound")


def written(trials: list[SearchTrial]) -> bytes:
    """Return trials as a journal keeps them."""
    return msgspec.json.encode(trials)


@dataclass
class Pretender:
    """Runs trials by rule: no model is built, tighter weights are smaller and lose more."""

    budget: Budget = BUDGET
    seed: int = 0
    asked: list[Params] = field(default_factory=list)
    ratios: dict[str, Any] = field(default_factory=dict)
    dies_at: int | None = None
    state: str = "complete"

    def run(self, number: int, params: Params, space: SearchSpace) -> SearchTrial:
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(params)
        recipe = space.recipe(params)
        decibels = 70.0 if params.get("weights", "8 bit") == "8 bit" else float(params["weights"])
        return msgspec.convert(
            {
                "number": number,
                "title": recipe.title,
                "recipe": msgspec.to_builtins(recipe)["steps"],
                "state": self.state,
                "reason": "",
                "duration_seconds": 0.0,
                "seed": 0,
                "size_bytes": int(1000 * decibels),
                "drop": 0.1 / decibels,
                "predicted_bound": 0.3 / decibels,
                "latency_ratio": 1.0 if params["form"] == "float" else 0.6,
                "sqnr_db": decibels,
                "network_sha256": space.network,
                "sha256": f"{number:064d}",
            },
            SearchTrial,
        )

    def recorded_ratios(self) -> dict[str, Any]:
        return {"float": 1.0}

    def recover_ratio(self, key: str, ratio: Any) -> None:
        self.ratios[key] = ratio


@pytest.fixture(scope="module")
def space(digits_proto: onnx.ModelProto) -> SearchSpace:
    cleaned = clean_model(digits_proto)
    names = [node.name for node in cleaned.graph.node if node.op_type == "Conv"]
    return build_search_space(cleaned, dict.fromkeys(names, 1e-3), {})


@pytest.fixture
def search(space: SearchSpace, tmp_path: Path) -> Callable[..., tuple[Search, Pretender]]:
    def make(trials: int = 12, seconds: float = 60, **changes: Any) -> tuple[Search, Pretender]:
        identity = changes.pop("identity", {"model": "m", "data": "d", "seed": 0})
        runner = Pretender(**changes)
        limits = SearchLimits(seconds, trials)
        folder = OutputFolder(tmp_path)
        fake = cast(TrialRunner, runner)
        return Search(fake, space, folder, identity, limits, lambda _stage, _share: None), runner

    return make


Made = Callable[..., tuple[Search, Pretender]]


def test_no_recipe_is_tried_twice_and_all_are_numbered(search: Made) -> None:
    made, runner = search(trials=60)
    trials = made.run()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({json.dumps(params, sort_keys=True) for params in runner.asked}) == len(runner.asked) == len(trials)
    assert all(made.space.recipe(made.params_of(trial)).title == trial.title for trial in trials)


def test_what_an_experienced_person_would_try_comes_first(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=len(space.initial_candidates()))
    made.run()
    assert runner.asked == space.initial_candidates()


def test_weights_get_tighter_until_the_drop_is_broken_twice(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=200)
    made.run()
    later = runner.asked[len(space.initial_candidates()) :]
    tightest = [float(p["weights"]) for p in later if p.get("weights", "8 bit") != "8 bit"]
    assert min(tightest) < 30  # 0.3 / 30 dB breaks the limit, which is tried but not pursued


@pytest.mark.parametrize("limit", [1, 5])
def test_the_number_of_trials_is_kept(search: Made, limit: int) -> None:
    assert len(search(trials=limit)[0].run()) == limit


def test_time_is_kept(search: Made) -> None:
    assert search(seconds=0.0001)[0].run() == []


def test_a_search_that_finds_nothing_better_ends(search: Made) -> None:
    made, _ = search(trials=100_000)
    assert len(made.run()) < 400


@pytest.mark.parametrize("state", ["failed", "pruned"])
def test_a_search_in_which_all_fail_ends(search: Made, state: str) -> None:
    trials = search(trials=40, state=state)[0].run()
    assert {trial.state for trial in trials} == {state}


def test_a_resumed_search_has_the_earlier_trials_and_repeats_none(search: Made) -> None:
    first = search(trials=7)[0].run()
    made, runner = search(trials=20)
    trials = made.run()
    assert written(trials[:7]) == written(first)
    assert len(trials) == 20
    assert len(runner.asked) == 13
    assert runner.ratios == {"float": 1.0}


@pytest.mark.parametrize("dies_at", [0, 4, 30])
def test_an_interrupted_search_goes_on(search: Made, dies_at: int) -> None:
    made, _ = search(trials=50, dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    before = list(made.trials)
    assert len(before) == dies_at
    again = search(trials=50)[0].run()
    assert written(again[:dies_at]) == written(before)
    assert [trial.number for trial in again] == list(range(len(again)))


def test_a_kill_between_any_two_writes_leaves_a_search_that_goes_on(search: Made, tmp_path: Path) -> None:
    search(trials=4)[0].run()
    journal = tmp_path / JOURNAL_FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        whole = b"".join(lines[:count])
        for content in (whole, whole + lines[count][: len(lines[count]) // 2]):
            journal.write_bytes(content)
            trials = search(trials=5)[0].run()
            assert len(trials) == 5, count
            assert len(search(trials=5)[0].run()) == 5  # and once more


@pytest.mark.parametrize("changed", ["model", "data", "seed"])
def test_another_search_in_the_folder_is_refused(search: Made, changed: str, tmp_path: Path) -> None:
    search(trials=2)[0].run()
    identity = {"model": "m", "data": "d", "seed": 0} | {changed: "other"}
    before = records(tmp_path / JOURNAL_FILE)
    with pytest.raises(InputError, match=f"for another {changed}") as raised:
        search(trials=2, identity=identity)[0].run()
    assert raised.value.exit_code == 2
    assert records(tmp_path / JOURNAL_FILE) == before


def test_a_full_disk_is_an_error_of_the_output(search: Made, space: SearchSpace, full_disk: Path) -> None:
    made, _ = search(trials=200)
    made.folder = OutputFolder(full_disk)
    (full_disk / "filler").write_bytes(bytes(50_000))
    with pytest.raises(OutputError, match="No space left"):
        made.run()
    (full_disk / "filler").unlink()
    again, _ = search(trials=len(made.trials))
    again.folder = OutputFolder(full_disk)
    assert written(again.run()) == written(made.trials)


def test_optuna_learns_from_every_finished_trial(search: Made, tmp_path: Path) -> None:
    search(trials=6)[0].run()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL_FILE))
    study = optuna.load_study(study_name="compress", storage=optuna.storages.JournalStorage(backend))
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == 6
    assert all(trial.params for trial in complete)
    assert all(len(trial.values) == 3 for trial in complete)


def test_a_gain_is_a_better_choice_or_a_place_on_the_front(space: SearchSpace) -> None:
    runner = Pretender()
    usual = runner.run(0, {"form": "float", "half": False, "weights": "8 bit"}, space)
    smaller = runner.run(1, {"form": "float", "half": False, "weights": "40"}, space)
    lossy = runner.run(2, {"form": "float", "half": False, "weights": "15"}, space)
    assert improves(smaller, [usual], runner.budget)
    assert not improves(lossy, [usual, smaller], runner.budget)


def of_network(space: SearchSpace, name: str) -> SearchSpace:
    return build_search_space(
        space.clean, space.weight_noise, {}, trained_network=(UseTrainedNetwork(name, f"network {name}"),)
    )


def test_networks_are_tried_as_well_as_the_original(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=200)
    before = len(made.run())
    student = of_network(space, "a")
    trials = made.search_network(student, 60)
    assert runner.asked[before : before + len(student.initial_candidates())] == student.initial_candidates()
    assert {trial.network_sha256 for trial in trials} == {"a"}
    assert len(trials) == len(made.trials) - before
    assert [trial.number for trial in made.trials] == list(range(len(made.trials)))
    weights = [float(p["weights"]) for p in runner.asked[before:] if p.get("weights", "8 bit") != "8 bit"]
    assert min(weights) < 30  # tighter until the drop is broken


def test_a_few_ideas_are_enough_for_a_first_look(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=200)
    before = len(made.run())
    made.search_network(of_network(space, "a"), 60, 2)
    asked = runner.asked[before:]
    assert [p for p in asked if p.get("weights", "8 bit") == "8 bit"] == of_network(
        space, "a"
    ).initial_candidates()[:2]


def test_each_network_answers_for_itself(search: Made, space: SearchSpace) -> None:
    made, _ = search(trials=200)
    made.run()
    first = made.search_network(of_network(space, "a"), 60)
    second = made.search_network(of_network(space, "b"), 60)
    assert {trial.network_sha256 for trial in first} == {"a"}
    assert {trial.network_sha256 for trial in second} == {"b"}
    for trial in made.trials:
        assert made.params_of(trial).get("network", "") == trial.network_sha256
    asked = len(made.trials)
    assert written(made.search_network(of_network(space, "a"), 60)) == written(first)  # nothing is tried again
    assert len(made.trials) == asked


def test_trained_integers_are_one_trial(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=200)
    before = len(made.run())
    trained = SearchSpace(
        space.clean,
        (AS_TRAINED_FORMAT,),
        False,
        {},
        {},
        trained_network=(UseTrainedNetwork("a", "integers"),),
        architecture_key="k",
    )
    (trial,) = made.search_network(trained, 60)
    assert trial.title == "integers"
    assert runner.asked[before:] == [{"form": AS_TRAINED_FORMAT, "network": "a"}]


def test_one_recipe_can_be_tried_when_time_is_out(search: Made, space: SearchSpace) -> None:
    made, runner = search(trials=200)
    made.run()
    student = of_network(space, "a")
    assert made.search_network(student, 0.0) == []
    params = student.initial_candidates()[0]
    trial = made.try_recipe(student, params)
    assert trial is not None
    assert runner.asked[-1] == params
    count = len(made.trials)
    assert made.try_recipe(student, params) == trial
    assert len(made.trials) == count


def test_no_recipe_of_a_network_is_tried_beyond_the_number_of_trials(search: Made, space: SearchSpace) -> None:
    made, _ = search(trials=5)
    made.run()
    student = of_network(space, "a")
    assert made.search_network(student, 60) == []
    assert made.try_recipe(student, student.initial_candidates()[0]) is None


def test_trials_of_networks_survive_an_interruption(search: Made, space: SearchSpace) -> None:
    made, _ = search(trials=200)
    made.run()
    made.search_network(of_network(space, "a"), 60)
    before = list(made.trials)
    again, runner = search(trials=200)
    again.run()
    again.search_network(of_network(space, "a"), 60)
    assert written(again.trials[: len(before)]) == written(before)
    assert not any(params.get("network") for params in runner.asked)


def test_optuna_proposes_recipes_of_the_original_alone(search: Made, space: SearchSpace, tmp_path: Path) -> None:
    made, _ = search(trials=40)
    made.run()
    count = len(made.trials)
    made.limits = SearchLimits(60, 200)
    made.search_network(of_network(space, "a"), 60, 3)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL_FILE))
    study = optuna.load_study(study_name="compress", storage=optuna.storages.JournalStorage(backend))
    learned = [t for t in study.trials if t.params and "record" in t.user_attrs]
    assert len(learned) <= count
    assert all(trial.user_attrs["record"]["network_sha256"] == "" for trial in learned)


def records(journal: Path) -> list[dict[str, Any]]:
    """Return the trials in a journal that another process may be writing."""
    found = []
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "record" in entry.get("user_attr", {}):
            found.append(entry["user_attr"]["record"])
    return found


def test_a_killed_process_resumes_with_every_trial_and_repeats_none(
    digits_model: Path, digits_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgewright", "compress", str(digits_model), "--data", str(digits_npz)]
    command += ["--out", str(out)]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    process = subprocess.Popen(
        [*command, "--time-limit", "60"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while len(records(out / JOURNAL_FILE)) < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    earlier = records(out / JOURNAL_FILE)
    (out / f"{JOURNAL_FILE}.lock").unlink(missing_ok=True)
    (out / f"{JOURNAL_FILE}.lock").symlink_to(out / JOURNAL_FILE)  # as if it had died while writing
    limits = ["--time-limit", "4", "--trials", str(len(earlier) + 1), "--resume", "--json"]
    done = subprocess.run([*command, *limits], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    trials = json.loads(done.stdout)["trials"]
    ours = [{key: value for key, value in trial.items() if key not in LATE} for trial in trials]
    theirs = [{key: value for key, value in trial.items() if key not in LATE} for trial in earlier]
    assert ours[: len(theirs)] == theirs
    assert len(trials) == len(earlier) + 1
    assert len({json.dumps(trial["recipe"]) for trial in trials}) == len(trials)
