"""From a release's files on a shelf to a model that answers, and whether it answers as it should."""

from dataclasses import dataclass

import msgspec

from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError, ModelError
from edgewright.contract.refusal import Refusal
from edgewright.contract.release import Variant
from edgewright.device.guard import Guard
from edgewright.device.inference.predictor import LoadedRelease
from edgewright.device.monitoring.monitor import MONITOR_FOLDER, Monitor, open_monitor
from edgewright.device.slots import InstalledRelease
from edgewright.device.update.release_store import ReleaseStore
from edgewright.device.update.self_test import peak_memory_bytes, run_self_test
from edgewright.runtime.options import RuntimeOptions
from edgewright.runtime.session import open_onnx_session
from edgewright.trust.keys.keystore import LockedError

__all__ = ["MODEL_FILE", "ReleaseLoader", "SelfTestOutcome"]

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class SelfTestOutcome:
    """What a self-test showed.

    Attributes:
        loaded: The opened release, None if it cannot be opened.
        refusal: Why it fails, None if it passes.
        is_transient: Whether that may pass by itself.
    """

    loaded: LoadedRelease | None
    refusal: Refusal | None
    is_transient: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseLoader:
    """Opens releases.

    Attributes:
        releases: Where their files lie.
    """

    releases: ReleaseStore

    def load(self, release: InstalledRelease, variant: Variant | None = None) -> LoadedRelease:
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
        variant = variant or self.releases.read_variant(release.manifest_digest)
        content = self.releases.folder(release.manifest_digest).read(variant.file(MODEL_FILE))
        options = (
            msgspec.convert(variant.runtime_options, RuntimeOptions)
            if variant.runtime_options
            else RuntimeOptions()
        )
        session = open_onnx_session(content, options)
        if variant.signature is None:
            raise CandidateError(f"{release.version} has no input contract", remedy="Publish it again.")
        guard = Guard(variant.signature, variant.guard)
        return LoadedRelease(release, session, guard, self._monitor(release, variant, guard))

    def _monitor(self, release: InstalledRelease, variant: Variant, guard: Guard) -> Monitor | None:
        if not variant.reference_profile:
            return None
        profile = self.releases.folder(release.manifest_digest).read(variant.file(variant.reference_profile))
        path = self.releases.state_folder / MONITOR_FOLDER / f"{release.manifest_digest}.json"
        return open_monitor(profile, guard, path, self.releases.files)

    def load_and_test(self, release: InstalledRelease, variant: Variant) -> SelfTestOutcome:
        """Open a release and have it pass its self-test within its budget."""
        before = peak_memory_bytes()
        try:
            engine = self.load(release, variant)
            if variant.self_test is None:
                return SelfTestOutcome(None, Refusal("self-test", release.version, "the release has no self-test"))
            golden = self.releases.folder(release.manifest_digest).read(variant.file(variant.self_test.file))
            failure = run_self_test(
                engine.session, golden, variant.self_test, variant.budget, peak_before=before
            ).failure
        except ModelError as error:
            return SelfTestOutcome(None, Refusal("external data", MODEL_FILE, error.message))
        except MemoryError:
            return SelfTestOutcome(
                None, Refusal("self-test", MODEL_FILE, "there is not enough memory to open it"), True
            )
        except (CandidateError, LockedError) as error:
            return SelfTestOutcome(
                None, Refusal("self-test", MODEL_FILE, error.message), "alloc" in error.message.lower()
            )
        except Exception as error:  # a self-test comes from the outside: whatever breaks on it, the release fails
            why = Refusal("self-test", MODEL_FILE, f"it cannot be tested: {error}")
            return SelfTestOutcome(None, why, isinstance(error, OSError))
        # A device that is hot is slow: latency is looked at again when it has cooled down.
        return SelfTestOutcome(engine, failure, failure is not None and failure.code == "budget")

    def still_passes(self, engine: LoadedRelease) -> bool:
        """Whether a model that answers passes its self-test, whatever time it takes."""
        try:
            variant = self.releases.read_variant(engine.release.manifest_digest)
            if variant.self_test is None:
                return True
            golden = self.releases.folder(engine.release.manifest_digest).read(variant.file(variant.self_test.file))
            found = run_self_test(
                engine.session, golden, variant.self_test, Budget(), peak_before=peak_memory_bytes()
            )
        except (LockedError, OSError, CandidateError):
            return False
        return found.failure is None
