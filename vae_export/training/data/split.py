"""Split rows by their content: the part of a row depends on its values and the seed alone.

The order of the rows, further rows and the versions of libraries do not matter, and equal rows fall into one part. The
shares of the parts are those that are asked for in expectation.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def hashes(rows: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """Return a number for each row, uniform over 64 bits: BLAKE2b of the row's bytes, with the seed as its key.

    Args:
        rows: [n, …], contiguous, in little-endian order.
        seed: of the split.
    """
    key = seed.to_bytes(8, "little")
    content = rows.reshape(len(rows), -1).data.cast("B")
    size = len(content) // len(rows)
    digests = (
        hashlib.blake2b(content[start : start + size], digest_size=8, key=key).digest()
        for start in range(0, len(content), size)
    )
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def split(
    numbers: NDArray[np.uint64], test_fraction: float, validation_fraction: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows are test data, and which of the others are validation data.

    Args:
        numbers: the hash of each row.
        test_fraction: share of all rows.
        validation_fraction: share of the rows that are no test data.
    """
    place = numbers.astype(np.float64) / 2.0**64
    test = place < test_fraction
    return test, ~test & (place < test_fraction + (1 - test_fraction) * validation_fraction)
