"""From a release's files on a shelf to a model that answers, and whether it answers as it should."""

from dataclasses import dataclass

import msgspec

from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError, ModelError
from edgewright.contract.refusal import Refusal
from edgewright.contract.release import Variant
from edgewright.device.guard import Guard
from edgewright.device.inference.predictor import Engine
from edgewright.device.monitoring.monitor import FOLDER, Monitor, open_monitor
from edgewright.device.slots import Installed
from edgewright.device.update.release_store import Shelves
from edgewright.device.update.self_test import peak_bytes, self_test
from edgewright.runtime.options import RuntimeOptions
from edgewright.runtime.session import open_session
from edgewright.trust.keys.keystore import LockedError

__all__ = ["MODEL", "Opener", "Proof"]

MODEL = "model.onnx"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a self-test showed.

    Attributes:
        engine: The opened release, None if it cannot be opened.
        why: Why it fails, None if it passes.
        passing: Whether that may pass by itself.
    """

    engine: Engine | None
    why: Refusal | None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens releases.

    Attributes:
        shelves: Where their files lie.
    """

    shelves: Shelves

    def open(self, release: Installed, variant: Variant | None = None) -> Engine:
        """Return a release, ready to answer.

        Args:
            release: Which.
            variant: Of it; read from its shelf if not given.

        Raises:
            LockedError: Its bytes are broken, or sealed to something else.
            ModelError: It is no model, or names data outside of itself.
            CandidateError: The runtime refuses it.
            OSError: It cannot be read.
        """
        variant = variant or self.shelves.variant(release.manifest)
        content = self.shelves.shelf(release.manifest).read(variant.file(MODEL))
        options = msgspec.convert(variant.options, RuntimeOptions) if variant.options else RuntimeOptions()
        session = open_session(content, options)
        if variant.contract is None:
            raise CandidateError(f"{release.version} has no input contract", remedy="Publish it again.")
        guard = Guard(variant.contract, variant.guard)
        return Engine(release, session, guard, self._monitor(release, variant, guard))

    def _monitor(self, release: Installed, variant: Variant, guard: Guard) -> Monitor | None:
        if not variant.reference:
            return None
        profile = self.shelves.shelf(release.manifest).read(variant.file(variant.reference))
        path = self.shelves.state / FOLDER / f"{release.manifest}.json"
        return open_monitor(profile, guard, path, self.shelves.files)

    def prove(self, release: Installed, variant: Variant) -> Proof:
        """Open a release and have it pass its self-test within its budget."""
        before = peak_bytes()
        try:
            engine = self.open(release, variant)
            if variant.self_test is None:
                return Proof(None, Refusal("self-test", release.version, "the release has no self-test"))
            golden = self.shelves.shelf(release.manifest).read(variant.file(variant.self_test.file))
            failure = self_test(
                engine.session, golden, variant.self_test, variant.budget, peak_before=before
            ).failure
        except ModelError as error:
            return Proof(None, Refusal("external data", MODEL, error.message))
        except MemoryError:
            return Proof(None, Refusal("self-test", MODEL, "there is not enough memory to open it"), True)
        except (CandidateError, LockedError) as error:
            return Proof(None, Refusal("self-test", MODEL, error.message), "alloc" in error.message.lower())
        except Exception as error:  # a self-test comes from the outside: whatever breaks on it, the release fails
            why = Refusal("self-test", MODEL, f"it cannot be tested: {error}")
            return Proof(None, why, isinstance(error, OSError))
        # A device that is hot is slow: latency is looked at again when it has cooled down.
        return Proof(engine, failure, failure is not None and failure.code == "budget")

    def still_passes(self, engine: Engine) -> bool:
        """Whether a model that answers passes its self-test, whatever time it takes."""
        try:
            variant = self.shelves.variant(engine.release.manifest)
            if variant.self_test is None:
                return True
            golden = self.shelves.shelf(engine.release.manifest).read(variant.file(variant.self_test.file))
            found = self_test(engine.session, golden, variant.self_test, Budget(), peak_before=peak_bytes())
        except (LockedError, OSError, CandidateError):
            return False
        return found.failure is None
