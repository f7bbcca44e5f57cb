"""Packing: what goes in comes out, and nothing else is taken for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.errors import DataError
from edgewright.privacy.bit_packing import UnsignedArray, as_words, pack_bits, packed_size, unpack_bits, word_type


@given(st.integers(2, 32), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_what_was_packed_comes_back(bits: int, length: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint64).astype(np.uint32)
    content = pack_bits(values, bits)
    assert len(content) == packed_size(length, bits)
    assert np.array_equal(unpack_bits(content, bits, length), values)


@given(st.integers(2, 32), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_bits_lie_one_after_the_other(bits: int, raw: list[int]) -> None:
    whole = sum((value % (1 << bits)) << (place * bits) for place, value in enumerate(raw))  # Python's own integers
    expected = whole.to_bytes(packed_size(len(raw), bits), "little")
    assert pack_bits(as_words(np.array(raw, np.uint32), len(raw), bits), bits) == expected


@pytest.mark.parametrize("bits", [7, 12, 17, 31])
def test_chunks_leave_no_seam(bits: int) -> None:
    length = (1 << 17) + 3
    values = np.random.default_rng(1).integers(0, 1 << bits, length, dtype=np.uint64).astype(np.uint32)
    assert np.array_equal(unpack_bits(pack_bits(values, bits), bits, length), values)


@pytest.mark.parametrize("bits", [2, 12, 16, 32])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_not_unpacked(bits: int, change: int) -> None:
    content = pack_bits(np.zeros(16, word_type(bits)), bits)
    with pytest.raises(DataError, match="16 integers"):
        unpack_bits(content[:change] if change < 0 else content + b"\0", bits, 16)


def test_one_vector_has_one_packing() -> None:
    content = pack_bits(np.array([1, 2, 3], np.uint16), 5)
    with pytest.raises(DataError, match="behind the last"):
        unpack_bits(content[:-1] + bytes([content[-1] | 0x80]), 5, 3)


@pytest.mark.parametrize("values", [np.zeros(3, np.int32), np.zeros((3, 1), np.uint16), np.zeros(4, np.uint16)])
def test_other_values_are_not_fitted(values: UnsignedArray) -> None:
    with pytest.raises(ValueError, match="3 are asked for"):
        as_words(values, 3, 16)


@pytest.mark.parametrize("bits", [1, 33])
def test_other_moduli_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 32"):
        word_type(bits)
