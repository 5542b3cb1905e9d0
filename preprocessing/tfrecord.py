"""TFRecord files without TensorFlow: the framing of records, and `tf.train.Example` messages.

Own code, for it is short: TensorFlow takes seconds to import, and each process that writes patches would need it.

Formats: tensorflow.org/tutorials/load_data/tfrecord (records), the encoding of Protocol Buffers, RFC 3720 (CRC-32C).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import google_crc32c

Value = bytes | int | float
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


def _masked(data: bytes) -> bytes:
    """CRC-32C, rotated and offset as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


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
