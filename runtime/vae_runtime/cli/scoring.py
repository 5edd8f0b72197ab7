"""The verbs `score` and `calibrate`: how likely observations are under a model."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import counted, one_line
from .options import (
    SEED,
    Verbs,
    add_batch_size,
    add_bundle,
    add_condition,
    add_device,
    add_session,
    add_source,
    add_start,
    add_variant,
    add_verb,
    conditions_of,
    file_name,
    integer,
    load_vae,
    number,
    require_seed,
)

if TYPE_CHECKING:
    from ..scoring import Summary

# Seconds between lines where stderr is no terminal.
_SECONDS = 30.0
_ROWS = (".npy", ".csv", ".parquet")
_TABLES = (".npz", ".npy", ".csv", ".jsonl", ".parquet")


def add_scoring(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    for add in (_add_score, add_calibrate):
        add(verbs)


def _add_score(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "score",
        _score,
        "score observations: ELBO and log-likelihood in nats, errors, and p-values where the bundle has held-out "
        "scores; a file of any length is read part by part, and the same command goes on after an interruption",
    )
    add_bundle(verb)
    verb.add_argument("x", type=file_name(*_ROWS), help="observations [n, ...]: .npy, .csv or .parquet")
    verb.add_argument(
        "-k",
        type=integer("k", 1, 10**6),
        help="importance samples of the log-likelihood (default: those of the held-out scores, or no log-likelihood)",
    )
    verb.add_argument("--seed", type=SEED, help="default: that of the held-out scores, or a new one, which is printed")
    for add in (add_start, add_condition, add_session, add_batch_size):
        add(verb)
    verb.add_argument(
        "--out",
        type=file_name(*_TABLES),
        help="also write the scores of each observation with its number: .npz, .npy, .csv, .jsonl or .parquet",
    )
    verb.add_argument(
        "--threshold",
        type=number("threshold", 0, 1),
        metavar="P",
        help="count observations whose p-value is at most P: about this share of data like the held-out ones",
    )
    verb.add_argument("--only-anomalies", action="store_true", help="write only these observations; needs --threshold")
    text = "also write each value's term of the reconstruction term, float32 [n, ...]: .npy"
    verb.add_argument("--contributions", type=file_name(".npy"), metavar="FILE", help=text)
    text = "also show the 8 observations with the lowest scores, each beside its reconstruction and its loss: .png"
    verb.add_argument("--picture", type=file_name(".png"), metavar="FILE", help=text)


def _score(options: argparse.Namespace) -> None:
    start = require_seed(options)
    if options.only_anomalies and options.threshold is None:
        options.misuse("argument --only-anomalies: allowed only with --threshold")
    if options.only_anomalies and options.out is None and options.contributions is None:
        options.misuse("argument --only-anomalies: allowed only with --out or --contributions")
    vae = load_vae(options)
    from ..row_files import open_rows
    from ..scoring import Request, score_rows

    if options.picture is not None:
        from ..image import require_pillow
        from .results import require_picture

        require_pillow()
        require_picture(vae)
    held_out, observation = vae.manifest.scores, vae.manifest.observation
    k = options.k or (held_out.k if held_out else None)
    request = Request(
        conditions=conditions_of(options, vae),
        k=k,
        seed=options.seed,
        start=start,
        batch_size=options.batch_size,
        out=options.out,
        contributions=options.contributions,
        picture=options.picture,
        threshold=options.threshold,
        only_anomalies=options.only_anomalies,
    )
    file = open_rows(options.x, observation.shape, observation.dtype)
    progress = _Progress()
    summary = score_rows(vae, file, request, progress)
    progress.end()
    drawn = f", {counted(k, 'importance sample')}" if k and "log_likelihood" in summary.means else ""
    print(one_line(f"{options.x}: {counted(summary.rows, 'observation')}, seed {summary.seed}, start {start}{drawn}"))
    _print_summary(summary, options.threshold)
    if held_out is not None and summary.p_value_reason and not summary.reason:
        print(one_line(f"  no p-values: {summary.p_value_reason}"))


def _print_summary(summary: Summary, threshold: float | None) -> None:
    from ..score import PER_VALUE

    for name, (mean, error) in summary.means.items():
        unit = "per value" if name in PER_VALUE else "" if name == "p_value" else "nats"
        print(f"  {name.replace('_', ' '):16}{mean:12.6g} ± {error:<10.2g}{unit}".rstrip())
    if threshold is not None:
        share = 100 * summary.anomalies / summary.rows
        have = "has" if summary.anomalies == 1 else "have"
        print(f"  {summary.anomalies} of {summary.rows} ({share:.3g} %) {have} a p-value of at most {threshold:g}")
    if summary.reason:
        print(f"  no ELBO: {one_line(summary.reason)}")


class _Progress:
    """Says on stderr how many observations are done: in one line of a terminal, or else in a line each half minute."""

    def __init__(self) -> None:
        self._is_seen, self._said = sys.stderr.isatty(), time.monotonic()

    def __call__(self, done: int) -> None:
        if self._is_seen:
            print(f"\r{counted(done, 'observation')}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said >= _SECONDS:
            self._said = time.monotonic()
            print(f"{counted(done, 'observation')}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line of a terminal."""
        if self._is_seen:
            print(file=sys.stderr)


