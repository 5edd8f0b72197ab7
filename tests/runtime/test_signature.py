"""VAEs of other forms than one normal latent: conditions, several latents, codes, noise, dynamic axes."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.recfunctions import repack_fields

import vae_runtime
from vae_runtime import BundleError, Encoding, InputError, Posteriors, interpolate, noise, traverse
from vae_runtime.cli import main as cli
from vae_runtime.document import dump
from vae_runtime.manifest import (
    Condition,
    Golden,
    Latent,
    LatentPosterior,
    LatentPrior,
    Likelihood,
    Manifest,
    Observation,
    Output,
    Sizes,
    Variant,
)
from vae_runtime.places import SUMS, format_sums

CLASSES = ("one", "two", "three")
TABLE = np.float32([[10, 0, 0], [0, 20, 0], [0, 0, 30]])
MIX = np.float32([[1, 2, 3], [4, 5, 6]])
NORMAL = LatentPosterior(mu="mu", logvar="logvar", std="std")
ROWS = ["batch", 3]


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


@pytest.fixture
def written(onnx_bytes, tmp_path):
    """Write a bundle of two graphs, each (nodes, inputs, outputs, tensors) of the byte writer, and of a signature."""

    def write(encoder, decoder, **signature):
        folder, files, variants = tmp_path / "form", {"golden.npz": b""}, {}
        for component, graph in (("encoder", encoder), ("decoder", decoder)):
            files[f"{component}/fp32/model.onnx"] = onnx_bytes.model(*graph)
        manifest = Manifest(
            package_name="form", name="form", golden=Golden("golden.npz", 0, 2), encoder={}, decoder={}, **signature
        )
        for component in ("encoder", "decoder"):
            numbers = dict.fromkeys((output.name for output in manifest.outputs(component)), 0.0)
            variants[component] = {
                "fp32": Variant(
                    component, "fp32", f"{component}/fp32", "model.onnx", "ort", "float32", numbers, numbers
                )
            }
        manifest = Manifest(**(vars(manifest) | variants))
        files["manifest.json"] = dump(manifest).encode()
        for relative, content in files.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_bytes(content)
        (folder / SUMS).write_bytes(format_sums(files.items()))
        return folder

    return write


def normal_nodes(o, x="x", end=""):
    """Nodes and a tensor for mu = x, logvar = -x, std = exp(-x / 2)."""
    return [
        o.node("Identity", [x], [f"mu{end}"]),
        o.node("Neg", [x], [f"logvar{end}"]),
        o.node("Mul", [f"logvar{end}", "half"], [f"exponent{end}"]),
        o.node("Exp", [f"exponent{end}"], [f"std{end}"]),
    ]


def integers(o, name, values):
    content = np.asarray(values, "<i8")
    return o.field(1, *content.shape) + o.field(2, 7) + o.field(8, name) + o.field(9, content.tobytes())


@pytest.fixture
def conditional_folder(written, onnx_bytes):
    """mu = x + TABLE[label]; x = z + TABLE[label] + weight @ MIX, where only the decoder takes weight."""
    o = onnx_bytes
    table, label = o.tensor("table", TABLE), o.value("label", ["batch"], 7)
    named = [o.node("Gather", ["table", "label"], ["named"])]
    return written(
        (
            [*named, o.node("Add", ["x", "named"], ["shifted"]), *normal_nodes(o, "shifted")],
            [o.value("x", ROWS), label],
            [o.value(name, ROWS) for name in ("mu", "logvar", "std")],
            [table, o.tensor("half", [0.5])],
        ),
        (
            [
                *named,
                o.node("MatMul", ["weight", "mix"], ["mixed"]),
                o.node("Add", ["z", "named"], ["part"]),
                o.node("Add", ["part", "mixed"], ["y"]),
                o.node("Exp", ["z"], ["sigma"]),
            ],
            [o.value("z", ROWS), label, o.value("weight", ["batch", 2])],
            [o.value("y", ROWS), o.value("sigma", ROWS)],
            [table, o.tensor("mix", MIX)],
        ),
        observation=Observation("x", (3,), ("feature",)),
        latents=(Latent("z", (3,), NORMAL),),
        likelihood=Likelihood("gaussian", "y", scale_output="sigma"),
        conditions=(
            Condition("label", (), "int64", classes=CLASSES),
            Condition("weight", (2,), range=(0, 1), components=("decoder",)),
        ),
    )


@pytest.fixture
def conditional(conditional_folder):
    return vae_runtime.load(conditional_folder)


WEIGHT = np.float32([0.5, 0.25])


# Conditions.


def test_a_condition_for_each_row_or_for_all(conditional):
    z = conditional.prior(3, seed=1)
    every = np.repeat(WEIGHT[None], 3, axis=0)
    for labels in (
        [2, 0, 1],
        np.array([2, 0, 1], np.uint8),
        ["three", "one", "two"],
        np.array(["three", "one", "two"]),
    ):
        found = conditional.decode(z, conditions={"label": labels, "weight": every})
        np.testing.assert_allclose(found, z + TABLE[[2, 0, 1]] + every @ MIX, rtol=1e-6)
    for label in (1, "two", np.int64(1), np.array(1, np.int16), np.str_("two"), True, np.array([True, True, True])):
        for weight in (WEIGHT, [0.5, 0.25], (0.5, 0.25)):
            found = conditional.decode(z, conditions={"label": label, "weight": weight})
            np.testing.assert_allclose(found, z + TABLE[1] + WEIGHT @ MIX, rtol=1e-6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2), min_size=1), st.data())
def test_conditions_go_with_their_rows_in_batches_of_any_size(conditional, seed, start, labels, data):
    n, size = len(labels), data.draw(st.integers(1, len(labels) + 1))
    weights = noise.uniform(0, 0, n, (2,))
    given_ = {"label": labels, "weight": weights}
    whole = conditional.sample(n, seed=seed, start=start, conditions=given_)
    found = conditional.sample(n, seed=seed, start=start, conditions=given_, batch_size=size)
    np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-6)
    wanted = conditional.prior(n, seed=seed, start=start) + TABLE[labels] + weights @ MIX
    np.testing.assert_allclose(whole, wanted, rtol=1e-5, atol=1e-5)


def test_each_component_takes_its_own_conditions(conditional):
    x = noise.normal(1, 0, 4, (3,))
    q = conditional.encode(x, conditions={"label": "one"})
    np.testing.assert_allclose(q.mean, x + TABLE[0], rtol=1e-6)
    both = {"label": "one", "weight": WEIGHT}
    same(conditional.encode(x, conditions=both).mean, q.mean)
    np.testing.assert_allclose(conditional.reconstruct(x, conditions=both), x + 2 * TABLE[0] + WEIGHT @ MIX, rtol=1e-5)
    np.testing.assert_allclose(
        conditional.inverse_transform(conditional.transform(x, both), both),
        conditional.reconstruct(x, conditions=both),
        rtol=1e-5,
    )
    assert conditional.score(x, conditions=both, k=3, seed=0).elbo.shape == (4,)
    with pytest.raises(InputError, match=r"expected 'weight' \(float32, shape \[2\]\), got nothing"):
        conditional.score(x, conditions={"label": 0})


@pytest.mark.parametrize(
    ("conditions", "match"),
    [
        (None, r"^conditions: expected 'label' \(one of its 3 classes, shape \[\]\), got nothing; give"),
        ({"label": 0}, r"^conditions: expected 'weight' \(float32, shape \[2\]\), got nothing"),
        ({"label": 0, "weight": WEIGHT, "w": 1}, "^conditions: expected one of label, weight, got 'w'"),
        ({"label": 0, "weight": WEIGHT, 3: 1}, "^conditions: expected one of label, weight, got 3"),
        (5, "^conditions: expected a mapping from names to values, got int"),
        ({"label": 3}, r"^label: expected values from 0 to 2, got 3"),
        ({"label": [0, -1]}, r"^label\[1\]: expected values from 0 to 2, got -1"),
        ({"label": "four"}, "^label: expected one of the classes one, two, three, got 'four'"),
        ({"label": ["one", "four"]}, "^label: expected one of the classes .* got 'four'"),
        ({"label": 1.0}, r"^label: expected int64 \[2\] or one value, of the classes .* got dtype float64"),
        ({"label": 0, "weight": [True, False]}, "^weight: .* got dtype bool; convert with"),
        ({"label": None}, "^label: .* got dtype object"),
        ({"label": np.uint64(2**63)}, "^label: .* got dtype uint64"),
        ({"label": [0, 1, 2]}, r"^label: expected int64 \[2\] or one value.* got \[3\]"),
        ({"label": [[0, 1]]}, r"^label: .* got \[1, 2\]"),
        ({"label": []}, "^label: .* got "),
        (
            {"weight": WEIGHT.astype(np.int64)},
            r"^weight: expected float32 \[2, 2\] or one value of shape \[2\], got dtype int64",
        ),
        ({"weight": [0.5, 1e39]}, r"^weight\[1\]: expected numbers within float32's range of .*, got 1e\+39"),
        ({"weight": 0.5}, r"^weight: .* got \[\]"),
        ({"weight": [0.5, 0.5, 0.5]}, r"^weight: .* got \[3\]"),
        ({"weight": [[0.5, 0.5]]}, r"^weight: .* got \[1, 2\]"),
        ({"weight": [0.5, 1.5]}, r"^weight\[1\]: expected values from 0 to 1, got 1.5; choose another value"),
        ({"weight": [[0.5, 0.5], [np.nan, 0]]}, r"^weight\[1, 0\]: .* got nan"),
        ({"weight": "heavy"}, "^weight: .* got dtype <U5"),
        ({"weight": [[1.0], [1.0, 2.0]]}, "^weight: .* got no array"),
    ],
)
def test_wrong_conditions_are_refused(conditional, conditions, match):
    good = {"label": 0, "weight": WEIGHT}
    if isinstance(conditions, dict) and conditions != {"label": 0}:
        conditions = good | conditions
    z = conditional.prior(2, seed=0)
    conditional.decode(z, conditions=good)
    with pytest.raises(InputError, match=match):
        conditional.decode(z, conditions=conditions)
    with pytest.raises(InputError, match=match):
        conditional.sample(2, conditions=conditions)


def test_a_scale_of_the_decoder_is_drawn_with_and_scored(conditional):
    given_ = {"label": 0, "weight": WEIGHT}
    answers = conditional.decoder_outputs(conditional.prior(8, seed=2), conditions=given_)
    assert sorted(answers) == ["sigma", "y"]
    eps = noise.normal(2, 0, 8, (3,), noise.OBSERVATION)
    for size in (3, 8):
        drawn = conditional.sample(8, seed=2, conditions=given_, observe=True, batch_size=size)
        np.testing.assert_allclose(drawn, answers["y"] + answers["sigma"] * eps, rtol=1e-5, atol=1e-5)
    x = drawn
    s = conditional.score(x, conditions=given_, seed=4)
    z = conditional.encode(x, conditions=given_).sample(seed=4)
    answers = conditional.decoder_outputs(z, conditions=given_)
    sigma = answers["sigma"].astype(np.float64)
    terms = -0.5 * ((x - answers["y"]) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(s.reconstruction, terms.sum(axis=1), rtol=1e-5)


def test_what_a_conditional_vae_says_of_itself(conditional):
    assert [condition.name for condition in conditional.conditions] == ["label", "weight"]
    assert "given label, weight" in repr(conditional)


# Several latents, one drawn on the way to the other, and noise of the decoder.


@pytest.fixture
def levels_folder(written, onnx_bytes):
    """z1 ~ (x, exp(-x)), z2 ~ (z1, exp(-z1)) where z1 is the encoder's sample; x = z1 + z2 + blur."""
    o = onnx_bytes
    posteriors = [
        LatentPosterior(mu=f"mu{end}", logvar=f"logvar{end}", std=f"std{end}", noise=noise_)
        for end, noise_ in ((1, "e1"), (2, None))
    ]
    return written(
        (
            [
                *normal_nodes(o, "x", 1),
                o.node("Mul", ["std1", "e1"], ["product"]),
                o.node("Add", ["mu1", "product"], ["drawn"]),
                *normal_nodes(o, "drawn", 2),
            ],
            [o.value("x", ROWS), o.value("e1", ROWS)],
            [o.value(f"{name}{end}", ROWS) for end in (1, 2) for name in ("mu", "logvar", "std")],
            [o.tensor("half", [0.5])],
        ),
        (
            [o.node("Add", ["z1", "z2"], ["sum"]), o.node("Add", ["sum", "blur"], ["x"])],
            [o.value(name, ROWS) for name in ("z1", "z2", "blur")],
            [o.value("x", ROWS)],
            [],
        ),
        observation=Observation("x", (3,), ("feature",)),
        latents=(
            Latent("z1", (3,), posteriors[0], scale=2.0),
            Latent("z2", (3,), posteriors[1], scale=(1.0, 2.0, 4.0), shift=(0.0, 1.0, -1.0)),
            Latent("blur", (3,), LatentPosterior("none", reason="it blurs")),
        ),
        likelihood=Likelihood("gaussian", "x", scale=0.5),
    )


