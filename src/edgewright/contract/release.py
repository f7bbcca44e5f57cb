"""A release: one version of a model, an agent or a firmware image, with a variant for each device class.

The manifest is what the offline keys sign. Everything that a device installs is named in it by digest and size, so
the bytes themselves can lie anywhere.
"""

from typing import Any, Literal

import msgspec

from edgewright.contract.certificate import Certificate
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import InputError
from edgewright.contract.measurement import Measurement
from edgewright.contract.model.guard import GuardRules
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature
from edgewright.contract.names import checked_digest, checked_name, checked_version
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_iso8601

__all__ = [
    "Codec",
    "DeviceRequirement",
    "EncryptedFile",
    "FileDelta",
    "Lineage",
    "Manifest",
    "ReleaseEvidence",
    "ReleaseKind",
    "SelfTest",
    "StoredFile",
    "Variant",
    "stored_form",
]

ReleaseKind = Literal["model", "agent", "firmware"]
Codec = Literal["zstd", "bsdiff", "planes"]

_LARGEST = 1 << 40


class EncryptedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encrypted form of a file, which is what lies in the repository instead of it.

    Attributes:
        sha256: Of the encrypted bytes.
        size_bytes: Of the encrypted bytes.
        key_name: Name of the fleet key that opens it.
    """

    sha256: str
    size_bytes: int
    key_name: str

    def __post_init__(self) -> None:
        """Refuse what is no digest, size or name."""
        checked_digest("digest of an encrypted file", self.sha256)
        _checked_size(self.size_bytes)
        checked_name("key", self.key_name)


class FileDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to make a file from an earlier one.

    Attributes:
        base_sha256: sha256 of the earlier file.
        codec: How the difference is written.
        sha256: Of the delta.
        size_bytes: Of the delta.
        encrypted: Its encrypted form, if it is stored so.
    """

    base_sha256: str
    codec: Codec
    sha256: str
    size_bytes: int
    encrypted: EncryptedFile | None = None

    def __post_init__(self) -> None:
        """Refuse what is no digest or size."""
        checked_digest("a delta's base", self.base_sha256)
        checked_digest("a delta's digest", self.sha256)
        _checked_size(self.size_bytes)


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a variant.

    Attributes:
        name: In the slot's folder.
        sha256: Of its bytes as they are used.
        size_bytes: Of its bytes as they are used.
        encrypted: Its encrypted form, if it is stored so.
        deltas: From files of earlier releases.
    """

    name: str
    sha256: str
    size_bytes: int
    encrypted: EncryptedFile | None = None
    deltas: tuple[FileDelta, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no name, digest or size."""
        checked_name("file", self.name)
        checked_digest(f"digest of {self.name}", self.sha256)
        _checked_size(self.size_bytes)


class SelfTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden inputs and outputs: they show that the model answers on a device as it did where it was made.

    Attributes:
        file: Of the variant; holds `input:NAME` and `output:NAME` for all tensors of some samples.
        tolerance: Largest difference of an output, in units of the outputs' spread.
        sample_count: How many.
    """

    file: str
    tolerance: float
    sample_count: int

    def __post_init__(self) -> None:
        """Refuse a test that any model would pass or none."""
        checked_name("file", self.file)
        if not 0 <= self.tolerance < 1 or self.sample_count < 1:
            raise InputError(
                f"a self-test of {self.sample_count} samples within {self.tolerance:g} proves nothing",
                remedy="Take at least 1 sample and a tolerance of at least 0 and less than 1.",
            )


class DeviceRequirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device must have to run a variant.

    Attributes:
        runtime: Name of the runtime.
        min_runtime_version: Its lowest version.
        providers: Execution providers of which one must be there.
        features: CPU features that must all be there.
    """

    runtime: str = "onnxruntime"
    min_runtime_version: str = "0"
    providers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no version."""
        checked_version(self.min_runtime_version)


class ReleaseEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was proved and measured about a variant, each figure with its origin.

    Attributes:
        certificate: Of the loss of the metric; None if nothing was certified.
        figures: Measured or estimated, by name.
    """

    certificate: Certificate | None = None
    figures: dict[str, Measurement] = {}


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of a release for one device class.

    Attributes:
        device_class: Which.
        files: The model is `model.onnx`; for an agent or a firmware image the only file is the image.
        signature: Tensors in and out; None unless it is a model.
        preprocess: From raw samples to the first input, None if the model takes them as they are.
        self_test: None unless it is a model.
        reference_profile: Name of the file with the reference profile of the inputs; "" for none.
        budget: Limits on this device class.
        evidence: That it keeps them.
        requirement: What a device must have.
        guard: What is done with inputs and outputs that break the contract.
        runtime_options: Runtime options under which the figures were measured.
    """

    device_class: str
    files: tuple[StoredFile, ...]
    signature: ModelSignature | None = None
    preprocess: Preprocess | None = None
    self_test: SelfTest | None = None
    reference_profile: str = ""
    budget: Budget = Budget()
    evidence: ReleaseEvidence = ReleaseEvidence()
    requirement: DeviceRequirement = DeviceRequirement()
    guard: GuardRules = GuardRules()
    runtime_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Refuse a variant without files, with two of one name, or that speaks of files that it lacks."""
        checked_name("device class", self.device_class)
        names = [file.name for file in self.files]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"the variant for {self.device_class} has the files {names}",
                remedy="Give at least one, each with its own name.",
            )
        told = [
            *([self.self_test.file] if self.self_test else []),
            *([self.reference_profile] if self.reference_profile else []),
        ]
        for name in told:
            if name not in names:
                raise InputError(
                    f"the variant for {self.device_class} speaks of {name!r} and has only {names}",
                    remedy="Add that file.",
                )

    def file(self, name: str) -> StoredFile:
        """Return a file.

        Raises:
            InputError: There is none of that name.
        """
        for each in self.files:
            if each.name == name:
                return each
        raise InputError(
            f"the variant for {self.device_class} has no file {name!r}",
            remedy=f"Use one of {', '.join(each.name for each in self.files)}.",
        )


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a release comes from.

    Attributes:
        parent: Version of the release before it, "" for the first.
        republished_from: Version whose bytes these are once more, "" if they are new.
        data: Fingerprints of the data sets, by what they were for.
        recipe: The steps that made the model from the original.
        original_sha256: sha256 of the model before compression, "" if unknown.
        edgewright_version: Version of Edgewright.
        environment: Versions of what else made it, by name.
    """

    parent: str = ""
    republished_from: str = ""
    data: dict[str, str] = {}
    recipe: tuple[dict[str, Any], ...] = ()
    original_sha256: str = ""
    edgewright_version: str = ""
    environment: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A release.

    Attributes:
        name: Of the model, agent or image.
        version: Of the release.
        kind: What it is.
        variants: One per device class.
        lineage: Where it comes from.
        licence: SPDX expression, or words.
        created_at: UTC, ISO 8601.
        end_of_life_at: From then on it is not installed any more; UTC, ISO 8601; "" for never.
        schema: Of this record.
    """

    name: str
    version: str
    kind: ReleaseKind
    variants: tuple[Variant, ...]
    lineage: Lineage = Lineage()
    licence: str = ""
    created_at: str = ""
    end_of_life_at: str = ""
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what is no name or version, and two variants for one device class."""
        checked_name("model", self.name)
        checked_version(self.version)
        checked_iso8601("created_at", self.created_at)
        checked_iso8601("end of life", self.end_of_life_at)
        classes = [variant.device_class for variant in self.variants]
        if not classes or len(set(classes)) < len(classes):
            raise InputError(
                f"{self.name} {self.version} has variants for {classes}",
                remedy="Give one for each device class, at least one.",
            )

    def variant(self, device_class: str) -> Variant | None:
        """Return the variant for a device class, None if there is none."""
        return next((each for each in self.variants if each.device_class == device_class), None)


def stored_form(content: StoredFile | FileDelta) -> tuple[str, int]:
    """Return digest and size of what lies in the repository for a file or a delta."""
    if content.encrypted is not None:
        return content.encrypted.sha256, content.encrypted.size_bytes
    return content.sha256, content.size_bytes


def _checked_size(size: int) -> None:
    if not 0 <= size <= _LARGEST:
        raise InputError(f"{size} bytes is no size of a file", remedy=f"It must be 0 to {_LARGEST}.")
