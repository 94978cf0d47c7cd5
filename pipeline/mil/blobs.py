"""The weight file of an ML Program: blobs, each behind 64 bytes that say what it is.

Layout (version 2): a header of 64 bytes with the number of blobs and the version; then for each blob, on a 64-byte
boundary, its mark 0xDEADBEEF, type, size in bytes, place, and bits of padding; then the data. Found in files that
coremltools 9.0 writes, and read back equal to its own `_BlobStorageReader` in the tests.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from pipeline.base.errors import ModelError

MARK, VERSION = 0xDEADBEEF, 2
HEADER = struct.Struct("<II56x")
ENTRY = struct.Struct("<IIQQQ32x")

# bits of one value, by type
BITS = {
    "bool": 8,
    "fp16": 16,
    "fp32": 32,
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "uint1": 1,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
    "uint6": 6,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
}
# numbers of types in a blob's entry
CODES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
_WIDE = {"fp16": np.float16, "fp32": np.float32}


class WeightFile:
    """A weight file, read blob by blob."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        try:
            size = path.stat().st_size
            if not ENTRY.size <= size <= most_bytes:
                raise ModelError(f"{path}: {size:,} bytes, expected {ENTRY.size} to {most_bytes:,}; export it again")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(
                f"{path}: the package's weights cannot be read: {error.strerror}; export it again"
            ) from error
        _, version = HEADER.unpack_from(self._map)
        if version != VERSION:
            raise ModelError(f"{path}: weight file of version {version}, expected {VERSION}; export it again")

    def close(self) -> None:
        """Unmaps the file."""
        self._map.close()

    def read(self, offset: int, dtype: str, count: int, place: str) -> np.ndarray:
        """The values of one blob, flat.

        Args:
            offset: of its entry.
            dtype: as the specification declares it.
            count: of values.
            place: what asks, for messages.

        Raises:
            ModelError: there is no blob, or one of another type or size.
        """
        where = f"{self._path}: {place} at byte {offset:,}"
        if offset + ENTRY.size > len(self._map):
            raise ModelError(f"{where}: beyond the file's {len(self._map):,} bytes; it is cut short: export it again")
        mark, code, size, start, padding_bits = ENTRY.unpack_from(self._map, offset)
        if mark != MARK:
            raise ModelError(f"{where}: found 0x{mark:08X}, expected a blob's mark 0x{MARK:08X}; export it again")
        found = CODES.get(code, f"type number {code}")
        needed = (count * BITS[dtype] + 7) // 8
        if found != dtype or size != needed:
            raise ModelError(
                f"{where}: found a blob of {found} in {size:,} bytes, declared {count:,} values of {dtype} in "
                f"{needed:,}; the weight file is another model's or damaged: export it again"
            )
        if start + size > len(self._map) or padding_bits != size * 8 - count * BITS[dtype]:
            raise ModelError(f"{where}: its {size:,} bytes do not lie in the file as they should; export it again")
        return unpack(self._map[start : start + size], dtype, count, where)


def unpack(data: bytes, dtype: str, count: int, place: str) -> np.ndarray:
    """Values of a type from bytes; those narrower than a byte are packed from the least significant bit on.

    Returns:
        Flat, of the type itself, or of int8 and uint8 for types that are narrower.

    Raises:
        ModelError: another number of bytes than the values need.
    """
    bits = BITS[dtype]
    if len(data) != (count * bits + 7) // 8:
        raise ModelError(f"{place}: {len(data):,} bytes, expected {count:,} values of {bits} bits; export it again")
    if bits >= 8:
        return np.frombuffer(data, np.dtype(_WIDE.get(dtype, dtype)))
    digits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    values = (digits.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(axis=1)
    if dtype == "int4":
        return np.where(values > 7, values - 16, values).astype(np.int8)
    return values.astype(np.uint8)