@pytest.fixture
def levels(levels_folder):
    return vae_runtime.load(levels_folder)


X = noise.normal(9, 0, 6, (3,))


def test_every_latent_is_drawn_from_its_own_stream(levels):
    z = levels.prior(6, seed=3, start=2**64 - 2, truncation=1.5)
    assert list(z) == ["z1", "z2", "blur"]
    for number, name in enumerate(z):
        same(z[name], noise.normal(3, 2**64 - 2, 6, (3,), 256 * number, 1.5))
    wanted = z["z1"] + z["z2"] + z["blur"]
    for size in (1, 4, 6):
        same(levels.sample(6, seed=3, start=2**64 - 2, truncation=1.5, batch_size=size), wanted)
    same(levels.decode(z), wanted)


def test_noise_of_the_decoder_is_zeros_or_drawn(levels):
    z = levels.prior(6, seed=3)
    blur = z.pop("blur")
    same(levels.decode(z), z["z1"] + z["z2"])
    same(levels.decode(z, seed=3), z["z1"] + z["z2"] + blur)
    same(levels.decode({name: each[2:] for name, each in z.items()}, seed=3, start=2), levels.decode(z, seed=3)[2:])


def test_generate_needs_a_seed_where_the_decoder_has_noise_that_no_file_gives(levels, levels_folder, tmp_path):
    z = levels.prior(6, seed=3)
    rows = np.empty(6, [(name, "<f4", (3,)) for name in z])
    for name, part in z.items():
        rows[name] = part
    np.save(tmp_path / "all.npy", rows)
    np.save(tmp_path / "two.npy", repack_fields(rows[["z1", "z2"]]))
    whole = vae_runtime.generate(levels_folder, tmp_path / "all", decode=tmp_path / "all.npy", workers=1)
    same(whole[:], levels.decode(z))
    with pytest.raises(InputError, match=r"^seed: expected an integer, since blur is drawn, got nothing"):
        vae_runtime.generate(levels_folder, tmp_path / "two", decode=tmp_path / "two.npy", workers=1)
    np.save(tmp_path / "plain.npy", z["z1"])
    with pytest.raises(InputError, match="expected a structured array with the fields z1, z2, blur"):
        vae_runtime.generate(levels_folder, tmp_path / "plain", decode=tmp_path / "plain.npy", workers=1)
    drawn = vae_runtime.generate(levels_folder, tmp_path / "two", decode=tmp_path / "two.npy", seed=3, workers=1)
    same(drawn[:], levels.decode(z))


