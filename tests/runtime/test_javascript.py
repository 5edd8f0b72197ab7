"""The numbers that the tests of runtime/js expect are those of this package: runtime/js/test/expected.json.

`python tests/runtime/test_javascript.py` writes them anew.
"""

import json
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise
from vae_runtime.posterior import Posterior

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "runtime" / "js" / "test" / "expected.json"
BUNDLES = "conformance/bundles"
# Bundles of the fixtures of the same names in conftest.py.
OWN = "runtime/js/test/bundles"


def plain(value):
    """Results as the JavaScript tests write them."""
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "data": [float(number) for number in value.ravel()]}
    if isinstance(value, Posterior):
        value = {"mean": value.mean, "std": value.std, "logvar": value.logvar, "kl": value.kl()}
    elif is_dataclass(value):
        value = vars(value)
    if hasattr(value, "items"):
        return {name: plain(part) for name, part in value.items()}
    return value


def array(shape, seed=1, low=None):
    """A small array of two decimals, which JSON holds exactly enough."""
    values = noise.uniform(seed, 0, 1, shape)[0] if low is not None else noise.normal(seed, 0, 1, shape)[0]
    return np.round(values.astype(np.float64), 2)


def calls():
    """Each call: its name, its bundle, the method, and its arguments."""
    grey, black = array((5, 1, 8, 8), low=0), np.round(array((3, 1, 8, 8), low=0))
    six, three = array((4, 6)), array((4, 3))
    yield "scores of a bernoulli", f"{BUNDLES}/digits", "score", [grey], {"k": 7, "seed": 3, "start": 2}
    yield "scores in batches", f"{BUNDLES}/digits", "score", [black], {"k": 5, "seed": 3, "batch_size": 2}
    yield "scores of a gaussian", f"{BUNDLES}/plain", "score", [six], {"k": 3, "seed": -1, "start": 2**40}
    yield "scores without a likelihood", f"{BUNDLES}/mixture", "score", [six], {"seed": 3}
    yield "scores of codes", f"{BUNDLES}/codes", "score", [array((2, 8))], {"seed": 3}
    yield "scores of two latents", f"{BUNDLES}/two-latents", "score", [six], {"k": 4, "seed": 9}
    label = {"label": ["zero", "nine", "four"]}
    yield "scores under a condition", f"{BUNDLES}/conditional", "score", [black], {"seed": 1, "conditions": label}
    yield "scores of levels", f"{OWN}/levels.zip", "score", [three], {"seed": 5, "start": 1}
    yield "scores of a laplace", f"{OWN}/laplace.zip", "score", [three], {"seed": 5, "k": 2}
    counts = np.round(np.abs(4 * three))
    yield "scores of a poisson", f"{OWN}/poisson.zip", "score", [counts], {"seed": 5}
    yield "scores with p-values", f"{OWN}/scored.zip", "score", [4 * three], {}
    yield "scores of another seed", f"{OWN}/scored.zip", "score", [three], {"seed": 5}
    levels, classes = np.rint(255 * array((4, 6), low=0)) / 255, np.rint(6 * array((4, 5), low=0)).astype(np.int64)
    yield "scores of a logistic", f"{BUNDLES}/logistic", "score", [levels], {"k": 3, "seed": 5}
    yield "scores of classes", f"{BUNDLES}/categorical", "score", [classes], {"k": 3, "seed": 5, "start": 2}
    yield "scores row by row", f"{OWN}/rows.zip", "score", [np.abs(three) / 4], {"seed": 5, "k": 3}
    terms = {"seed": 5, "batch_size": 3, "contributions": True}
    yield "contributions to a logistic", f"{BUNDLES}/logistic", "score", [levels], terms
    yield "contributions to classes", f"{BUNDLES}/categorical", "score", [classes], terms | {"k": 2}
    yield "contributions to no likelihood", f"{BUNDLES}/mixture", "score", [six], terms
    for bundle in ("laplace", "poisson"):
        z = np.abs(three) * [1, 50, 2000]
        yield f"draws of a {bundle}", f"{OWN}/{bundle}.zip", "decode", [z], {"seed": 6, "observe": True}
    for bundle in (
        *(f"{BUNDLES}/{name}" for name in ("plain", "digits", "logistic", "categorical")),
        f"{OWN}/rows.zip",
    ):
        yield f"observations of {bundle}", bundle, "sample", [3], {"seed": 8, "observe": True, "start": 3}
    yield "samples of few kinds", f"{BUNDLES}/plain", "sample", [3], {"seed": 8, "temperature": 0.5, "truncation": 1.0}
    yield "samples in batches", f"{BUNDLES}/plain", "sample", [5], {"seed": 8, "batch_size": 2}
    yield "samples of a length", f"{BUNDLES}/dynamic", "sample", [2], {"seed": 8, "latent_shape": [2, 6]}
    yield "samples under a condition", f"{BUNDLES}/conditional", "sample", [3], {"seed": 8, "conditions": label}
    yield "weights in a file", f"{OWN}/weighted.zip", "decode", [three], {}
    yield "every output", f"{BUNDLES}/digits", "decoder_outputs", [array((2, 8))], {}
    yield "a posterior", f"{BUNDLES}/plain", "encode", [six], {}
    yield "posteriors of two latents", f"{BUNDLES}/two-latents", "encode", [six], {}
    yield "posteriors of levels", f"{OWN}/levels.zip", "encode", [three], {"seed": 4}
    yield "a reconstruction", f"{BUNDLES}/plain", "reconstruct", [six], {}
    yield "a reconstruction by a sample", f"{BUNDLES}/plain", "reconstruct", [six], {"seed": 2, "start": 7}
    yield "a reconstruction of two latents", f"{BUNDLES}/two-latents", "reconstruct", [six], {"seed": 2}
    yield "probabilities of classes", f"{BUNDLES}/categorical", "reconstruct", [classes], {}
    yield "a reconstruction row by row", f"{OWN}/rows.zip", "reconstruct", [three], {}
    for spherical in (True, False):
        ends = [array((2, 3), 5), array((2, 3), 6), 4]
        yield f"a path, spherical {spherical}", None, "interpolate", ends, {"spherical": spherical}
    yield "a path to the opposite", None, "interpolate", [array((3,), 5), -array((3,), 5), 3], {}
    yield "a traversal", None, "traverse", [array((2, 3), 5), 4, np.array([-1.0, 0.5])], {}


