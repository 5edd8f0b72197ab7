"""Put the quantiles of held-out scores into a bundle, so that scores of other observations have p-values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bundle import MANIFEST, open_bundle, require_replaceable
from .document import dump
from .errors import BundleError, InputError, require_bool, require_integer
from .files import lies_in, write_folder
from .held_out import HeldOut, quantiles
from .places import SUMS, format_sums, is_zip, signature_of, write_zip
from .row_files import conditions_of_rows, open_rows
from .vae import VAE, load

# Rows of a file that are scored at once.
_ROWS = 4096


def calibrate(
    bundle: str | os.PathLike[str],
    x: ArrayLike | str | os.PathLike[str],
    *,
    data: str | None = None,
    conditions: Mapping[str, Any] | None = None,
    k: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    device: str = "cpu",
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    digest: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> str:
    """Write a bundle whose manifest has the quantiles of the scores of held-out observations.

    With them `VAE.score` gives p-values. Nothing else changes. The bundle written is not signed.

    Args:
        bundle: the bundle's folder or .zip file.
        x: observations [n, *observation shape] that are like those to judge later and that the model was not trained
            on; or a file of such rows, .npy, .csv or .parquet, read part by part.
        data: what they are, in words; by default the name of the file.
        conditions: as in `VAE.score`.
        k: importance samples: quantiles of the log-likelihood; None takes the ELBO.
        seed: of vnoise-1, 0 … 2^53 - 1; scores that are compared with the quantiles are drawn with the same one.
        variant: the variant to calibrate, as in `load`.
        device: as in `load`.
        out: where to write the bundle; by default it replaces the one that was read.
        force: replace another bundle at `out`.
        digest: "sha256:…" of the bundle; any other is refused.
        progress: called with the number of observations done.

    Returns:
        The digest of the bundle written, "sha256:…".

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: the bundle has no ELBO, a score is not finite, or an argument is wrong.
        VaeError: the bundle cannot be written there; nothing is left behind.
    """
    require_bool("force", force)
    if out is None and "://" in str(bundle):
        raise InputError(f"bundle: expected a folder or a .zip file to replace, got {bundle}; give out=")
    named = data or (Path(x).name if isinstance(x, (str, os.PathLike)) else "observations of the caller's")
    if not isinstance(named, str) or not named.isprintable():
        raise InputError(f"data: expected printable text, got {named!r:.99}; say in one line what the observations are")
    vae = load(bundle, device=device, variant=variant, digest=digest)
    target = Path(vae.bundle.files.location) if out is None else Path(os.fspath(out))
    if out is not None and lies_in(target, vae.bundle.path):
        raise InputError(f"{out}: expected a place outside the bundle; leave it out to replace the bundle itself")
    require_replaceable(target, force or out is None, zipped=is_zip(target))
    held_out = held_out_scores(vae, x, data=named, conditions=conditions, k=k, seed=seed, progress=progress)
    manifest = replace(vae.manifest, scores=held_out)
    source = vae.bundle
    files = {path: source.read(path) for path in source.sums if path != MANIFEST}
    files[MANIFEST] = dump(manifest).encode()
    files[SUMS] = format_sums(files.items())
    files = dict(sorted(files.items()))
    if is_zip(target):
        write_zip(target, files)
        signature = signature_of(target)
        if signature.is_file():
            # It is of the file that was there.
            signature.unlink()
    else:
        write_folder(target, files, replace=force or out is None)
    return open_bundle(target).digest


def held_out_scores(
    vae: VAE,
    x: ArrayLike | str | os.PathLike[str],
    *,
    data: str,
    conditions: Mapping[str, Any] | None = None,
    k: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> HeldOut:
    """Score observations, and give the quantiles of their scores; arguments as of `calibrate`.

    Raises:
        InputError: there is no ELBO, a score is not finite, or there are no observations.
    """
    seed = require_integer("seed", seed, 0, 2**53 - 1)
    if len(vae.manifest.components) < 2:
        raise BundleError(
            f"{vae.bundle.path}: expected an encoder and a decoder, got one of them; use the whole bundle"
        )
    columns = []
    done = 0
    for part in _parts(vae, x):
        given = conditions_of_rows(vae.conditions, conditions or {}, done, done + len(part))
        scores = vae.score(part, conditions=given, k=k, seed=seed, start=done)
        column = scores.elbo if k is None else scores.log_likelihood
        if column is None:
            raise InputError(f"{vae.bundle.path}: expected a bundle that has an ELBO: {scores.reason}")
        columns.append(column)
        done += len(part)
        if progress is not None:
            progress(done)
    found = np.concatenate(columns) if columns else np.empty(0)
    if not len(found):
        raise InputError("x: expected at least one observation, got none")
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise InputError(
            f"x[{wrong[0]}]: expected finite scores, got {found[wrong[0]]} there, and {len(wrong)} like it in all; "
            "leave such observations out"
        )
    shares, values = quantiles(found)
    return HeldOut(
        kind="elbo" if k is None else "log_likelihood",
        k=k,
        seed=seed,
        n=len(found),
        data=data,
        encoder=vae.variants["encoder"],
        decoder=vae.variants["decoder"],
        shares=shares,
        values=values,
    )


def _parts(vae: VAE, x: ArrayLike | str | os.PathLike[str]) -> Iterator[NDArray[Any]]:
    if isinstance(x, (str, os.PathLike)):
        observation = vae.manifest.observation
        yield from open_rows(x, observation.shape, observation.dtype).parts(_ROWS)
        return
    yield np.asarray(x)