def test_a_sample_of_several_levels_is_one_draw(levels):
    q = levels.encode(X, seed=5, start=7)
    assert isinstance(q, Posteriors)
    assert list(q) == ["z1", "z2"]
    eps = [noise.normal(5, 7, 6, (3,), noise.POSTERIOR + 256 * number) for number in (0, 1)]
    z = q.sample()
    same(z["z1"], q["z1"].mean + q["z1"].std * eps[0])
    # What the second depends on is the very sample that is given.
    np.testing.assert_allclose(q["z2"].mean, z["z1"], rtol=1e-6)
    same(z["z2"], q["z2"].mean + q["z2"].std * eps[1])
    for name in z:
        same(q.sample(seed=5, start=7)[name], z[name])
    for size in (1, 4):
        same(levels.encode(X, seed=5, start=7, batch_size=size).sample()["z1"], z["z1"])
    np.testing.assert_allclose(q.kl(), q["z1"].kl() + q["z2"].kl())
    np.testing.assert_allclose(
        levels.reconstruct(X, seed=5, start=7), levels.decode(z, seed=5, start=7), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("other", [{"seed": 6}, {"seed": 5}, {"start": 3}, {"temperature": 0.5}])
def test_a_sample_of_other_noise_than_the_encoder_drew_is_refused(levels, other):
    q = levels.encode(X, seed=5, start=7)
    for part in (q, q["z1"], q["z2"]):
        with pytest.raises(InputError, match="sample: expected seed 5, start 7 and temperature 1, with which"):
            part.sample(**other)


def test_means_of_several_levels(levels):
    q = levels.encode(X)
    same(q["z2"].mean, X)
    same(levels.reconstruct(X), X + X)
    for part in (q, q["z1"], q["z2"]):
        with pytest.raises(InputError, match=r"sample: .* gave it the means; call encode\(x, seed=…\)"):
            part.sample(seed=1)


def test_several_latents_are_scored(levels):
    s = levels.score(X, seed=5, start=7)
    q = levels.encode(X, seed=5, start=7)
    np.testing.assert_allclose(s.kl, q.kl())
    assert {name: terms.shape for name, terms in s.kl_per_dimension.items()} == {"z1": (6, 3), "z2": (6, 3)}
    r = levels.decode(q.sample(), seed=5, start=7).astype(np.float64)
    wanted = (-0.5 * ((X - r) / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum(axis=1)
    np.testing.assert_allclose(s.reconstruction, wanted, rtol=1e-5)
    np.testing.assert_allclose(s.mse, (X.astype(np.float64) ** 2).mean(axis=1), rtol=1e-5)
    with pytest.raises(InputError, match=r"^k: importance samples are drawn for VAEs whose .* leave `k` out"):
        levels.score(X, k=2)


def test_scaled_latents_by_name(levels):
    z = levels.encode(X).mode()
    w = levels.scaled(z)
    same(w["z1"], X * np.float32(2))
    same(w["z2"], (X - np.float32([0, 1, -1])) * np.float32([1, 2, 4]))
    back = levels.unscaled(w)
    for name in z:
        np.testing.assert_allclose(back[name], z[name], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(levels.inverse_transform(levels.transform(X)), X + X, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda z: z["z1"], r"^z: expected a mapping from the names z1, z2, blur to arrays, got ndarray"),
        (lambda z: {"z1": z["z1"]}, "^z: z2 is missing"),
        (lambda z: {}, "^z: z1, z2 is missing"),
        (lambda z: z | {"z3": z["z1"]}, "^z: expected one of z1, z2, blur, got 'z3'"),
        (lambda z: z | {"z1": z["z1"][:2]}, "^z: expected as many rows of each latent, got {'z1': 2, 'z2': 6"),
        (lambda z: z | {"z2": z["z2"][:, :2]}, r"^z2: expected float32 \[n, 3\], got \[6, 2\]"),
    ],
)
def test_wrong_latents_by_name_are_refused(levels, change, match):
    with pytest.raises(InputError, match=match):
        levels.decode(change(levels.prior(6, seed=0)))


def test_what_a_vae_of_several_latents_says_of_itself(levels):
    assert [latent.name for latent in levels.latents] == ["z1", "z2", "blur"]
    assert "latents [3], [3], [3] → observation [3]" in repr(levels)
    assert repr(levels.encode(X)) == "<Posteriors z1: Posterior [6, 3], z2: Posterior [6, 3]>"


# Codes, and autoencoders without a distribution.


@pytest.fixture
def codes(written, onnx_bytes):
    """Codes are x made integers, and x their row of TABLE's first column."""
    o = onnx_bytes
    return vae_runtime.load(
        written(
            (
                [o.node("CastLike", ["x", "like"], ["code"])],
                [o.value("x", ROWS)],
                [o.value("code", ROWS, 7)],
                [integers(o, "like", [0])],
            ),
            (
                [o.node("Gather", ["column", "c"], ["x"])],
                [o.value("c", ROWS, 7)],
                [o.value("x", ROWS)],
                [o.tensor("column", [1.0, 2.0, 4.0])],
            ),
            observation=Observation("x", (3,), ("feature",), (0, 2)),
            latents=(
                Latent(
                    "c",
                    (3,),
                    LatentPosterior("codes", value="code", codebook=3),
                    LatentPrior("none"),
                    "int64",
                    scale=3.0,
                ),
            ),
            likelihood=Likelihood("gaussian", "x", scale=1.0),
        )
    )


def test_codes(codes):
    x = np.float32([[0, 1, 2], [2, 0, 0]])
    q = codes.encode(x)
    assert isinstance(q, Encoding)
    same(q.mode(), x.astype(np.int64))
    wanted = np.float32([[1, 2, 4], [4, 1, 1]])
    same(codes.decode(q.mode()), wanted)
    for dtype in (np.int32, np.uint8, np.int16):
        same(codes.decode(q.mode().astype(dtype)), wanted)
    same(codes.decode(q.mode() == 1), codes.decode((q.mode() == 1).astype(np.int64)))
    same(codes.scaled(q.value), q.value)
    same(codes.inverse_transform(codes.transform(x)), wanted)
    same(codes.reconstruct(x), wanted)
    refusals = (q.sample, q.kl, q.kl_per_dimension, lambda: q.log_prob(q.value), lambda: codes.reconstruct(x, seed=1))
    for refused in refusals:
        with pytest.raises(InputError, match=r"there is no posterior distribution: the encoder gives codes; take mode"):
            refused()
    s = codes.score(x, k=3)
    assert (s.elbo, s.kl, s.kl_per_dimension, s.log_likelihood, s.reason) == (
        None, None, None, None, "c: the encoder gives codes",
    )  # fmt: skip
    np.testing.assert_allclose(s.mse, [(1 + 1 + 4) / 3, (4 + 1 + 1) / 3])


@pytest.mark.parametrize(
    ("c", "match"),
    [
        (np.zeros((2, 3), np.float32), r"^c: expected int64 \[n, 3\], got dtype float32; give integers"),
        (np.array([[0, 1, 3]]), r"^c\[0, 2\]: expected values from 0 to 2, got 3"),
        (np.array([[0, -1, 2]]), r"^c\[0, 1\]: expected values from 0 to 2, got -1"),
    ],
)
def test_wrong_codes_are_refused(codes, c, match):
    with pytest.raises(InputError, match=match):
        codes.decode(c)


# Dynamic axes; further outputs.


@pytest.fixture
def dynamic_folder(written, onnx_bytes):
    """x = z, float32 [1, 4, 4] or of another height and width; a sum beside it, and no likelihood."""
    o = onnx_bytes
    free = ["batch", 1, "height", "width"]
    sizes = {"height": Sizes(2, 8, 2), "width": Sizes(4, 6)}
    axes = ("channel", "height", "width")
    return written(
        ([o.node("Identity", ["x"], ["value"])], [o.value("x", free)], [o.value("value", free)], []),
        (
            [o.node("Identity", ["z"], ["y"]), o.node("Add", ["z", "z"], ["twice"])],
            [o.value("z", free)],
            [o.value("y", free), o.value("twice", free)],
            [],
        ),
        observation=Observation("x", (1, 4, 4), axes, dynamic=sizes),
        latents=(
            Latent(
                "z",
                (1, 4, 4),
                LatentPosterior("none", value="value", reason="an autoencoder"),
                axes=axes,
                dynamic=sizes,
            ),
        ),
        likelihood=Likelihood("none", "y", outputs=(Output("twice", (1, 4, 4), axes),)),
    )


@pytest.fixture
def dynamic(dynamic_folder):
    return vae_runtime.load(dynamic_folder)


@pytest.mark.parametrize("shape", [None, (1, 4, 4), (1, 2, 6), [1, 8, np.int64(5)]])
def test_other_sizes_where_axes_are_dynamic(dynamic, shape):
    z = dynamic.prior(5, seed=1, latent_shape=shape)
    wanted = (5, *(shape or (1, 4, 4)))
    same(z, noise.normal(1, 0, 5, wanted[1:]))
    for size in (2, 5):
        same(dynamic.sample(5, seed=1, latent_shape=shape, batch_size=size), z)
        same(dynamic.decode(z, batch_size=size), z)
        same(dynamic.encode(z, batch_size=size).value, z)
    same(dynamic.decoder_outputs(z)["twice"], z + z)
    buffer = np.empty(wanted, np.float32)
    assert dynamic.decode(z, out=buffer) is buffer
    same(buffer, z)
    s = dynamic.score(z)
    assert s.mse.shape == (5,)


@pytest.mark.parametrize("size", [(20, 13), (2, 4), (8, 6), (16, 31), (10, 4)])
@pytest.mark.parametrize("tile", ["auto", 4, 6, {"height": 4}, {"width": 5, "height": 8}])
@pytest.mark.parametrize("overlap", [True, 0.01, 0.5])
def test_blended_tiles_of_a_graph_that_changes_nothing_change_nothing(dynamic, size, tile, overlap):
    z = np.random.default_rng(0).normal(size=(2, 1, *size)).astype(np.float32)
    tiles = {"tile": tile, "tile_blend": overlap}
    if tile == {"height": 4} and size[1] > 6:
        # An axis that the tile does not name is undivided.
        with pytest.raises(InputError, match="width"):
            dynamic.decode(z, **tiles)
        return
    np.testing.assert_allclose(dynamic.decode(z, **tiles), z, atol=1e-6)
    np.testing.assert_allclose(dynamic.encode(z, **tiles).value, z, atol=1e-6)
    np.testing.assert_allclose(
        dynamic.sample(2, seed=1, latent_shape=(1, *size), **tiles), noise.normal(1, 0, 2, (1, *size)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 4), r"got \[1, 3, 4\]; height 3 was not proven, 2 … 8 in steps of 2 is: choose such a size, or export"),
        ((1, 10, 4), r"; height 10 was not proven"),
        ((1, 4, 7), r"; width 7 was not proven, 4 … 6 is: choose such a size, divide it with `tile`, or export"),
        ((2, 4, 4), r"expected \[1, height, width\] \(height 2 … 8 in steps of 2; width 4 … 6\), got \[2, 4, 4\]"),
        ((4, 4), r"got \[4, 4\]"),
        ((1, 4, 4.0), r"\[2\]: expected an integer, got 4.0"),
        ((1, 4, -4), r"\[2\]: expected 1 … "),
        (4, "expected a sequence of sizes, got 4"),
        ({"y": (1, 4, 4)}, "^latent_shape: expected one of z, got 'y'"),
    ],
)
def test_sizes_that_were_not_proven_are_refused(dynamic, shape, match):
    with pytest.raises(InputError, match=match):
        dynamic.sample(1, latent_shape=shape)
    if shape in ((1, 10, 4), (1, 4, 7)):
        # Tiles decode them.
        assert dynamic.prior(1, latent_shape=shape).shape == (1, *shape)
    else:
        with pytest.raises(InputError, match=re.sub("… [68]", "… 2147483648", match)):
            dynamic.prior(1, latent_shape=shape)
    if isinstance(shape, tuple) and all(isinstance(size, int) and size > 0 for size in shape):
        for use in (dynamic.encode, dynamic.decode):
            with pytest.raises(InputError, match=r"float32 \[n, 1, height, width\] .* got"):
                use(np.zeros((1, *shape), np.float32))


