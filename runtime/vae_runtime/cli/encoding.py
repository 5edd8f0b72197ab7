"""The verbs `encode`, `reconstruct` and `score`: what starts from observations."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from ..errors import InputError, one_line
from .arrays import read_npy, write_npy, write_npz, write_observations, write_scores
from .options import conditions_of, load_vae, require_png, require_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..score import Scores

__all__: list[str] = []


def _encode(options: argparse.Namespace) -> None:
    from ..posterior import Posterior, Posteriors

    start = require_seed(options)
    vae = load_vae(options)
    several = len(vae.latents) > 1
    if several and options.out.suffix != ".npz":
        raise InputError(f"{options.out}: a file name ending in .npz is expected, since there are several latents")
    q = vae.encode(
        read_npy(options.x),
        conditions=conditions_of(options, vae),
        seed=options.seed,
        start=start,
        batch_size=options.batch_size,
    )
    parts = dict(q) if isinstance(q, Posteriors) else {vae.latents[0].name: q}
    z = q.mode() if options.seed is None else q.sample(seed=options.seed, start=start)
    if options.out.suffix == ".npz":
        arrays = {}
        for name, part in parts.items():
            fields = ("mean", "std", "logvar") if isinstance(part, Posterior) else ("value",)
            arrays.update({(f"{name}/" if several else "") + field: getattr(part, field) for field in fields})
        if several or options.seed is not None:
            arrays.update(z if several else {vae.latents[0].name: z})
        write_npz(options.out, arrays)
    else:
        assert not isinstance(z, dict)
        write_npy(options.out, z)
    count = len(next(iter(parts.values())).mode())
    if all(isinstance(part, Posterior) for part in parts.values()):
        print(f"{options.out}: posteriors of {count} observations; mean KL {q.kl().mean():.4g} nats")
    else:
        print(f"{options.out}: latents of {count} observations")


def _reconstruct(options: argparse.Namespace) -> None:
    start = require_seed(options)
    require_png(options)
    vae = load_vae(options)
    x = read_npy(options.x)
    r = vae.reconstruct(
        x, conditions=conditions_of(options, vae), seed=options.seed, start=start, batch_size=options.batch_size
    )
    alike = r.shape == x.shape
    if options.out.suffix == ".png" and alike:
        from ..files import write_atomic
        from ..image import pairs, png

        within = vae.manifest.observation.range
        write_atomic(options.out, png(pairs(x, r, columns=options.columns or 10, value_range=within)))
    else:
        write_observations(options.out, r, vae, options.columns)
    error = f"; mean squared error {float(((r - x) ** 2).mean()):.4g}" if alike else ""
    print(f"{options.out}: {len(x)} reconstructions{error}")


def _score(options: argparse.Namespace) -> None:
    from ..noise import new_seed

    start = require_seed(options)
    vae = load_vae(options)
    seed = new_seed() if options.seed is None else options.seed
    terminal = sys.stderr.isatty()

    def progress(done: int, n: int) -> None:
        print(f"\r{done} of {n}", end="\n" if done == n else "", file=sys.stderr, flush=True)

    x = read_npy(options.x)
    scores = vae.score(
        x,
        conditions=conditions_of(options, vae),
        k=options.k,
        seed=seed,
        start=start,
        batch_size=options.batch_size,
        progress=progress if terminal else None,
    )
    columns = _score_columns(scores)
    count = len(x)
    if options.out is not None:
        write_scores(options.out, scores, columns)
    samples = f", {options.k} importance samples" if options.k and "log_likelihood" in columns else ""
    print(f"{options.x}: {count} observations, seed {seed}, start {start}{samples}")
    for name, column in columns.items():
        error = column.std(ddof=min(1, count - 1)) / math.sqrt(count)
        unit = "per value" if name in ("mse", "mae") else "nats"
        print(f"  {name.replace('_', ' '):16}{column.mean():12.6g} ± {error:<10.2g}{unit}")
    if scores.reason:
        print(f"  no ELBO: {one_line(scores.reason)}")


def _score_columns(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Every score that is one number for each observation."""
    names = ("elbo", "reconstruction", "kl", "log_likelihood", "mse", "mae")
    return {name: getattr(scores, name) for name in names if getattr(scores, name) is not None}
