"""Write results: arrays and sheets of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..vae import VAE

    Array = NDArray[np.float32]


def require_picture(vae: VAE) -> None:
    """Refuse a PNG before anything is computed, if observations are not pictures."""
    import numpy as np

    from ..image import grid

    grid(np.zeros((1, *vae.manifest.outputs("decoder")[0].shape), np.float32))


def require_form(path: Path, vae: VAE) -> None:
    """Refuse a PNG or a CSV before anything is computed, if observations are not pictures or rows of a table."""
    if path.suffix == ".png":
        require_picture(vae)
    elif path.suffix == ".csv":
        from ..tables import require_table

        require_table(str(path), vae)


def write_observations(path: Path, x: Array, vae: VAE, columns: int | None) -> None:
    """Write finite observations as an .npy array, a CSV table or a PNG sheet, depending on the suffix."""
    from ..image import grid, png, require_finite

    require_finite(x)
    if path.suffix == ".npy":
        write_npy(path, x)
        return
    from ..files import write_atomic

    if path.suffix == ".csv":
        from ..tables import csv_of, to_table

        write_atomic(path, csv_of(to_table(vae, x)))
        return
    write_atomic(path, png(grid(x, columns=columns, value_range=vae.manifest.observation.range)))


def write_npy(path: Path, array: Array) -> None:
    """Write one array as .npy, atomically."""
    import numpy as np

    from ..files import write_atomic

    def write(file: IO[bytes]) -> None:
        np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as .npz, atomically."""
    import zipfile

    import numpy as np

    from ..files import write_atomic

    # In memory first: after a failed write, zipfile complains once more when it is collected.
    content = io.BytesIO()
    # numpy.savez reserves some names for its own arguments.
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomic(path, content.getvalue())