def test_a_buffer_of_another_size_is_refused(dynamic):
    z = dynamic.prior(2, seed=0)
    for wrong in (np.empty((2, 1, 4, 5), np.float32), np.empty((3, 1, 4, 4), np.float32)):
        with pytest.raises(InputError, match=r"^out: "):
            dynamic.decode(z, out=wrong)


def test_a_row_without_its_batch_axis_is_recognised_at_other_sizes(dynamic):
    with pytest.raises(InputError, match=r"add the batch axis: x\[None\]"):
        dynamic.encode(np.zeros((1, 8, 5), np.float32))


def test_what_has_no_likelihood_is_not_observed(dynamic):
    with pytest.raises(
        InputError,
        match=r"observe: the bundle has no likelihood to draw from: .* \(likelihood=…\); leave `observe` out",
    ):
        dynamic.sample(1, observe=True)


# Graphs that are not what the manifest says.


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda vae: vae["conditions"].pop(),
            r"expected the inputs \['label', 'z'\] of the manifest, the graph has \['label', 'weight', 'z'\]",
        ),
        (
            lambda vae: vae["conditions"][1].update(shape=[3]),
            r"input weight: expected float32 \[batch, 3\] as in the manifest",
        ),
        (
            lambda vae: vae["conditions"][1].update(dtype="int64"),
            r"input weight: expected int64 \[batch, 2\] as in the manifest",
        ),
        (
            lambda vae: vae["latents"][0].update(axes=["a"], dynamic={"a": {"min": 1, "max": 9}}),
            r"input z: expected float32 \[batch, dynamic\] as in the manifest, the graph has tensor\(float\)",
        ),
        (
            lambda vae: vae["likelihood"].update(outputs=[{"name": "more", "shape": []}]),
            r"expected the outputs \['more', 'sigma', 'y'\] of the manifest",
        ),
    ],
)
def test_a_graph_of_another_signature_is_refused(conditional_folder, edit_manifest, change, match):
    def spoil(document):
        change(document["additional_metadata"]["vae"])
        vae = document["additional_metadata"]["vae"]
        names = [vae["likelihood"]["mean"], vae["likelihood"]["scale_output"]]
        names += [output["name"] for output in vae["likelihood"].get("outputs", [])]
        for variant in document["components"]["decoder"]["variants"].values():
            for field in ("tolerance", "error"):
                variant["additional_metadata"]["vae"][field] = dict.fromkeys(names, 0.0)

    edit_manifest(conditional_folder, spoil)
    with pytest.raises(BundleError, match=rf"decoder/fp32/model\.onnx: .*{match}"):
        vae_runtime.load(conditional_folder)


