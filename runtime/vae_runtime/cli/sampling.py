"""The verbs `sample`, `decode`, `interpolate` and `traverse`: from latents to observations."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, counted, one_line, require_integer
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
    add_temperature,
    add_tile,
    add_truncation,
    add_verb,
    conditions_of,
    file_name,
    integer,
    integers,
    load_vae,
    number,
    require_png,
    require_seed,
    tiles_of,
)
from .results import require_form, write_npy, write_npz, write_observations

if TYPE_CHECKING:
    from ..vae import VAE


def add_sampling(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    for add in (_add_sample, _add_decode, _add_interpolate, _add_traverse):
        add(verbs)


def _add_sample(verbs: Verbs) -> None:
    verb = add_verb(verbs, "sample", _sample, "draw from the prior and decode, to a PNG sheet, an array or a CSV table")
    add_bundle(verb)
    verb.add_argument("-n", type=integer("n", 1, 2**48), default=64, help="number of samples (default 64)")
    verb.add_argument("--seed", type=SEED, help="default: a new seed, which is printed")
    for add in (add_start, add_temperature, add_truncation):
        add(verb)
    verb.add_argument(
        "--latent-shape",
        type=integers("latent-shape", 1, 2**31),
        metavar="SIZES",
        help="another shape for a latent with dynamic axes, such as 4,16,16",
    )
    verb.add_argument("--observe", action="store_true", help="draw from the likelihood instead of returning its mean")
    verb.add_argument(
        "--latents",
        type=file_name(".npy", ".npz"),
        help="also write the latents: .npy, or .npz for several latents",
    )
    for add in (add_condition, add_session, add_batch_size, add_tile, add_columns):
        add(verb)
    add_out(verb, ".png", ".npy", ".csv")


def _sample(options: argparse.Namespace) -> None:
    from ..noise import new_seed

    if options.latents and os.path.realpath(options.latents) == os.path.realpath(options.out):
        options.misuse("argument --latents: expected a file other than that of --out")
    start, tiles = require_seed(options), tiles_of(options)
    require_png(options)
    vae = load_vae(options)
    if options.latents:
        _require_latents(options.latents, vae)
    seed = new_seed() if options.seed is None else options.seed
    require_form(options.out, vae)
    _require_few(options, vae)
    drawn = {
        "seed": seed,
        "start": start,
        "temperature": options.temperature,
        "truncation": options.truncation,
        "latent_shape": options.latent_shape,
    }
    conditions = conditions_of(options, vae)
    z = vae.prior(options.n, **drawn) if options.latents else None
    x = vae.sample(
        options.n,
        conditions=conditions,
        observe=options.observe,
        batch_size=options.batch_size,
        **tiles,
        **drawn,
    )
    if options.latents:
        _write_latents(options.latents, z)
    write_observations(options.out, x, vae, options.columns)
    samples = counted(options.n, "sample")
    print(one_line(f"{options.out}: {samples}, seed {seed}, start {start}, device {vae.device}"))


# Pictures in a sheet, and numbers in a file, that take about a minute.
_MAX_PICTURES, _MANY = 10_000, 2**28


def _require_few(options: argparse.Namespace, vae: VAE) -> None:
    """Refuse a sheet of too many pictures, and say what a call for many samples lacks."""
    if options.out.suffix == ".png" and options.n > _MAX_PICTURES:
        raise InputError(
            f"n: expected at most {_MAX_PICTURES} pictures in a PNG sheet, got {options.n}; "
            "write fewer, or use `vae-runtime generate`"
        )
    # Whoever waits at a terminal.
    if options.n * math.prod(vae.manifest.observation.shape) >= _MANY and sys.stderr.isatty():
        text = "one call without progress, which starts anew after an interruption; `vae-runtime generate` does better"
        print(one_line(f"{options.out}: {counted(options.n, 'sample')} in {text}"), file=sys.stderr)


def _require_latents(path: Path, vae: VAE) -> None:
    """Refuse an ending that does not fit the number of latents: .npz for several, .npy for one."""
    suffix = ".npz" if len(vae.latents) > 1 else ".npy"
    if path.suffix != suffix:
        count = "several latents" if suffix == ".npz" else "one latent"
        raise InputError(f"{path}: expected a file name ending in {suffix}, because the bundle has {count}")


def _write_latents(path: Path, z: Any) -> None:
    """Write one latent as .npy, several as .npz."""
    if isinstance(z, dict):
        write_npz(path, z)
    else:
        write_npy(path, z)


def _add_decode(verbs: Verbs) -> None:
    verb = add_verb(verbs, "decode", _decode, "decode latents, to a PNG sheet, an array or a CSV table")
    add_bundle(verb)
    verb.add_argument(
        "z", type=file_name(".npy", ".npz"), help="latents [n, ...]; several latents by name in an .npz file"
    )
    for add in (add_condition, add_session, add_batch_size, add_tile, add_columns):
        add(verb)
    add_out(verb, ".png", ".npy", ".csv")


def _decode(options: argparse.Namespace) -> None:
    tiles = tiles_of(options)
    require_png(options)
    vae = load_vae(options)
    if options.out.suffix == ".csv":
        require_form(options.out, vae)
    z = _read_latents(options.z, vae)
    conditions = conditions_of(options, vae)
    x = vae.decode(z, conditions=conditions, batch_size=options.batch_size, **tiles)
    write_observations(options.out, x, vae, options.columns)
    print(one_line(f"{options.out}: {counted(len(x), 'observation')}"))


def _read_latents(path: Path, vae: VAE) -> Any:
    """Read latents for `decode`: one array, or the arrays of an .npz file that are named like latents."""
    from ..arrays import read_npy, read_npz

    _require_latents(path, vae)
    return read_npy(path) if path.suffix == ".npy" else read_npz(path, [latent.name for latent in vae.latents])


def _add_interpolate(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "interpolate", _interpolate, "interpolate between the latents of two seeds or of two observations"
    )
    add_bundle(verb)
    ends = verb.add_mutually_exclusive_group(required=True)
    ends.add_argument("--seeds", type=SEED, nargs=2, metavar=("A", "B"), help="between sample 0 of each seed")
    ends.add_argument("--inputs", type=file_name(".npy"), help="between the first two observations of a file")
    verb.add_argument(
        "--steps",
        type=integer("steps", 2, 10**6),
        default=10,
        help="number of pictures, both ends included (default 10)",
    )
    verb.add_argument("--linear", action="store_true", help="interpolate on a straight line instead of on the sphere")
    for add in (add_condition, add_session):
        add(verb)
    add_out(verb, ".png", ".npy")


def _interpolate(options: argparse.Namespace) -> None:
    from ..arrays import read_npy
    from ..latent_walks import interpolate

    vae = load_vae(options)
    conditions = conditions_of(options, vae)
    if options.seeds:
        a, b = (_first(vae.prior(1, seed=seed)) for seed in options.seeds)
    else:
        x = read_npy(options.inputs)
        if len(x) < 2:
            raise InputError(f"{options.inputs}: expected two observations, got an array {list(x.shape)}")
        z = vae.encode(x[:2], conditions=conditions).mode()
        a, b = _first(z), _first(z, 1)
    spherical = not options.linear
    paths = {name: interpolate(a[name], b[name], options.steps, spherical=spherical) for name in a}
    frames = vae.decode(paths if len(vae.latents) > 1 else paths[""], conditions=conditions)
    write_observations(options.out, frames, vae, options.steps)
    print(one_line(f"{options.out}: {options.steps} steps"))


def _first(z: Any, row: int = 0) -> dict[str, Any]:
    """Return one row of latents by name; a single latent has the name ""."""
    return {name: each[row] for name, each in (z if isinstance(z, dict) else {"": z}).items()}


def _add_traverse(verbs: Verbs) -> None:
    verb = add_verb(verbs, "traverse", _traverse, "change one number of a latent at a time; a PNG has a row per number")
    add_bundle(verb)
    base = verb.add_mutually_exclusive_group(required=True)
    base.add_argument("--seed", type=SEED, help="start from sample 0 of this seed")
    base.add_argument(
        "--inputs", type=file_name(".npy"), help="start from the posterior mean of the first observation of a file"
    )
    verb.add_argument("--latent", help="the latent to change (default: the first)")
    verb.add_argument(
        "--dimensions",
        type=integers("dimensions", 0, 2**31),
        metavar="NUMBERS",
        help="the numbers to change, such as 0,1,2 (default: the first 16, or all if there are fewer)",
    )
    verb.add_argument(
        "--reach",
        type=number("reach", 1e-6, 1e6),
        default=3.0,
        help="change each number from -REACH to REACH (default 3)",
    )
    verb.add_argument("--steps", type=integer("steps", 2, 10**4), default=9, help="number of steps (default 9)")
    for add in (add_condition, add_session):
        add(verb)
    add_out(verb, ".png", ".npy")


def _traverse(options: argparse.Namespace) -> None:
    import numpy as np

    from ..arrays import read_npy
    from ..latent_walks import traverse

    vae = load_vae(options)
    names = [latent.name for latent in vae.latents]
    if options.latent is not None and options.latent not in names:
        raise InputError(f"--latent: expected one of {', '.join(names)}, got {options.latent!r}")
    conditions = conditions_of(options, vae)
    if options.inputs is None:
        base = _first(vae.prior(1, seed=options.seed))
    else:
        x = read_npy(options.inputs)
        if x.ndim < 1 or not len(x):
            raise InputError(f"{options.inputs}: expected an observation, got an array {list(x.shape)}")
        base = _first(vae.encode(x[:1], conditions=conditions).mode())
    several = len(names) > 1
    changed = (options.latent or names[0]) if several else ""
    if changed not in base:
        raise InputError(
            f"--latent: expected a latent that the encoder returns, got {changed}, which is noise; choose another"
        )
    dimensions = options.dimensions or range(min(16, base[changed].size))
    for dimension in dimensions:
        require_integer("dimensions", dimension, 0, base[changed].size - 1)
    values = np.linspace(-options.reach, options.reach, options.steps, dtype=np.float32)
    z = {name: np.repeat(each[None], len(dimensions) * options.steps, axis=0) for name, each in base.items()}
    z[changed] = np.concatenate([traverse(base[changed], dimension, values) for dimension in dimensions])
    frames = vae.decode(z if several else z[""], conditions=conditions)
    if options.out.suffix == ".npy":
        frames = frames.reshape(len(dimensions), options.steps, *frames.shape[1:])
    write_observations(options.out, frames, vae, options.steps)
    changes = counted(len(dimensions), "dimension")
    print(one_line(f"{options.out}: {changes}, {options.steps} steps from {-options.reach:g}"))
