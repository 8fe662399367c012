"""What the messages of an Arrow file say that they unpack to, told before any of it is.

Layout: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc, and the
tables of its Message.fbs, whose fields have the numbers below.
"""

import struct
from typing import BinaryIO

MAGIC = b"ARROW1\0\0"
"""How a file begins; what follows is a stream, and then an index for those who want single batches."""

_CONTINUES = 0xFFFFFFFF
_LARGEST_METADATA = 64 * 2**20
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # of the union of headers
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3  # of Message
_DATA = 1  # of DictionaryBatch
_BUFFERS, _COMPRESSION = 2, 3  # of RecordBatch


class DamagedArrow(ValueError):
    """What is said cannot be so."""


def largest_message(file: BinaryIO, start: int) -> int:
    """Bytes in memory of the largest batch of the stream that begins at ``start``; only sizes are read.

    Raises :class:`DamagedArrow` for what is no stream.
    """
    largest = 0
    while True:
        file.seek(start)
        prefix = file.read(8)
        if len(prefix) < 8:
            return largest
        marker, length = struct.unpack("<II", prefix)
        if marker != _CONTINUES:
            raise DamagedArrow("no Arrow stream")
        if length == 0:
            return largest
        if length > _LARGEST_METADATA:
            raise DamagedArrow(f"metadata of {length} bytes")
        try:
            unpacked, body_length = _sizes(file.read(length), file, start + 8 + length)
        except (struct.error, IndexError):
            raise DamagedArrow("damaged Arrow metadata") from None
        largest = max(largest, unpacked, body_length)
        start += 8 + length + body_length


def _sizes(metadata: bytes, file: BinaryIO, body: int) -> tuple[int, int]:
    """Bytes of a batch once unpacked, and of the body of any message as it is."""
    table = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    length = table.number("<q", _BODY_LENGTH)
    if length < 0:
        raise DamagedArrow(f"a body of {length} bytes")
    kind = table.number("<B", _HEADER_TYPE)
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return 0, length
    batch = table.table(_HEADER)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(_DATA)
    if not batch.has(_COMPRESSION):
        return length, length
    unpacked = 0
    for offset, packed in batch.pairs(_BUFFERS):
        if packed:
            file.seek(body + offset)
            (said,) = struct.unpack("<q", file.read(8))  # before each packed buffer; -1 if it is as it was
            unpacked += packed if said < 0 else said
    return unpacked, length


class _Table:
    """A table of a flat buffer."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start = data, start
        self._fields = start - struct.unpack_from("<i", data, start)[0]
        if self._fields < 0:
            raise IndexError

    def _place(self, field: int) -> int:
        """Where a field lies; 0 if it has its default."""
        (size,) = struct.unpack_from("<H", self._data, self._fields)
        if size <= 4 + 2 * field:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * field)
        return self._start + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._place(field) > 0

    def number(self, kind: str, field: int) -> int:
        place = self._place(field)
        return int(struct.unpack_from(kind, self._data, place)[0]) if place else 0

    def table(self, field: int) -> "_Table":
        return _Table(self._data, self._follow(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of two 64-bit integers each."""
        start = self._follow(field)
        (count,) = struct.unpack_from("<I", self._data, start)
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, start + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _follow(self, field: int) -> int:
        place = self._place(field)
        if not place:
            raise IndexError
        return place + int(struct.unpack_from("<I", self._data, place)[0])
