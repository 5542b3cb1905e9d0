"""TFRecord files without TensorFlow: the framing of records, CRC-32C, and `tf.train.Example` messages.

Formats: tensorflow.org/tutorials/load_data/tfrecord (records), the encoding of Protocol Buffers, RFC 3720 (CRC-32C).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

Value = bytes | int | float
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_LANE = 128  # bytes of one lane, a multiple of 4; all lanes of a message are worked on at once
_BYTES, _FLOATS, _INTS = 1, 2, 3  # fields of a Feature: bytes_list, float_list, int64_list
_DELIMITED = 2  # wire type


def record(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def example(features: Mapping[str, Value]) -> bytes:
    """A serialized `tf.train.Example` with one value per feature."""
    entries = b"".join(
        _field(1, _field(1, name.encode("utf-8")) + _field(2, _feature(value)))
        for name, value in sorted(features.items())
    )
    return _field(1, entries)


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes."""
    register = np.uint32(0xFFFFFFFF)
    whole = len(data) // _LANE
    if whole > 1:
        register = _lanes(np.frombuffer(data, np.uint8, whole * _LANE).reshape(whole, _LANE), register)
    else:
        whole = 0
    table = _byte_table()
    value = int(register)
    for byte in data[whole * _LANE :]:
        value = int(table[(value ^ byte) & 255]) ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    """The checksum as TFRecord files have it."""
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _lanes(lanes_NL: NDArray[np.uint8], register: np.uint32) -> np.uint32:
    """The register after all bytes of the lanes, row after row.

    CRC is linear: each lane's own remainder (from a register of 0, the first from the given one) is worked out for all
    lanes at once, four bytes each; then neighbors are joined, the left one pushed on by the length of the right one.
    """
    low, high = _word_tables()
    state = np.zeros(lanes_NL.shape[0], "<u4")
    state[0] = register
    halves = state.view("<u2").reshape(-1, 2)
    # Each step's words side by side in memory.
    for words in np.ascontiguousarray(lanes_NL.view("<u4").T):
        state ^= words
        # Half-words are never beyond the tables: "clip" only spares the question.
        np.bitwise_xor(low.take(halves[:, 0], mode="clip"), high.take(halves[:, 1], mode="clip"), out=state)
    # Empty lanes in front leave a sum from 0 as it is; there must be a power of two of lanes.
    count = 1 << (state.size - 1).bit_length()
    state = np.concatenate([np.zeros(count - state.size, np.uint32), state.astype(np.uint32, copy=False)])
    level = 0
    while state.size > 1:
        state = _push(state[0::2], level) ^ state[1::2]
        level += 1
    return np.uint32(state[0])


def _push(state: NDArray[np.uint32], level: int) -> NDArray[np.uint32]:
    """Registers after `_LANE` * 2 ** level further zero bytes."""
    tables = _push_tables(level)
    out: NDArray[np.uint32] = tables[0][state & 255].astype(np.uint32)
    for byte in (1, 2, 3):
        out = out ^ tables[byte][(state >> (8 * byte)) & 255]
    return out


@cache
def _push_tables(level: int) -> NDArray[np.uint32]:
    """Where each value of each byte of a register goes, shape (4, 256)."""
    values = np.arange(256, dtype=np.uint32)
    state: NDArray[np.uint32] = np.stack([values << np.uint32(8 * byte) for byte in range(4)])
    if level:
        # Twice as far is twice the way.
        return _push(_push(state, level - 1), level - 1)
    return _after_zeros(state, _LANE)


@cache
def _word_tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Where each value of the lower and of the upper half of a register goes in four bytes, shape (65536,) each.

    Two look-ups for four bytes; 256 KB each, which stay in a core's second cache.
    """
    values = np.arange(65536, dtype=np.uint32)
    return _after_zeros(values, 4), _after_zeros(values << np.uint32(16), 4)


def _after_zeros(state: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """Registers after `count` zero bytes."""
    table = _byte_table()
    for _ in range(count):
        state = table[state & 255] ^ (state >> 8)
    return state


@cache
def _byte_table() -> NDArray[np.uint32]:
    """Where one byte takes the register, shape (256,)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def _feature(value: Value) -> bytes:
    if isinstance(value, bytes):
        return _field(_BYTES, _field(1, value))
    if isinstance(value, int):
        # Negative numbers are written as 64-bit two's complement.
        return _field(_INTS, _field(1, _varint(value & 0xFFFFFFFFFFFFFFFF)))
    return _field(_FLOATS, _field(1, struct.pack("<f", value)))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | _DELIMITED) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