def add_calibrate(verbs: Verbs) -> None:
    """Add the verb `calibrate`, which vae-export has, too."""
    verb = add_verb(
        verbs,
        "calibrate",
        _calibrate,
        "score held-out observations, and write the quantiles into the bundle, so that `score` gives p-values",
    )
    add_source(verb)
    text = "observations like those to judge, which the model was not trained on: .npy, .csv or .parquet"
    verb.add_argument("x", type=file_name(*_ROWS), help=text)
    text = "importance samples: quantiles of the log-likelihood (default: of the ELBO)"
    verb.add_argument("-k", type=integer("k", 1, 10**6), help=text)
    verb.add_argument("--seed", type=integer("seed", 0, 2**53 - 1), default=0, help="default 0")
    for add in (add_condition, add_device, add_variant):
        add(verb)
    verb.add_argument("--data", metavar="TEXT", help="what the observations are (default: the name of the file)")
    text = "where to write the bundle, a folder or a .zip file (default: it replaces the one that is read)"
    verb.add_argument("--out", type=Path, metavar="BUNDLE", help=text)
    verb.add_argument("--force", action="store_true", help="replace another bundle at --out")


def _calibrate(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle
    from ..calibration import calibrate

    source = open_bundle(options.bundle, options.digest)
    signed = source.files.signature() is not None
    progress = _Progress()
    digest = calibrate(
        options.bundle,
        options.x,
        data=options.data,
        conditions=conditions_of(options, source.manifest),
        k=options.k,
        seed=options.seed,
        variant=options.variant,
        device=options.device,
        out=options.out,
        force=options.force,
        digest=options.digest,
        progress=progress,
    )
    progress.end()
    target = options.out or options.bundle
    held_out = open_bundle(target).manifest.scores
    if held_out is not None:
        what = "ELBO" if held_out.kind == "elbo" else f"log-likelihood with {counted(held_out.k or 0, 'sample')}"
        lowest, highest = held_out.values[0], held_out.values[-1]
        print(one_line(f"{target}: {what} of {counted(held_out.n, 'observation')}, {lowest:.6g} … {highest:.6g} nats"))
        print(one_line(f"{target}: no p-value is below {1 / (held_out.n + 1):.3g}, 1 / ({held_out.n} + 1)"))
    print(one_line(f"{target}: {digest}"))
    if signed:
        words = f"{target}: has no signature; that of {options.bundle} was of other scores: sign it"
        print(one_line(words), file=sys.stderr)
