"""Scalars of a TensorBoard event file, read without TensorBoard.

An event file is a row of records (the length in 8 bytes and a checksum of it in 4, the data, and
a checksum of these in 4), each an `Event` in the wire format of Protocol Buffers. Read are its
fields `step` (2) and `summary` (5), of a summary the `value` (1), of a value the `tag` (1), the
`simple_value` (2) and the `tensor` (8), and of a tensor its `dtype` (1), `tensor_content` (4),
`float_val` (5) and `double_val` (6).
"""

import struct
from collections.abc import Iterator

_HEADER, _FOOTER = 12, 4
_LONGEST = 2**31
# Wire types: the bytes of a number of fixed length.
_FIXED = {1: 8, 5: 4}
_FORMATS = {1: "<f", 2: "<d"}  # by the number of the type of a tensor


def read_scalars(data: bytes) -> Iterator[tuple[str, int, float]]:
    """The tags, steps and values of all scalars of an event file, in its order. A last record that
    is not whole is left out: the training may still be writing it.

    **Raises:**

    `ValueError` for what is no event file, with the place where it fails.
    """
    place = 0
    while place + _HEADER <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if length > _LONGEST:
            raise ValueError(f"a record of {length} bytes at byte {place}")
        start, stop = place + _HEADER, place + _HEADER + length
        if stop + _FOOTER > len(data):
            break
        try:
            yield from _read_event(data[start:stop])
        except (IndexError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"a record that is no event at byte {place}") from error
        place = stop + _FOOTER


def _read_event(data: bytes) -> Iterator[tuple[str, int, float]]:
    step, summaries = 0, []
    for field, value in _fields(data):
        if field == 2 and isinstance(value, int):
            step = value
        elif field == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for field, value in _fields(summary):
            if field == 1 and isinstance(value, bytes):
                yield from ((tag, step, number) for tag, number in _read_value(value))


def _read_value(data: bytes) -> Iterator[tuple[str, float]]:
    tag, number = "", None
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            tag = value.decode()
        elif field == 2 and isinstance(value, bytes):
            (number,) = struct.unpack("<f", value)
        elif field == 8 and isinstance(value, bytes):
            number = _read_tensor(value)
    if number is not None:
        yield tag, number


def _read_tensor(data: bytes) -> float | None:
    """The number in a tensor of one number; of any other tensor, nothing."""
    kind, numbers = 0, []
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field in (4, 5, 6) and isinstance(value, bytes):
            numbers.append(value)
    form = _FORMATS.get(kind)
    if form is None or len(numbers) != 1 or len(numbers[0]) != struct.calcsize(form):
        return None
    return struct.unpack(form, numbers[0])[0]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers of the fields of a message, and what is in each."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise IndexError("no such wire type")
        if place + length > len(data):
            raise IndexError("a field that ends after its message")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """An integer of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value - 2**64 if value >= 2**63 else value), place
        if shift > 63:
            raise IndexError("an integer that does not end")