def test_a_fixed_axis_that_is_free_in_the_graph_is_refused(dynamic_folder, edit_manifest):
    def fix(document):
        vae = document["additional_metadata"]["vae"]
        for part in (vae["observation"], vae["latents"][0]):
            del part["dynamic"]

    edit_manifest(dynamic_folder, fix)
    with pytest.raises(BundleError, match=r"input z: expected float32 \[batch, 1, 4, 4\] as in the manifest"):
        vae_runtime.load(dynamic_folder)


# Traversal.


def test_a_traversal_changes_one_number():
    z = noise.normal(0, 0, 1, (2, 3))[0]
    values = np.linspace(-2, 2, 5, dtype=np.float32)
    way = traverse(z, 4, values)
    assert way.shape == (5, 2, 3)
    same(way[:, 1, 1].copy(), values)
    others = np.delete(way.reshape(5, 6), 4, axis=1)
    same(others, np.repeat(np.delete(z.ravel(), 4)[None], 5, axis=0))


@pytest.mark.parametrize(
    ("z", "dimension", "values", "match"),
    [
        ([0.0, 1.0], 2, [0.0], "^dimension: expected 0 … 1, got 2"),
        ([0.0], -1, [0.0], "^dimension: "),
        ([0.0], 0, 0.0, "^values: expected an array"),
        ([0.0], 0, [], "^values: expected an array"),
        ([0.0], 0, [np.nan], "^values: expected finite"),
        ([np.inf], 0, [1.0], "^z: expected finite"),
        ([0.0], 0, [1e39], "^values: expected finite numbers of float32"),
    ],
)
def test_what_cannot_be_traversed_is_refused(z, dimension, values, match):
    with pytest.raises(InputError, match=match):
        traverse(z, dimension, values)


