"""Repositories in folders, with keys whose passphrase costs nothing to try."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import PublishResult, publish_release
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PASSPHRASE = "correct horse"  # noqa: S105 - of test keys


class Place:
    """A repository, and who publishes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = NOW
        self.store = LocalStorage(path / "repo")

    def now(self) -> datetime:
        return self.at

    def turn(self, **by: float) -> None:
        self.at += timedelta(**by)

    def keys(self, name: str = "keys") -> KeyFolder:
        return KeyFolder(self.path / name, lambda _: PASSPHRASE)

    def repository(self, *, finishing: bool = False) -> Repository:
        return Repository(self.store, read_trusted_root(self.path / "keys"), self.now, finishing)

    def publish(
        self,
        version: str,
        content: bytes = b"model",
        *,
        keys: KeyFolder | None = None,
        only_stage: bool = False,
        end_of_life: str = "",
    ) -> PublishResult:
        file = StoredFile("image", hashlib.sha256(content).hexdigest(), len(content))
        manifest = Manifest(
            "m",
            version,
            "firmware",
            (Variant("default", (file,)),),
            end_of_life_at=end_of_life,
            created_at="2026-11-21",
        )
        return publish_release(
            self.repository(),
            keys or self.keys(),
            manifest,
            {"default": {"image": content}},
            only_stage=only_stage,
        )


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    return Place(tmp_path)


@pytest.fixture
def make(empty: Place) -> Callable[..., Place]:
    def made(*, offline: int = 1, threshold: int = 1, bits: int = 2) -> Place:
        create_repository(
            empty.store,
            empty.keys(),
            passphrase=PASSPHRASE,
            offline=offline,
            threshold=threshold,
            bits=bits,
            now=empty.now,
        )
        return empty

    return made


@pytest.fixture
def place(make: Callable[..., Place]) -> Place:
    return make()
