"""The verbs `sample`, `decode`, `interpolate` and `traverse`: from latents to observations."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import InputError
from .arrays import read_latents, read_npy, require_latents, require_picture, write_latents, write_observations
from .options import conditions_of, load_vae, require_png, require_seed

__all__: list[str] = []


def _sample(options: argparse.Namespace) -> None:
    from ..noise import new_seed

    if options.latents and os.path.realpath(options.latents) == os.path.realpath(options.out):
        options.misuse("argument --latents: another file than that of --out is expected")
    start = require_seed(options)
    require_png(options)
    vae = load_vae(options)
    if options.latents:
        require_latents(options.latents, vae)
    seed = new_seed() if options.seed is None else options.seed
    if options.out.suffix == ".png":
        require_picture(vae)
    drawn = {
        "seed": seed,
        "start": start,
        "temperature": options.temperature,
        "truncation": options.truncation,
        "latent_shape": options.latent_shape,
    }
    conditions = conditions_of(options, vae)
    x = vae.sample(options.n, conditions=conditions, observe=options.observe, batch_size=options.batch_size, **drawn)
    if options.latents:
        write_latents(options.latents, vae.prior(options.n, **drawn))
    write_observations(options.out, x, vae, options.columns)
    print(f"{options.out}: {options.n} samples, seed {seed}, start {start}, device {vae.device}")


def _decode(options: argparse.Namespace) -> None:
    require_png(options)
    vae = load_vae(options)
    z = read_latents(options.z, vae)
    x = vae.decode(z, conditions=conditions_of(options, vae), batch_size=options.batch_size)
    write_observations(options.out, x, vae, options.columns)
    print(f"{options.out}: {len(x)} observations")


def _interpolate(options: argparse.Namespace) -> None:
    from ..latent_walks import interpolate

    vae = load_vae(options)
    conditions = conditions_of(options, vae)
    if options.seeds:
        a, b = (_first(vae.prior(1, seed=seed)) for seed in options.seeds)
    else:
        x = read_npy(options.inputs)
        if len(x) < 2:
            raise InputError(f"{options.inputs}: two observations are expected, got an array {list(x.shape)}")
        z = vae.encode(x[:2], conditions=conditions).mode()
        a, b = _first(z), _first(z, 1)
    spherical = not options.linear
    way = {name: interpolate(a[name], b[name], options.steps, spherical=spherical) for name in a}
    frames = vae.decode(way if len(vae.latents) > 1 else way[""], conditions=conditions)
    write_observations(options.out, frames, vae, options.steps)
    print(f"{options.out}: {options.steps} steps")


def _first(z: Any, row: int = 0) -> dict[str, Any]:
    """One row of latents, by name; the only latent's name is left empty."""
    return {name: each[row] for name, each in (z if isinstance(z, dict) else {"": z}).items()}


def _traverse(options: argparse.Namespace) -> None:
    import numpy as np

    from ..latent_walks import traverse

    vae = load_vae(options)
    names = [latent.name for latent in vae.latents]
    if options.latent is not None and options.latent not in names:
        raise InputError(f"--latent: one of {', '.join(names)} is expected, got {options.latent!r}")
    conditions = conditions_of(options, vae)
    if options.inputs is None:
        base = _first(vae.prior(1, seed=options.seed))
    else:
        x = read_npy(options.inputs)
        if x.ndim < 1 or not len(x):
            raise InputError(f"{options.inputs}: an observation is expected, got an array {list(x.shape)}")
        base = _first(vae.encode(x[:1], conditions=conditions).mode())
    several = len(names) > 1
    changed = (options.latent or names[0]) if several else ""
    if changed not in base:
        raise InputError(f"--latent: a latent that observations have is expected, {changed} is noise; choose another")
    dimensions = options.dimensions or range(min(16, base[changed].size))
    values = np.linspace(-options.reach, options.reach, options.steps, dtype=np.float32)
    z = {name: np.repeat(each[None], len(dimensions) * options.steps, axis=0) for name, each in base.items()}
    z[changed] = np.concatenate([traverse(base[changed], dimension, values) for dimension in dimensions])
    frames = vae.decode(z if several else z[""], conditions=conditions)
    if options.out.suffix == ".npy":
        frames = frames.reshape(len(dimensions), options.steps, *frames.shape[1:])
    write_observations(options.out, frames, vae, options.steps)
    print(f"{options.out}: {len(dimensions)} dimensions, {options.steps} steps from {-options.reach:g}")
