"""A device's key sealed to its TPM 2.0 and to what the platform has booted.

The key is a sealed object under the owner's storage key, and its policy names platform registers (PCRs): after
another boot chain the TPM does not open it. What crosses the bus is encrypted: sessions are salted with the storage
key.
Source: TCG TPM 2.0 Library, part 1, sections 19 (sessions) and 27.2.4 (sealed data); tpm2-pytss's ESAPI.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RC, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.ESAPI import ESAPI
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
)

from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.keys.keystore import KeyStore, LockedError, RawKeyStore, write_secret

__all__ = ["open_tpm_key", "seal_tpm_key"]

_TCTI = "EDGEWRIGHT_TCTI"
_STORAGE = "ecc256:aes128cfb"
_BUS = "aes128cfb"
# What a TPM says where a policy does not hold, a register changed meanwhile, or the object is another TPM's.
_LOCKED = frozenset({TPM2_RC.POLICY_FAIL, TPM2_RC.PCR_CHANGED, TPM2_RC.INTEGRITY, TPM2_RC.POLICY})
_RC_FORMAT_1, _RC_MASK_1, _RC_MASK_0 = 0x080, 0x0BF, 0x97F


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    pcrs: str
    public: bytes
    private: bytes


_FORMAT = "edgewright tpm key 1"


def seal_tpm_key(path: Path, *, pcrs: str, tcti: str | None = None) -> KeyStore:
    """Make a key, seal it to the TPM's registers as they are now, and return its store.

    Args:
        path: Where the sealed key goes; one that is there is replaced.
        pcrs: Registers, as `BANK:N,N`: firmware 0, option ROMs 2, boot loader 4, secure boot 7.
        tcti: How to reach the TPM; from `EDGEWRIGHT_TCTI`, else the system's own way.

    Raises:
        WorkError: The TPM cannot be used.
        OutputError: The file cannot be written.
    """
    key = os.urandom(32)
    with _tpm(tcti) as tpm, _storage_key(tpm) as parent:
        with _session(tpm, parent, TPM2_SE.TRIAL) as session:
            tpm.policy_pcr(session, None, pcrs)
            policy = bytes(tpm.policy_get_digest(session))
        attributes = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT
        template = TPM2B_PUBLIC(TPMT_PUBLIC.parse(alg="keyedhash", objectAttributes=attributes, authPolicy=policy))
        secret = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(key)))
        with _session(tpm, parent, TPM2_SE.HMAC) as session:
            tpm.trsess_set_attributes(session, TPMA_SESSION.DECRYPT | TPMA_SESSION.CONTINUESESSION)
            private, public, *_ = tpm.create(parent, secret, template, session2=session)
        sealed = _Sealed(_FORMAT, pcrs, public.marshal(), private.marshal())
    write_secret(path, msgspec.json.encode(sealed))
    return RawKeyStore(key)


def open_tpm_key(path: Path, *, tcti: str | None = None) -> KeyStore:
    """Return the store of a sealed key.

    Args:
        path: Of the sealed key.
        tcti: How to reach the TPM.

    Raises:
        LockedError: The platform has booted something else, or this is another TPM.
        InputError: The file is missing or damaged.
        WorkError: The TPM cannot be used.
    """
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
        private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
    except (OSError, msgspec.MsgspecError, TSS2_Exception) as error:
        raise InputError(
            f"the sealed key {path} cannot be read: {error}", remedy="Enrol the device again."
        ) from error
    with _tpm(tcti) as tpm, _storage_key(tpm) as parent:
        item = tpm.load(parent, private, public)
        try:
            with _session(tpm, parent, TPM2_SE.POLICY) as session:
                tpm.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
                tpm.policy_pcr(session, None, sealed.pcrs)
                return RawKeyStore(bytes(tpm.unseal(item, session1=session)))
        finally:
            tpm.flush_context(item)


@contextmanager
def _tpm(tcti: str | None) -> Iterator[ESAPI]:
    """Yield a connection; what the TPM says becomes an error that says what to do."""
    try:
        with ESAPI(tcti or os.environ.get(_TCTI)) as tpm:
            yield tpm
    except TSS2_Exception as error:
        if _code(error) in _LOCKED:
            raise LockedError(
                "the TPM does not open this device's key: another boot chain, or another TPM",
                remedy="The models are fetched again.",
            ) from error
        raise WorkError(f"the TPM cannot be used: {error}", remedy=f"Check it, and {_TCTI}.") from error


def _code(error: TSS2_Exception) -> int:
    """Return a response code without the number of the parameter or session that it is about."""
    code = int(error.rc) & 0xFFF
    return code & _RC_MASK_1 if code & _RC_FORMAT_1 else code & _RC_MASK_0


@contextmanager
def _storage_key(tpm: ESAPI) -> Iterator[ESYS_TR]:
    """Yield the owner's storage key, which the TPM makes anew from its seed each time."""
    attributes = (
        TPMA_OBJECT.RESTRICTED
        | TPMA_OBJECT.DECRYPT
        | TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.USERWITHAUTH
        | TPMA_OBJECT.NODA
    )
    template = TPM2B_PUBLIC(TPMT_PUBLIC.parse(alg=_STORAGE, objectAttributes=attributes))
    handle, *_ = tpm.create_primary(None, template)
    try:
        yield handle
    finally:
        tpm.flush_context(handle)


@contextmanager
def _session(tpm: ESAPI, parent: ESYS_TR, kind: TPM2_SE) -> Iterator[ESYS_TR]:
    session = tpm.start_auth_session(parent, ESYS_TR.NONE, kind, _BUS, TPM2_ALG.SHA256)
    try:
        yield session
    finally:
        tpm.flush_context(session)
