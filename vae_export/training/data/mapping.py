"""Map .npy files of any size into memory; no value is read before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.arrays import require_npy
from vae_runtime.errors import InputError, error_line
from vae_runtime.input_files import open_plain


def map_npy(path: Path) -> NDArray[Any]:
    """Map the array of an .npy file of numbers.

    Raises:
        InputError: there is no such file, it is damaged, or it does not hold an array of numbers.
    """
    try:
        with open_plain(path) as file:
            require_npy(file, os.fstat(file.fileno()).st_size)
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npy file") from None
    except Exception as error:  # numpy's parser lets through what others raise
        raise InputError(
            f"{path}: expected an .npy file of numbers: {error_line(error)}; write it with numpy.save"
        ) from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected numbers, got dtype {array.dtype!s:.99}; write them with numpy.save")
    return array
