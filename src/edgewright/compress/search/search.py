"""The search: first what an experienced person would try, then tighter weights, then what Optuna proposes.

Every trial goes into a journal as it ends, so a killed search goes on where it stopped; the search can be
ended at any time and has its best front so far.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from edgewright.compress.certify.ranking import budget_violation, is_better, pareto_front
from edgewright.compress.output_folder import OutputFolder
from edgewright.compress.search.space import Params, SearchSpace
from edgewright.compress.search.trial_runner import TrialRunner
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import InputError, OutputError

__all__ = ["Search", "SearchLimits"]

_STUDY = "compress"
# Proposals without a better candidate after which the search has converged.
_PATIENCE = 24

ProgressFunction = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """When a search ends.

    Attributes:
        seconds: Wall time.
        max_trials: Most candidates.
    """

    seconds: float = 90.0
    max_trials: int = 200


@dataclass(slots=True)
class Search:
    """One search, new or resumed.

    Attributes:
        runner: Performs trials.
        space: The recipes that start from the original.
        folder: Holds the journal.
        identity: What must be the same for a search to be resumed: model, data, budget, seed.
        limits: When it ends.
        report_progress: Is told what is going on and which share is done.
        trials: All so far.
    """

    runner: TrialRunner
    space: SearchSpace
    folder: OutputFolder
    identity: dict[str, Any]
    limits: SearchLimits
    report_progress: ProgressFunction
    trials: list[SearchTrial] = field(default_factory=list)
    _params: dict[str, Params] = field(default_factory=dict)
    _by_key: dict[str, SearchTrial] = field(default_factory=dict)
    _deadline: float = 0.0
    _spaces: dict[str, SearchSpace] = field(default_factory=dict)
    _study: optuna.Study | None = None

    def run(self) -> list[SearchTrial]:
        """Search until the limits, or until nothing better turns up.

        Raises:
            InputError: The folder holds a search with another identity.
        """
        self._deadline = time.monotonic() + self.limits.seconds
        study = self._opened(self.space)
        for params in self.space.initial_candidates():
            self._try(study, params)
        self._reduce_bits(study, self.space.network)
        self._explore(study)
        return self.trials

    def search_network(self, space: SearchSpace, seconds: float, ideas: int | None = None) -> list[SearchTrial]:
        """Try the recipes of a trained network: the first ideas, then tighter weights.

        Args:
            space: Its recipes.
            seconds: Wall time.
            ideas: How many of the first ideas; None for all.

        Returns:
            The trials of this network.
        """
        self._deadline = time.monotonic() + seconds
        study = self._opened(space)
        for params in space.initial_candidates()[:ideas]:
            self._try(study, params)
        self._reduce_bits(study, space.network)
        return [trial for trial in self.trials if trial.network_sha256 == space.network]

    def try_recipe(self, space: SearchSpace, params: Params) -> SearchTrial | None:
        """Try one recipe of a space, however much time is left; None if there were too many trials."""
        self._deadline = max(self._deadline, time.monotonic() + 1.0)
        return self._try(self._opened(space), params)

    def _opened(self, space: SearchSpace) -> optuna.Study:
        self._spaces[space.network] = space
        if self._study is None:
            self._study = self._open_study()
            self._recover(self._study)
        return self._study

    def params_of(self, trial: SearchTrial) -> Params:
        """Return the parameters of a trial."""
        return next(p for key, p in self._params.items() if self._by_key[key].number == trial.number)

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(_Journal(self.folder.journal))
        sampler = optuna.samplers.TPESampler(seed=self.runner.seed, n_startup_trials=8)
        study = optuna.create_study(
            storage=storage,
            study_name=_STUDY,
            directions=["minimize"] * 3,
            sampler=sampler,
            load_if_exists=True,
        )
        before = study.user_attrs.get("identity")
        if before is not None and before != self.identity:
            changed = sorted(key for key in self.identity if before.get(key) != self.identity[key])
            raise InputError(
                f"the search in {self.folder.path} was for another {' and '.join(changed)}",
                remedy="Resume with the same arguments, or leave --resume out to start anew.",
            )
        study.set_user_attr("identity", self.identity)
        return study

    def _recover(self, study: optuna.Study) -> None:
        for past in study.trials:
            record = past.user_attrs.get("record")
            if record is None:
                if past.state == optuna.trial.TrialState.WAITING:
                    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)  # asking takes the waiting one
                elif not past.state.is_finished():
                    study.tell(past.number, state=optuna.trial.TrialState.FAIL)
                continue
            self._record(past.user_attrs["params"], msgspec.convert(record, SearchTrial))
            for key, ratio in past.user_attrs.get("ratios", {}).items():
                self.runner.recover_ratio(key, ratio)

    def _record(self, params: Params, trial: SearchTrial) -> None:
        key = _key(params)
        self._params[key] = params
        self._by_key[key] = trial
        self.trials.append(trial)

    def _out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline or len(self.trials) >= self.limits.max_trials

    def _try(self, study: optuna.Study, params: Params) -> SearchTrial | None:
        """Try given parameters unless they were tried; None when time is out."""
        known = self._by_key.get(_key(params))
        if known is not None:
            return known
        if self._out_of_time():
            return None
        if self._can_be_sampled(params):
            study.enqueue_trial(params)
        asked = study.ask()
        return self._perform(study, asked, params)

    def _perform(self, study: optuna.Study, request: optuna.Trial, params: Params) -> SearchTrial:
        used = 1 - max(0.0, self._deadline - time.monotonic()) / self.limits.seconds
        self.report_progress(f"trial {len(self.trials) + 1}", used)
        trial = self.runner.run(len(self.trials), params, self._space_of(params))
        if self._can_be_sampled(params):
            self.space.sample(request)  # so that the sampler learns from it
        request.set_user_attr("params", params)
        request.set_user_attr("ratios", self.runner.recorded_ratios())
        request.set_user_attr("record", msgspec.to_builtins(trial))
        if trial.state == "complete" and trial.predicted_bound is not None and trial.latency_ratio is not None:
            excess = max(0.0, trial.predicted_bound - (self.runner.budget.max_drop or 0.0))
            study.tell(request, [excess, trial.latency_ratio, float(trial.size_bytes)])
        elif trial.state == "pruned":
            study.tell(request, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(request, state=optuna.trial.TrialState.FAIL)
        self._record(params, trial)
        return trial

    def _can_be_sampled(self, params: Params) -> bool:
        """Whether the sampler can propose these parameters."""
        return "network" not in params and params["form"] in self.space.quantization_formats

    def _space_of(self, params: Params) -> SearchSpace:
        return self._spaces[params.get("network", "")]

    def _reduce_bits(self, study: optuna.Study, network: str) -> None:
        """Climb down the ladder of tighter weights for a network's fastest forms that keep the drop."""
        # What tighter weights are for is size, so only the drop decides how far to climb.
        drop_only = Budget(max_drop=self.runner.budget.max_drop)
        fastest: dict[str, SearchTrial] = {}
        complete = [trial for trial in self._complete() if trial.network_sha256 == network]
        space = self._spaces[network]
        for trial in sorted(complete, key=lambda t: (budget_violation(t, drop_only), t.latency_ratio or 9)):
            fastest.setdefault(space.latency_key(self.params_of(trial)), trial)
        leaders = sorted(fastest.values(), key=lambda t: (budget_violation(t, drop_only) > 0, t.latency_ratio or 9))
        for leader in leaders[:3]:
            misses = 0
            for params in space.with_fewer_bits(self.params_of(leader)):
                tried = self._try(study, params)
                if tried is None:
                    return
                if tried.sha256 == leader.sha256:
                    break  # nothing left that could be stored more tightly
                kept = tried.state == "complete" and budget_violation(tried, drop_only) <= 0
                misses = 0 if kept else misses + 1
                if misses == 2:
                    break

    def _explore(self, study: optuna.Study) -> None:
        idle = 0
        while idle < _PATIENCE and not self._out_of_time():
            asked = study.ask()
            params = self.space.sample(asked)
            known = self._by_key.get(_key(params))
            if known is not None:
                idle += 1
                if known.state == "complete":
                    excess = max(0.0, (known.predicted_bound or 1.0) - (self.runner.budget.max_drop or 0.0))
                    study.tell(asked, [excess, known.latency_ratio or 9.0, float(known.size_bytes)])
                else:
                    study.tell(asked, state=optuna.trial.TrialState.PRUNED)
                continue
            before = self._complete()
            latest = self._perform(study, asked, params)
            idle = 0 if improves(latest, before, self.runner.budget) else idle + 1

    def _complete(self) -> list[SearchTrial]:
        return [trial for trial in self.trials if trial.state == "complete"]


class _Journal(JournalFileBackend):
    """The journal of a search that may have been killed while it wrote."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            content = path.read_bytes()
            if not content.endswith(b"\n"):  # a torn last line would spoil the next one
                os.truncate(path, content.rfind(b"\n") + 1)
        super().__init__(str(path.resolve()))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise OutputError(
                f"the search's journal {self._file_path} cannot be written: {error.strerror}",
                remedy="Free space or permit writing there; then go on with --resume.",
            ) from error


def improves(trial: SearchTrial, before: Sequence[SearchTrial], budget: Budget) -> bool:
    """Whether a trial is better than all before it in what will be chosen by, or joins the front."""
    if trial.state != "complete":
        return False
    if all(is_better(trial, other, budget) for other in before):
        return True
    return (
        trial.number in {member.number for member in pareto_front([*before, trial])}
        and budget_violation(trial, budget) <= 0
    )


def _key(params: Params) -> str:
    return msgspec.json.encode(dict(sorted(params.items()))).decode()
