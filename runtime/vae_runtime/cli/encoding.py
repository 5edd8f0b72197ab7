"""The verbs `encode` and `reconstruct`, which start from observations."""

from __future__ import annotations

import argparse

from ..errors import InputError, counted, one_line
from .options import (
    SEED,
    Verbs,
    add_batch_size,
    add_bundle,
    add_columns,
    add_condition,
    add_out,
    add_session,
    add_start,
    add_tile,
    add_verb,
    conditions_of,
    file_name,
    load_vae,
    require_png,
    require_seed,
    tiles_of,
)
from .results import write_npy, write_npz, write_observations


def add_encoding(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    for add in (_add_encode, _add_reconstruct):
        add(verbs)


def _add_encode(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "encode",
        _encode,
        "encode observations: .npz holds the posterior's mean, std and logvar, .npy holds latents; with several "
        "latents, .npz holds LATENT/mean, … and the latents by name",
    )
    add_bundle(verb)
    verb.add_argument("x", type=file_name(".npy"), help="observations [n, ...]")
    verb.add_argument(
        "--seed",
        type=SEED,
        help="return a posterior sample instead of the mean; .npz holds it under the latent's name",
    )
    for add in (add_start, add_condition, add_session, add_batch_size, add_tile):
        add(verb)
    add_out(verb, ".npz", ".npy")


def _encode(options: argparse.Namespace) -> None:
    from ..arrays import read_npy
    from ..posterior import Posterior, Posteriors

    start, tiles = require_seed(options), tiles_of(options)
    vae = load_vae(options)
    several = len(vae.latents) > 1
    if several and options.out.suffix != ".npz":
        raise InputError(f"{options.out}: expected a file name ending in .npz, because the bundle has several latents")
    q = vae.encode(
        read_npy(options.x),
        conditions=conditions_of(options, vae),
        seed=options.seed,
        start=start,
        batch_size=options.batch_size,
        **tiles,
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
    observations = counted(len(next(iter(parts.values())).mode()), "observation")
    if all(isinstance(part, Posterior) for part in parts.values()):
        result = f"posteriors of {observations}; mean KL {q.kl().mean():.4g} nats"
    else:
        result = f"latents of {observations}"
    print(one_line(f"{options.out}: {result}"))


def _add_reconstruct(verbs: Verbs) -> None:
    text = "encode and decode; a PNG shows each observation above its reconstruction"
    verb = add_verb(verbs, "reconstruct", _reconstruct, text)
    add_bundle(verb)
    verb.add_argument("x", type=file_name(".npy"), help="observations [n, ...]")
    verb.add_argument("--seed", type=SEED, help="decode a posterior sample instead of the mean")
    for add in (add_start, add_condition, add_session, add_batch_size, add_tile, add_columns):
        add(verb)
    add_out(verb, ".png", ".npy")


def _reconstruct(options: argparse.Namespace) -> None:
    from ..arrays import read_npy

    start, tiles = require_seed(options), tiles_of(options)
    require_png(options)
    vae = load_vae(options)
    x = read_npy(options.x)
    r = vae.reconstruct(
        x,
        conditions=conditions_of(options, vae),
        seed=options.seed,
        start=start,
        batch_size=options.batch_size,
        **tiles,
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
    print(one_line(f"{options.out}: {counted(len(x), 'reconstruction')}{error}"))
