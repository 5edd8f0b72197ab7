"""The quantiles of held-out scores, as a manifest keeps them, and the p-values of other scores among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .fields import TEXT, Choice, Integer, List, Number, Problem, Struct
from .records import Record, field, record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_QUANTILES = 1024
# The lowest scores are all kept; above them come quantiles at these shares.
_LOWEST = 20
_SHARES = tuple(step * 10.0**-digits for digits in (4, 3, 2) for step in range(1, 10)) + tuple(
    step / 100 for step in range(10, 101)
)


@record(frozen=True, kw_only=True)
class HeldOut(Record):
    """Quantiles of the scores of `n` observations that a model was not trained on.

    `kind` names the score: "elbo", or "log_likelihood" with `k` importance samples. `seed`, of vnoise-1, drew the
    samples, from index 0; `encoder` and `decoder` name the variants that computed. `data` says in words which
    observations they are. The share `shares[i]` of the scores is at or below `values[i]`.
    """

    kind: str = field(Choice("elbo", "log_likelihood", open=True))
    k: int | None = field(Integer(1, 10**6), default=None, required=("log_likelihood",))
    seed: int = field(Integer(0, 2**53 - 1))
    n: int = field(Integer(1, 2**53 - 1))
    data: str = field(TEXT)
    encoder: str = field(TEXT)
    decoder: str = field(TEXT)
    shares: tuple[float, ...] = field(
        List(Number("a positive number", above=0), f"a list of 1 to {MAX_QUANTILES} shares", min=1, max=MAX_QUANTILES)
    )
    values: tuple[float, ...] = field(
        List(Number(), f"a list of 1 to {MAX_QUANTILES} scores", min=1, max=MAX_QUANTILES)
    )


HELD_OUT = Struct(HeldOut, name="held_out")


def problems_of(place: str, held_out: HeldOut) -> list[Problem]:
    """The problems of quantiles whose fields are valid by themselves."""
    shares, values = held_out.shares, held_out.values
    found = []
    if len(values) != len(shares):
        found.append(Problem(f"{place}.values", f"one for each of {len(shares)} shares", str(len(values))))
    if shares[-1] != 1 or any(one >= other for one, other in itertools.pairwise(shares)):
        found.append(Problem(f"{place}.shares", "shares that rise up to 1", f"{shares[0]!r}, …, {shares[-1]!r}"))
    falls = [index for index, (one, other) in enumerate(itertools.pairwise(values)) if other < one]
    if falls:
        got = f"{values[falls[0]]!r} before {values[falls[0] + 1]!r}"
        found.append(Problem(f"{place}.values", "scores that do not fall", got))
    return found


def quantiles(scores: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The shares and the values of scores: the lowest ones, then quantiles that are dense where scores are low.

    Each value is one of the scores, and its share is exact.

    Args:
        scores: float64 [n], finite.
    """
    import numpy as np

    n, ordered = len(scores), np.sort(scores)
    ranks = {*range(1, min(n, _LOWEST) + 1), *(int(np.ceil(share * n)) for share in _SHARES), n}
    # Equal scores have one share, that of the last.
    last = {float(ordered[rank - 1]): int(np.searchsorted(ordered, ordered[rank - 1], "right")) for rank in ranks}
    values = sorted(last)
    return tuple(last[value] / n for value in values), tuple(values)


def p_values(held_out: HeldOut, scores: Any) -> Floats:
    """The p-value of each score: (1 + n · F) / (n + 1), where F is the share of the held-out scores at or below it.

    Between two quantiles F is interpolated. A share of about p of observations like the held-out ones has a p-value of
    at most p (Vovk et al., "Algorithmic Learning in a Random World", conformal p-values). A score that is no number
    counts as lower than all others.

    Args:
        held_out: the quantiles.
        scores: float64 [n].

    Returns:
        float64 [n], from 1 / (n + 1) to 1.
    """
    import numpy as np

    values, shares = np.array(held_out.values), np.array(held_out.shares)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    above = np.searchsorted(values, scores, side="right")
    after, before = np.minimum(above, len(values) - 1), np.maximum(above - 1, 0)
    width = values[after] - values[before]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where((above == 0) | (width == 0), 0.0, (scores - values[before]) / width)
    share = shares[before] + (shares[after] - shares[before]) * part
    share[above == 0] = 0.0
    share[above == len(values)] = 1.0
    p: Floats = (1 + held_out.n * share) / (held_out.n + 1)
    return p


def why_no_p_value(held_out: HeldOut | None, variants: Mapping[str, str], k: int | None, seed: int) -> str | None:
    """Why scores cannot be compared with the held-out ones; None where they can be.

    Args:
        held_out: the quantiles, if the bundle has any.
        variants: those in use, by component.
        k: the number of importance samples, if any.
        seed: of the posterior's samples.
    """
    if held_out is None:
        return "the bundle has no held-out scores; add some with `vae-runtime calibrate`"
    own = {"encoder": held_out.encoder, "decoder": held_out.decoder}
    for component, variant in variants.items():
        if variant != own[component]:
            in_use = f"of the {component}'s variant {own[component]}, in use is {variant}"
            return f"the held-out scores are {in_use}; calibrate the bundle with this variant"
    if held_out.kind == "log_likelihood" and k != held_out.k:
        return f"the held-out scores are log-likelihoods with k={held_out.k}, got k={k}; give k={held_out.k}"
    if seed != held_out.seed:
        return f"the held-out scores were drawn with seed={held_out.seed}, got seed={seed}; leave the seed out"
    return None