def answer(bundle, method, arguments, options):
    if bundle is None:
        return plain(getattr(vae_runtime, method)(*arguments, **options))
    # Latents and observations are float32 where they are no classes.
    given = [
        value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for value in arguments
    ]
    return plain(getattr(vae_runtime.load(ROOT / bundle), method)(*given, **options))


def argument(value):
    dtype = {"dtype": "int64"} if isinstance(value, np.ndarray) and value.dtype == np.int64 else {}
    return {**plain(value), **dtype} if dtype else plain(value)


def cases():
    for name, bundle, method, arguments, options in calls():
        yield {
            "name": name,
            "bundle": bundle,
            "method": method,
            "arguments": [argument(value) for value in arguments],
            "options": {key: str(value) if key == "start" else value for key, value in options.items()},
            "expect": answer(bundle, method, arguments, options),
        }


def near(expected, actual):
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(near(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list) and all(isinstance(each, (int, float)) for each in expected + actual):
        return len(expected) == len(actual) and np.allclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True)
    return expected == actual


def test_the_numbers_are_those_of_this_package(external_data):
    stored = json.loads(EXPECTED.read_text(encoding="utf-8"))
    computed = json.loads(json.dumps(list(cases())))
    assert [case["name"] for case in stored] == [case["name"] for case in computed]
    for expected, actual in zip(stored, computed, strict=True):
        assert near(expected, actual), expected["name"]


def test_another_number_is_seen():
    stored = json.loads(EXPECTED.read_text(encoding="utf-8"))[0]["expect"]
    other = json.loads(json.dumps(stored))
    assert near(stored, other)
    other["elbo"]["data"][0] += 0.1
    assert not near(stored, other)


@pytest.mark.parametrize("name", ["rows", "levels", "laplace", "poisson", "weighted", "scored"])
def test_the_bundles_are_sound(name, external_data):
    assert vae_runtime.verify(ROOT / OWN / f"{name}.zip").passed


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in cases())
    EXPECTED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