# On the command line.


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `vae-runtime` in this process, in a folder of its own; what it printed."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments, status=0, match=""):
        try:
            found = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            found = error.code
        printed = capsys.readouterr()
        assert found == status, printed
        assert re.search(match, printed.err if status else printed.out, re.MULTILINE), printed
        return printed.out

    return call


def test_the_command_line_takes_conditions(run, conditional_folder, conditional):
    weights = noise.uniform(0, 0, 4, (2,))
    np.save("w.npy", weights)
    out = ["--seed", 1, "--out", "x.npy", "-n", 4]
    for label, number in (("two", 1), ("1", 1), ("two,one,one,three", [1, 0, 0, 2]), ("1,0,0,2", [1, 0, 0, 2])):
        for weight, value in (("0.5,0.25", WEIGHT), ("w.npy", weights)):
            run("sample", conditional_folder, *out, "--condition", f"label={label}", "--condition", f"weight={weight}")
            wanted = conditional.sample(4, seed=1, conditions={"label": number, "weight": value})
            same(np.load("x.npy"), wanted)
    both = ["--condition", "label=two", "--condition", "weight=0.5,0.25"]
    given_ = {"label": 1, "weight": WEIGHT}
    run("encode", conditional_folder, "x.npy", "--out", "q.npz", *both)
    same(np.load("q.npz")["mean"], conditional.encode(wanted, conditions=given_).mean)
    run("encode", conditional_folder, "x.npy", "--out", "z.npz", "--seed", 4, *both)
    z = conditional.encode(wanted, conditions=given_).sample(seed=4)
    assert sorted(np.load("z.npz").files) == ["logvar", "mean", "std", "z"]
    same(np.load("z.npz")["z"], z)
    np.save("z.npy", z)
    run("decode", conditional_folder, "z.npy", "--out", "y.npy", *both)
    same(np.load("y.npy"), conditional.decode(z, conditions=given_))
    run("reconstruct", conditional_folder, "x.npy", "--out", "r.npy", *both)
    same(np.load("r.npy"), conditional.reconstruct(wanted, conditions=given_))
    run("interpolate", conditional_folder, "--inputs", "x.npy", "--out", "i.npy", *both)
    assert np.load("i.npy").shape == (10, 3)
    run("traverse", conditional_folder, "--inputs", "x.npy", "--out", "t.npy", *both, "--steps", 3)
    assert np.load("t.npy").shape == (3, 3, 3)
    run("score", conditional_folder, "x.npy", *both, match=r"^  elbo +-?[\d.]+ ± ")


