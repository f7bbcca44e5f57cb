"""Known answers: what devices of different versions must agree on, checked against other implementations."""

import hashlib
import hmac

import numpy as np
import pytest
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round, drawn, helper_terms, neighbour_terms
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewright.privacy.bit_packing import UnsignedArray, word_type
from edgewright.privacy.helper import MaskedSubmission, submit
from edgewright.privacy.mask import add_mask, derive_key, labelled_digest, subtract_mask
from edgewright.privacy.roster import decode_message
from edgewright.privacy.shamir import SHARE_BYTES, combine_shares, split_secret

# AES-128 under the key 0 of the counters 0, 1 and 2: H, the tag of case 1 and the ciphertext of case 2 of the GCM
# specification (McGrew and Viega 2005, appendix B).
KEYSTREAM = (
    "66e94bd4ef8a2c3b884cfa59ca342b2e"
    "58e2fccefa7e3061367f1d57a4e7455a"
    "0388dace60b6a392f328c2b971b2fe78"
)  # fmt: skip
PRIME = (1 << 130) - 5


@pytest.mark.parametrize("word", [np.uint16, np.uint32])
def test_the_mask_is_the_keystream_in_little_endian_words(word: type[np.uint16] | type[np.uint32]) -> None:
    stream = bytes.fromhex(KEYSTREAM)
    values: UnsignedArray = np.full(len(stream) // word().itemsize, 1, word)
    add_mask(values, bytes(16))
    size = word().itemsize
    expected = [
        (int.from_bytes(stream[at : at + size], "little") + 1) % (1 << (8 * size))
        for at in range(0, len(stream), size)
    ]
    assert values.tolist() == expected


def test_the_mask_goes_on_over_the_chunks() -> None:
    key, length = bytes(range(16)), (1 << 17) + 5
    values: UnsignedArray = np.zeros(length, np.uint16)
    add_mask(values, key)
    # Counter 16,384 begins word 131,072.
    later = Cipher(algorithms.AES(key), modes.CTR((16_384).to_bytes(16, "big"))).encryptor().update(bytes(10))
    assert values[1 << 17 :].tolist() == np.frombuffer(later, "<u2").tolist()
    subtract_mask(values, key)
    assert not values.any()


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def test_keys_are_hkdf_of_framed_labels() -> None:
    secret, context = bytes(range(32)), (b"query", b"", b"roster")
    info = framed(b"edgewright.sum.1 pair mask", *context)
    extracted = hmac.digest(bytes(32), secret, "sha256")  # RFC 5869, section 2.2, without salt
    expanded = hmac.digest(extracted, info + b"\1", "sha256")
    assert derive_key(secret, "pair mask", *context) == expanded[:16]
    assert derive_key(secret, "pair mask", *context, size=32) == expanded
    assert expanded.hex() == "236fcd5ece857a2298e956a288555d4e37df937b077977944508a2d0133c6dfc"


def test_digests_frame_their_parts() -> None:
    expected = hashlib.sha256(framed(b"edgewright.sum.1 tag", b"ab", b"c")).digest()
    assert labelled_digest("tag", b"ab", b"c") == expected
    assert labelled_digest("tag", b"a", b"bc") != expected


def test_shares_lie_on_the_polynomial() -> None:
    secret = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
    slopes = iter([7, 2**129 + 1])

    def entropy(size: int) -> bytes:
        return (next(slopes) << (8 * SHARE_BYTES - 130)).to_bytes(size, "big")

    shares = split_secret(secret, 3, 5, entropy=entropy)
    constant = int.from_bytes(secret, "big")
    expected = [(7 * x * x + (2**129 + 1) * x + constant) % PRIME for x in range(1, 6)]
    assert [int.from_bytes(share, "big") for share in shares] == expected
    assert shares[0].hex() == "0200" + "0102030405060708090a0b0c0d0e" + "17"
    assert combine_shares({2: shares[1], 4: shares[3], 5: shares[4]}, 3) == secret


def expand(secret: bytes, info: bytes, size: int) -> bytes:
    return hmac.digest(secret, info + b"\1", "sha256")[:size]


def unsealed(box: bytes, private: X25519PrivateKey, info: bytes) -> bytes:
    """RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, written from its pages."""
    sender = box[:32]
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x01"

    def extract(suite_id: bytes, salt: bytes, label: bytes, keying: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite_id + label + keying, "sha256")

    def labelled(suite_id: bytes, secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        return expand(secret, size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + context, size)

    agreed = private.exchange(X25519PublicKey.from_public_bytes(sender))
    public = private.public_key().public_bytes_raw()
    shared = labelled(kem, extract(kem, b"", b"eae_prk", agreed), b"shared_secret", sender + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key, nonce = labelled(suite, secret, b"key", context, 16), labelled(suite, secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, box[32:], None)


def test_seeds_are_sealed_as_rfc_9180_says() -> None:
    fleet, terms = Fleet(1), helper_terms(bits=12, length=5)
    name = fleet.names[0]
    private = X25519PrivateKey.from_private_bytes(HELPER_KEY)
    values: UnsignedArray = np.arange(5, dtype=np.uint16)
    seed = bytes(range(100, 116))
    gift = decode_message(
        submit(
            terms,
            private.public_key().public_bytes_raw(),
            values,
            name,
            fleet.keys[name].sign,
            entropy=lambda _: seed,
        ),
        MaskedSubmission,
    )
    assert unsealed(gift.sealed_seed, private, labelled_digest("sealed seed", terms.digest, name)) == seed
    assert gift.masked_values.hex() == "039c704bc8d1e108"
    assert terms.digest.hex() == "a7c4d57d681262304525cfbb0f1be944ceadf38a999492d1064156eeab1965e3"


LETTERS = {
    "advertise": "d89c07166476222acf9e01c2bbebafee",
    "share": "fedc6714ff69594b64a1084b8a69391c",
    "mask": "9f4a38f3da12f642b921c7fad5c3a0d7",
    "reveal": "ebd7196cc6b01c812acc5c1352c8ca21",
}


def test_every_letter_of_a_sum_is_as_it_was() -> None:
    fleet = Fleet(7)
    terms = neighbour_terms(bits=12, length=5)
    sum_ = Round(fleet, terms, entropy=lambda number: drawn(b"device %d" % number))
    found = {}
    while sum_.server.step != "done":
        step = sum_.server.step
        sum_.step(without=fleet.names[:1] if step == "mask" else ())
        letters = b"".join(sum_.members[name].last_message for name in sorted(sum_.members))
        found[step] = hashlib.sha256(letters).hexdigest()[:32]
    assert sum_.server.unmask_sum().dtype == word_type(12)
    assert found == LETTERS
