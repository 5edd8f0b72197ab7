"""Arrays in files: what verbs read and write."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..score import Scores
    from ..vae import VAE

    Array = NDArray[np.float32]

__all__ = [
    "read_latents",
    "read_npy",
    "require_latents",
    "require_picture",
    "write_latents",
    "write_npy",
    "write_npz",
    "write_observations",
    "write_scores",
]


def require_picture(vae: VAE) -> None:
    """Refuse a PNG of what is no picture before anything is computed."""
    import numpy as np

    from ..image import grid

    grid(np.zeros((1, *vae.manifest.outputs("decoder")[0].shape), np.float32))


def write_observations(path: Path, x: Array, vae: VAE, columns: int | None) -> None:
    """Write observations as an .npy array or a PNG sheet, as the ending of the name says."""
    if path.suffix == ".npy":
        write_npy(path, x)
        return
    from ..files import write_atomic
    from ..image import grid, png

    write_atomic(path, png(grid(x, columns=columns, value_range=vae.manifest.observation.range)))


def write_npy(path: Path, array: Array) -> None:
    """Write one array; a file that is there is replaced as a whole."""
    import numpy as np

    from ..files import write_atomic

    def write(file: IO[bytes]) -> None:
        np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name; a file that is there is replaced as a whole."""
    import zipfile

    import numpy as np

    from ..files import write_atomic

    # In memory first: of a file that fails, zipfile complains once more when it is collected.
    content = io.BytesIO()
    # Not numpy.savez, which keeps some names for its own arguments.
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomic(path, content.getvalue())


def require_latents(path: Path, vae: VAE) -> None:
    """Refuse an ending that does not fit the number of latents: .npz for several, .npy for one."""
    wanted = ".npz" if len(vae.latents) > 1 else ".npy"
    if path.suffix != wanted:
        count = "several latents" if wanted == ".npz" else "one latent"
        raise InputError(f"{path}: a file name ending in {wanted} is expected, since there is {count}")


def write_latents(path: Path, z: Any) -> None:
    """Write one latent as .npy, several as .npz."""
    if isinstance(z, dict):
        write_npz(path, z)
    else:
        write_npy(path, z)


def read_latents(path: Path, vae: VAE) -> Any:
    """Latents as `decode` takes them: of an .npz file the arrays that are named like latents."""
    import numpy as np

    require_latents(path, vae)
    if path.suffix == ".npy":
        return read_npy(path)
    try:
        # Opened here: of a file that is no archive numpy would leave it open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {latent.name: archive[latent.name] for latent in vae.latents if latent.name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz file") from None
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise InputError(f"{path}: an .npz file of numbers is expected: {error}; write it with numpy.savez") from None


def read_npy(path: Path) -> Array:
    """Read one array; an InputError where the file holds none."""
    import numpy as np

    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npy file") from None
    except Exception as error:  # numpy's parser lets through what others raise
        raise InputError(f"{path}: an .npy file of numbers is expected: {error}; write it with numpy.save") from None
    return array


def write_scores(path: Path, scores: Scores, columns: Mapping[str, NDArray[np.float64]]) -> None:
    """Write the scores of each observation: .csv, or .npz with the KL of each latent dimension."""
    from ..files import write_atomic

    if path.suffix == ".csv":
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
        return
    arrays, terms = dict(columns), scores.kl_per_dimension
    if isinstance(terms, Mapping):
        arrays.update({f"{latent}/kl_per_dimension": each for latent, each in terms.items()})
    elif terms is not None:
        arrays["kl_per_dimension"] = terms
    write_npz(path, arrays)
