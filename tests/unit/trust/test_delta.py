"""Deltas: small where little changed, and harmless whoever wrote them."""

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.release import Codec
from edgewright.trust import delta
from edgewright.trust.delta import CODECS, DeltaError, apply_delta, smallest_delta

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(0, 30, 200_000).clip(-127, 127).astype(np.int8).tobytes()


def moved(content: bytes) -> bytes:
    """Return weights that all moved by about one per cent of their range."""
    values = np.frombuffer(content, np.int8).astype(np.int16)
    return (values + RANDOM.integers(-1, 2, values.size)).clip(-127, 127).astype(np.int8).tobytes()


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_every_codec_gives_back_what_it_took(old: bytes, new: bytes) -> None:
    for codec, (encode, _) in CODECS.items():
        made = encode(old, new)
        if made is not None:
            assert apply_delta(codec, old, made, size=len(new)) == new


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_gives_back_a_model(codec: Codec) -> None:
    new = moved(WEIGHTS)
    made = CODECS[codec][0](WEIGHTS, new)
    assert made is not None
    assert apply_delta(codec, WEIGHTS, made, size=len(new)) == new


def test_the_smallest_is_taken_and_none_if_none_is_worth_it() -> None:
    head = WEIGHTS[:-4000] + moved(WEIGHTS[-4000:])
    found = smallest_delta(WEIGHTS, head, below=len(head))
    assert found is not None
    assert len(found[1]) < 0.06 * len(head)
    assert smallest_delta(b"", RANDOM.bytes(1000), below=900) is None


def test_weights_that_all_moved_a_little_cost_a_fifth() -> None:
    found = smallest_delta(WEIGHTS, moved(WEIGHTS), below=len(WEIGHTS))
    assert found is not None
    assert found[0] == "planes"
    assert len(found[1]) <= 0.201 * len(WEIGHTS)  # three equally likely steps: none shorter is possible than 0.198


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(bytes(size))


def unsized(content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def steps(*table: tuple[int, int, int], added: bytes = b"", extra: bytes = b"") -> bytes:
    body = np.array(table, "<i8").tobytes()
    return unsized(struct.pack("<3q", len(table), len(added), len(extra)) + body + added + extra)


ATTACKS: dict[str, tuple[Codec, bytes]] = {
    "not compressed at all": ("zstd", b"no zstd"),
    "empty": ("zstd", b""),
    "cut off": ("zstd", bomb(100)[:-4]),
    "a bomb": ("zstd", bomb(1 << 30)),
    "a bomb that hides its size": ("zstd", unsized(bytes(1 << 26))),
    "too short": ("zstd", unsized(bytes(50))),
    "planes: a bomb": ("planes", b"\x01" + bomb(1 << 30)),
    "planes: no word": ("planes", b"\x03" + unsized(bytes(100))),
    "planes: too short": ("planes", b"\x01" + unsized(bytes(50))),
    "planes: empty": ("planes", b""),
    "bsdiff: a bomb": ("bsdiff", bomb(1 << 30)),
    "bsdiff: no head": ("bsdiff", unsized(b"1234")),
    "bsdiff: lengths that lie": ("bsdiff", unsized(struct.pack("<3q", 1, 1 << 40, 0))),
    "bsdiff: negative lengths": ("bsdiff", unsized(struct.pack("<3q", -1, 50, 50))),
    "bsdiff: a step out of the file": ("bsdiff", steps((200, 0, 0), added=bytes(100))),
    "bsdiff: a negative step": ("bsdiff", steps((-5, 105, 0), extra=bytes(100))),
    "bsdiff: steps that leave a gap": ("bsdiff", steps((10, 0, 0), added=bytes(100))),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_delta_is_refused_within_the_signed_size(attack: str) -> None:
    codec, content = ATTACKS[attack]
    with pytest.raises(DeltaError):
        apply_delta(codec, bytes(100), content, size=100)


def test_a_step_far_outside_of_the_old_file_reads_zeros() -> None:
    far = steps((0, 0, -(1 << 40)), (50, 0, 1 << 50), (50, 0, 0), added=bytes(range(100)))
    assert apply_delta("bsdiff", b"\xff" * 100, far, size=100) == bytes(range(100))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(DeltaError):
        apply_delta("xz", b"", b"", size=0)  # type: ignore[arg-type]


def test_without_the_publishers_library_the_other_codecs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(delta.CODECS, "bsdiff", (lambda *_: None, CODECS["bsdiff"][1]))
    assert smallest_delta(WEIGHTS, WEIGHTS, below=len(WEIGHTS)) is not None
