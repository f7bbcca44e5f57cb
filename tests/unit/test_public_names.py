"""What other rooms and users may rely on; whoever changes a name here changes it for them."""

import importlib
import pkgutil

import pytest

import edgewright

NAMES = {
    "contract.candidate": "BudgetOutcome FasterOptions Figures Report Trial",
    "contract.device": "DEFAULT_DEVICE_CLASS Budget DeviceClass",
    "contract.errors": "CandidateError DataError EdgewrightError InputError ModelError OutputError ProjectError "
    "TargetError UnitError WorkError",
    "contract.evidence": "Certificate Verdict",
    "contract.measure": "Measurement Origin",
    "contract.preprocess": "Preprocess",
    "contract.project": "Project load_project parse_project",
    "contract.sections": "DataSection MetricSection ModelSection PilotSection SearchSection Task TrainingSection",
    "contract.signature": "InputContract TensorSpec",
    "contract.training": "Contribution CurvePoint Origin TrainedNetwork TrainingReport sparse_of",
    "contract.units": "Dimension format_quantity parse_quantity",
    "contract.decision": "CONTROL Action Comparison Decision DeviceOutcome Evidence Inputs Outcome Tally Trial "
    "digest_of",
    "device.monitor": "FOLDER Monitor Watch open_monitor",
    "device.uplink": "IDENTITY Source Uplink concerns",
    "privacy.agreement": "DEGREE terms_of threshold_of",
    "privacy.helper": "Answer Ask Gatherer Gift Helper Slip Used UsedInMemory give",
    "privacy.sum": "WRAP_CHANCE Recovered as_json by_signal contribute objection recover span_of",
    "rollout.decide": "IMBALANCE_ALPHA decide replay",
    "rollout.evidence": "collect",
    "rollout.experiment": "judge rejudge",
    "rollout.feasible": "LEAST_CONTROL USUAL_RATE Feasibility Question clear_power devices_to_clear devices_to_see "
    "foresee see_power",
    "signals.drift": "REFERENCE_SHARE STRENGTHS Finding Mark Plan State Tolerance Verdict begin "
    "clopper_pearson_upper event_bounds events judge log_wealth make_plan tolerance update",
    "signals.exact": "clopper_pearson exact_bound likelihood_limit",
    "signals.paired": "MIN_CLUSTERS betting_bound bootstrap_bounds cluster_bound cluster_labels t_bound",
    "signals.sequential": "Arms count growth_to_refute interval log_harm log_imbalance log_refuted lower_bound "
    "upper_bound",
    "trust.identity": "Claims DeviceKey Proof Requests UnknownError device_id_of new_device_key read_proof",
    "runtime.options": "RuntimeOptions session_options",
    "profile.latency": "Latency Subject measure_latency measure_ratios paired_ratio",
    "profile.memory": "Memory measure_memory",
    "profile.options": "OptionsResult TriedOptions best_options choose",
    "profile.profile": "Comparison Figures LimitCheck ModelInput Profile check_budget profile_model",
    "profile.bench": "BENCH BenchTarget JobView checked_server",
    "profile.errand": "Grant Outcome do_errand run_errands",
    "profile.parcel": "MAX_SECONDS MOST_BYTES MOST_REPLY_BYTES Entry Failure Head Request head_of pack unpack",
    "profile.target": "FREE_SPACE_HERE LocalTarget Machine SshTarget Target machine_in machine_of open_target",
    "server.bench": "KIND MOST_BYTES MOST_REPLY_BYTES add_job cancel_job end_job find_bench take_job",
    "compress.certify": "certify least_samples",
    "compress.compress": "Request compress_model",
    "compress.data": "Dataset Splits Task load_data split",
    "compress.ledger": "LookLedger look_alpha state_folder",
    "compress.lint": "Finding Lint lint mend",
    "compress.recipe": "CleanUp Mend Recipe Step Trained Workbench",
    "compress.run": "Request Run TrainingRequest",
    "compress.train.engine": "Engine check_engine open_engine",
    "compress.train.export": "OPSET export",
    "compress.train.families": "Architecture Family Kind families_for grid neighbours parameters work",
    "compress.train.network": "Network",
    "compress.train.prune": "Prune Width prunable prune",
    "compress.train.qat": "quantized_start",
    "compress.train.recipe": "OwnRecipe load_recipe",
    "cli.main": "main",
}
MODULES = sorted(found.name for found in pkgutil.walk_packages(edgewright.__path__, "edgewright."))


def test_the_package_itself_offers_its_version_alone() -> None:
    assert edgewright.__all__ == ["__version__"]


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stay(module: str) -> None:
    assert sorted(importlib.import_module(f"edgewright.{module}").__all__) == sorted(NAMES[module].split())


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_says_what_it_is_for_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
