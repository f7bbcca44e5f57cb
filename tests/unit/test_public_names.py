"""What users may import, and what every module owes its readers."""

import importlib
import pkgutil

import pytest

import edgewright

NAMES = {
    "edgewright": "__version__",
    "edgewright.compress.context": "CompressionRequest TrainingRequest",
    "edgewright.compress.pipeline": "CompressionRequest compress_model",
    "edgewright.compress.certify.look_ledger": "state_folder",
    "edgewright.contract.compression_report": "CompressionReport ModelFigures SearchTrial",
    "edgewright.contract.certificate": "Certificate",
    "edgewright.contract.errors": "CandidateError DataError EdgewrightError InputError ModelError OutputError "
    "ProjectError TargetError UnitError WorkError",
    "edgewright.contract.measurement": "Measurement",
    "edgewright.device": "Agent Prediction RejectedInputError",
    "edgewright.cli.main": "main",
}
"""Names that documents and examples show; whoever renames one breaks users' programs and says so in the changelog."""
MODULES = sorted(found.name for found in pkgutil.walk_packages(edgewright.__path__, "edgewright."))


@pytest.mark.parametrize("module", NAMES)
def test_what_users_import_stays(module: str) -> None:
    offered = importlib.import_module(module).__all__
    assert [name for name in NAMES[module].split() if name not in offered] == []


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_says_what_it_is_for_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    offered = getattr(module, "__all__", []) if hasattr(module, "__path__") else module.__all__
    assert [public for public in offered if not hasattr(module, public)] == []