@pytest.mark.parametrize(
    ("condition", "status", "match"),
    [
        (["label"], 2, "argument --condition: expected NAME=VALUE, got 'label'"),
        (["=3"], 2, "expected NAME=VALUE"),
        (["label="], 2, "expected NAME=VALUE"),
        (["label=1", "label=2"], 2, "argument --condition: expected label once, got it twice"),
        (["label=four"], 1, "--condition label: expected a class .*, got 'four'"),
        (["label=1.5"], 1, "--condition label: expected .* integers joined by commas or an .npy file, got '1.5'"),
        (["label=9"], 1, "label: expected values from 0 to 2, got 9"),
        (["label=1", "weight=heavy"], 1, "--condition weight: expected numbers joined .* got 'heavy'"),
        (["label=1", "weight=2,0"], 1, r"weight\[0\]: expected values from 0 to 1, got 2"),
        (["label=1", "weight=none.npy"], 1, r"none\.npy: no such file"),
        (["label=1"], 1, "expected 'weight' .*, got nothing"),
        (["label=1", "weight=0,0", "more=1"], 1, "expected one of label, weight, got 'more'"),
    ],
)
def test_wrong_conditions_on_the_command_line(run, conditional_folder, condition, status, match):
    options = [word for each in condition for word in ("--condition", each)]
    run("sample", conditional_folder, "--out", "x.npy", *options, status=status, match=match)


