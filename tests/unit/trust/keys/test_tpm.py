"""A key in a real TPM 2.0, in software (swtpm): only the same boot chain of the same TPM opens it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewright.contract.errors import InputError, WorkError
from edgewright.device.encryption_keys import open_device_keys
from edgewright.trust.keys.keystore import LockedError

tpm = pytest.importorskip(
    "edgewright.trust.keys.tpm", reason="tpm2-pytss is not installed: make setup", exc_type=ImportError
)

pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm")

PCRS = "sha256:0,2,4,7"
CONTEXT = b"context"


class Software:
    """A TPM whose platform can be started anew."""

    def __init__(self, state: Path) -> None:
        self.state = state
        state.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.stop()
        path = self.state / "socket"
        server, control = f"type=unixio,path={path}", f"type=unixio,path={path}.ctrl"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}", "--server", server]
        command += ["--ctrl", control, "--flags", "not-need-init,startup-clear"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.tcti = f"swtpm:path={path}"
        deadline = time.monotonic() + 10
        while not path.is_socket() and time.monotonic() < deadline:
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
            (self.state / "socket").unlink(missing_ok=True)

    def extend(self, register: int) -> None:
        """Do as a platform that boots something else."""
        from tpm2_pytss.constants import ESYS_TR
        from tpm2_pytss.ESAPI import ESAPI

        with ESAPI(self.tcti) as esapi:
            esapi.pcr_event(ESYS_TR(register), b"something else")


@pytest.fixture
def software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Software]:
    made = Software(tmp_path / "tpm")
    monkeypatch.setenv("EDGEWRIGHT_TCTI", made.tcti)
    monkeypatch.setenv("TSS2_LOG", "all+NONE")
    yield made
    made.stop()


def test_the_same_boot_chain_opens_the_key(software: Software, tmp_path: Path) -> None:
    wrapped = tpm.seal_tpm_key(tmp_path / "key", pcrs=PCRS).wrap(b"content key", CONTEXT)
    software.start()
    assert tpm.open_tpm_key(tmp_path / "key", tcti=software.tcti).unwrap(wrapped, CONTEXT) == b"content key"
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("register", [0, 2, 4, 7])
def test_another_boot_chain_does_not(software: Software, tmp_path: Path, register: int) -> None:
    tpm.seal_tpm_key(tmp_path / "key", pcrs=PCRS)
    software.extend(register)
    with pytest.raises(LockedError, match="boot chain"):
        tpm.open_tpm_key(tmp_path / "key")


def test_a_register_that_is_not_named_does_not_matter(software: Software, tmp_path: Path) -> None:
    tpm.seal_tpm_key(tmp_path / "key", pcrs=PCRS)
    software.extend(10)
    tpm.open_tpm_key(tmp_path / "key")


def test_another_tpm_does_not_open_it(software: Software, tmp_path: Path) -> None:
    tpm.seal_tpm_key(tmp_path / "key", pcrs=PCRS)
    other = Software(tmp_path / "other")
    try:
        with pytest.raises(LockedError):
            tpm.open_tpm_key(tmp_path / "key", tcti=other.tcti)
    finally:
        other.stop()


def test_the_key_is_not_in_the_file(software: Software, tmp_path: Path) -> None:
    store = tpm.seal_tpm_key(tmp_path / "key", pcrs=PCRS)
    content = (tmp_path / "key").read_bytes()
    assert b"private" in content
    again = tpm.seal_tpm_key(tmp_path / "again", pcrs=PCRS)
    with pytest.raises(LockedError):
        again.unwrap(store.wrap(b"content key", CONTEXT), CONTEXT)


def test_after_an_update_of_the_boot_chain_the_device_has_a_new_key(software: Software, tmp_path: Path) -> None:
    before = open_device_keys(tmp_path, PCRS, create=True)
    wrapped = before.wrap(b"content key", CONTEXT)
    assert open_device_keys(tmp_path, PCRS, create=True).unwrap(wrapped, CONTEXT) == b"content key"
    software.extend(4)
    held = (tmp_path / "device.tpm").read_bytes()
    with pytest.raises(LockedError):
        open_device_keys(tmp_path, PCRS, create=False).unwrap(wrapped, CONTEXT)
    assert (tmp_path / "device.tpm").read_bytes() == held
    after = open_device_keys(tmp_path, PCRS, create=True)
    with pytest.raises(LockedError):
        after.unwrap(wrapped, CONTEXT)
    assert open_device_keys(tmp_path, PCRS, create=True).unwrap(after.wrap(b"new", CONTEXT), CONTEXT) == b"new"


def test_a_tpm_that_is_gone_is_no_reason_for_a_new_key(software: Software, tmp_path: Path) -> None:
    open_device_keys(tmp_path, PCRS, create=True)
    held = (tmp_path / "device.tpm").read_bytes()
    software.stop()
    with pytest.raises(WorkError) as caught:
        open_device_keys(tmp_path, PCRS, create=True)
    assert not isinstance(caught.value, LockedError)
    assert (tmp_path / "device.tpm").read_bytes() == held


def test_a_damaged_file_is_no_key(software: Software, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"{}")
    with pytest.raises(InputError):
        tpm.open_tpm_key(tmp_path / "key")