def test_the_command_line_takes_several_latents_by_name(run, levels_folder, levels):
    run("sample", levels_folder, "-n", 6, "--seed", 3, "--out", "x.npy", "--latents", "z.npz", "--truncation", 1.5)
    z = levels.prior(6, seed=3, truncation=1.5)
    with np.load("z.npz") as archive:
        assert sorted(archive.files) == ["blur", "z1", "z2"]
        for name in z:
            same(archive[name], z[name])
    x = np.load("x.npy")
    run("decode", levels_folder, "z.npz", "--out", "y.npy")
    same(np.load("y.npy"), x)
    run("encode", levels_folder, "x.npy", "--out", "q.npz", "--seed", 4, "--start", 2, match="mean KL")
    q = levels.encode(x, seed=4, start=2)
    with np.load("q.npz") as archive:
        assert sorted(archive.files) == sorted(
            [*(f"{name}/{field}" for name in ("z1", "z2") for field in ("mean", "std", "logvar")), "z1", "z2"]
        )
        same(archive["z2/mean"], q["z2"].mean)
        same(archive["z2"], q.sample()["z2"])
    run("decode", levels_folder, "q.npz", "--out", "y.npy")
    same(np.load("y.npy"), levels.decode(q.sample()))
    run("interpolate", levels_folder, "--seeds", 1, 2, "--out", "i.npy")
    a, b = levels.prior(1, seed=1), levels.prior(1, seed=2)
    same(np.load("i.npy"), levels.decode({name: interpolate(a[name][0], b[name][0], 10) for name in a}))
    run("traverse", levels_folder, "--seed", 1, "--latent", "z2", "--dimensions", "2,0", "--out", "t.npy", "--reach", 1)
    sheet = np.load("t.npy")
    assert sheet.shape == (2, 9, 3)
    wanted = levels.decode({"z1": a["z1"], "z2": traverse(a["z2"][0], 2, [-1.0]), "blur": a["blur"]})
    np.testing.assert_allclose(sheet[0, :1], wanted, rtol=1e-6)
    run("score", levels_folder, "x.npy", "--out", "s.npz", "--seed", 1)
    assert {"z1/kl_per_dimension", "z2/kl_per_dimension", "elbo"} <= set(np.load("s.npz").files)
    printed = run("info", levels_folder)
    assert re.search(
        r"^latent +z1 float32 \[3\], prior standard normal, posterior diagonal normal, other .* · 2$", printed, re.M
    )
    assert re.search(r"^latent +z2 .* \(z - \(0, 1, -1\)\) · \(1, 2, 4\)$", printed, re.MULTILINE)
    assert re.search(r"^latent +blur .* noise of the decoder \(it blurs\)$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            ["encode", "x.npy", "--out", "z.npy"],
            r"z\.npy: expected a file name ending in \.npz, because .* several latents",
        ),
        (["sample", "--out", "y.npy", "--latents", "z.npy"], r"z\.npy: expected a file name ending in \.npz"),
        (["decode", "x.npy", "--out", "y.npy"], r"x\.npy: expected a file name ending in \.npz"),
        (["decode", "none.npz", "--out", "y.npy"], r"none\.npz: no such file"),
        (["decode", "bad.npz", "--out", "y.npy"], r"bad\.npz: expected an \.npz file of numbers"),
        (["decode", "half.npz", "--out", "y.npy"], "z: z2 is missing"),
        (["traverse", "--seed", "1", "--latent", "z3", "--out", "y.npy"], "--latent: expected one of z1, z2, blur"),
        (
            ["traverse", "--inputs", "x.npy", "--latent", "blur", "--out", "y.npy"],
            "got blur, which is noise; choose another",
        ),
        (
            ["traverse", "--seed", "1", "--dimensions", "3", "--out", "y.npy"],
            "--dimensions: expected 0 … 2, got 3",
        ),
        (["sample", "--out", "y.npy", "--latent-shape", "3"], "latent-shape: expected a mapping .*"),
        (["score", "x.npy", "-k", "3"], "k: importance samples are drawn for VAEs whose"),
    ],
)
def test_what_is_wrong_with_several_latents(run, levels_folder, arguments, match):
    np.save("x.npy", X)
    np.savez("half.npz", z1=X)
    with open("bad.npz", "wb") as file:
        file.write(b"PK\x03\x04")
    name, *rest = arguments
    run(name, levels_folder, *rest, status=1, match=match)


def test_info_and_samples_of_dynamic_axes(run, dynamic_folder, dynamic):
    printed = run("info", dynamic_folder)
    sizes = r"\[channel 1, height 4 \(2 … 8 in steps of 2\), width 4 \(4 … 6\)\]"
    assert re.search(rf"^observation +x float32 {sizes}$", printed, re.MULTILINE)
    assert re.search(rf"^latent +z float32 {sizes}, prior .*, no posterior \(an autoencoder\)$", printed, re.MULTILINE)
    run("sample", dynamic_folder, "-n", 2, "--seed", 1, "--latent-shape", "1,8,6", "--out", "x.npy")
    same(np.load("x.npy"), dynamic.sample(2, seed=1, latent_shape=(1, 8, 6)))
    run(
        "sample", dynamic_folder, "--latent-shape", "1,3,4", "--out", "y.npy", status=1, match="height 3 was not proven"
    )
    run("encode", dynamic_folder, "x.npy", "--out", "q.npz", match="latents of 2 observations")
    assert np.load("q.npz").files == ["value"]
    run("score", dynamic_folder, "x.npy", match="no ELBO: no likelihood was stated")
    run("encode", dynamic_folder, "x.npy", "--out", "z.npy", "--seed", 1, status=1, match="an autoencoder; take mode")


def test_info_of_conditions(run, conditional_folder):
    printed = run("info", conditional_folder)
    assert re.search(
        r"^condition +label int64 \[\], classes one, two, three, of encoder and decoder$", printed, re.MULTILINE
    )
    assert re.search(r"^condition +weight float32 \[2\], values 0 … 1, of decoder$", printed, re.MULTILINE)
