"""A model sees the dtypes that it was written for; graphs take and give float32 and int64."""

import numpy as np
import pytest
import torch
from torch import nn

import vae_runtime
from vae_export import ExportError, export
from vae_export.graphs.graph import graph_of, quiet
from vae_export.graphs.torch_formats import trace_module
from vae_export.parity.comparison import compare
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.probe import probe
from vae_export.understand.state import unchanged
from vae_runtime import InputError

ROWS, SIZE = 6, 12
X = torch.rand(ROWS, SIZE, generator=torch.Generator().manual_seed(0))
MASK = X.roll(1, 0) < 0.4
DTYPES = {
    torch.bool: MASK,
    **{each: (X * 120).to(each) for each in (torch.uint8, torch.int8, torch.int16, torch.int32)},
}


class Base(nn.Module):
    """A VAE of functions: `read` makes floats of x and the mask, `write` changes what the decoder gives."""

    def __init__(self, read=lambda x, mask: x, write=lambda x: x, answer=lambda tensor: tensor):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(SIZE, 6), nn.Sequential(nn.Linear(3, SIZE), nn.Sigmoid())
        self.read, self.write, self.answer = read, write, answer

    def encode(self, x, mask=None):
        mu, logvar = self.body(self.read(x, mask)).chunk(2, 1)
        return self.answer(mu), self.answer(logvar)

    def decode(self, z):
        return self.write(self.head(z))

    def forward(self, x, mask=None):
        mu, logvar = self.encode(x, mask)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))


def understood(model, x=X, declared=None, **conditions):
    """The pure functions and what they give for the example."""
    with unchanged(model):
        adapted = probe(adapt(model, x, declared or Declaration(), conditions=conditions))
        return adapted, {name: run_module(module, adapted.given(name)) for name, module in adapted.modules.items()}


# Observations and conditions. Each of these means something else, or fails, with int64.

READINGS = {
    "not": lambda x, mask: x * (~mask).float(),
    "where": lambda x, mask: torch.where(mask, torch.zeros_like(x), x),
    "masked fill": lambda x, mask: x.masked_fill(mask, 0.0),
    "negated": lambda x, mask: x * mask.logical_not() + (mask ^ True).float(),
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_bool_condition_is_bool_in_the_model(reading):
    model = Base(READINGS[reading])
    adapted, outputs = understood(model, mask=MASK)
    with torch.no_grad():
        torch.testing.assert_close(outputs["encoder"][0], model.encode(X, MASK)[0])
    (condition,) = adapted.signature.conditions
    assert (condition.dtype, condition.range, condition.components) == ("int64", (0, 1), ("encoder",))
    assert adapted.examples["mask"].dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
def test_observations_are_what_they_were_in_the_model(dtype):
    x = DTYPES[dtype]
    # The bits turned over: 255 - x of uint8, and -1 - x of int64.
    model = Base(lambda x, mask: (~x).float() / 100)
    adapted, outputs = understood(model, x)
    with torch.no_grad():
        expected = model.encode(x)[0]
        torch.testing.assert_close(outputs["encoder"][0], expected)
        if dtype in (torch.bool, torch.uint8):
            assert not torch.allclose(model.encode(x.long())[0], expected)
    observation = adapted.signature.observation
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    assert (observation.dtype, observation.range) == ("int64", (low, high))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_labels_that_the_model_takes_as_int64_alone_are_passed_so(dtype):
    class Labeled(Base):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(ROWS, 3)

        def decode(self, z, label):
            return self.head(z + self.table(label))

        def forward(self, x, label):
            mu, logvar = self.encode(x)
            return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu), label)

    adapted, outputs = understood(Labeled(), label=torch.arange(ROWS, dtype=dtype))
    _, usual = understood(Labeled(), label=torch.arange(ROWS))
    assert torch.equal(outputs["decoder"][0], usual["decoder"][0])
    assert adapted.signature.conditions[0].range == (0, ROWS - 1)
    name = str(dtype).removeprefix("torch.")
    assert f"label: decode takes it as int64, since it fails on {name}" in adapted.recognised
    with pytest.raises(ExportError, match="scalar types: Long"):
        understood(Labeled(), label=torch.arange(ROWS).float())


# Latents. Decode takes what encode gave.


class Codes(nn.Module):
    """Codes in a dtype, of which decode takes no other, or the dtypes that it takes."""

    def __init__(self, dtype, *taken):
        super().__init__()
        torch.manual_seed(1)
        self.project, self.table, self.head = nn.Linear(SIZE, 12), nn.Embedding(5, 4), nn.Linear(12, SIZE)
        self.dtype, self.taken = dtype, taken or (dtype,)

    def encode(self, x):
        rows = self.project(x).view(-1, 3, 4)
        return ((rows[:, :, None] - self.table.weight) ** 2).sum(-1).argmin(-1).to(self.dtype)

    def decode(self, codes):
        if codes.dtype not in self.taken:
            raise TypeError(f"expected {self.taken}, got {codes.dtype}")
        return self.head(self.table(codes.long()).flatten(1))


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [
        *((dtype, ()) for dtype in (torch.int32, torch.int16, torch.uint8, torch.int64, torch.float32, torch.float64)),
        (torch.int32, (torch.int64,)),
        (torch.float32, (torch.int64,)),
    ],
)
def test_codes_are_int64_in_the_graph_and_what_encode_gave_in_the_model(dtype, taken):
    model = Codes(dtype, *taken)
    adapted, outputs = understood(model, declared=Declaration(posterior="codes"))
    codes = model.encode(X)
    assert outputs["encoder"][0].dtype == adapted.examples["codes"].dtype == torch.int64
    assert torch.equal(outputs["encoder"][0], codes.long())
    with torch.no_grad():
        torch.testing.assert_close(outputs["decoder"][0], model.decode(codes.to(model.taken[0])))


def test_codes_that_decode_takes_in_no_dtype_are_refused():
    with pytest.raises(ExportError, match=r"decode: fails on latents \[6, 3\]: expected \(torch.int8,\)"):
        understood(Codes(torch.int32, torch.int8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", [True, False])
def test_an_encoder_of_other_floats_gives_float32(dtype, cast):
    model = Base(answer=lambda tensor: tensor.to(dtype))
    if cast:
        model.head.insert(0, Float())
    else:
        # The caller makes float32 of z, so that decode takes nothing else.
        model.forward = lambda x: model.decode((model.encode(x)[0] + 0.0).float())
    adapted, outputs = understood(model, declared=None if cast else Declaration(posterior="logvar"))
    usual = understood(Base())[1]
    for component in ("encoder", "decoder"):
        assert {output.dtype for output in outputs[component]} == {torch.float32}
        for output, other in zip(outputs[component], usual[component], strict=True):
            torch.testing.assert_close(output, other, rtol=1e-2, atol=1e-2)
    assert adapted.examples["z"].dtype == torch.float32


class Float(nn.Module):
    def forward(self, x):
        return x.float()


# Half precision inside, which no two programs round alike, is float32.


def halves(x):
    return (x.half() * 2).to(torch.bfloat16).type(torch.float16) / torch.full((1,), 2.0, dtype=torch.float16)


class Autocast(Base):
    def encode(self, x, mask=None):
        with torch.autocast("cpu", torch.bfloat16):
            return super().encode(x)

    def decode(self, z):
        with torch.autocast("cpu", torch.bfloat16):
            return super().decode(z.float())


HALVES = {"casts": lambda: Base(lambda x, mask: halves(x).float(), halves), "autocast": Autocast}


@pytest.mark.parametrize("how", HALVES)
def test_half_precision_inside_is_float32(how):
    model = HALVES[how]()
    adapted, outputs = understood(model)
    usual = understood(Base())[1]
    for component, function in (("encoder", "encode"), ("decoder", "decode")):
        for output, other in zip(outputs[component], usual[component], strict=True):
            torch.testing.assert_close(output, other)
        assert f"{function}: asks for float16 or bfloat16, and computes in float32" in adapted.recognised
    with torch.no_grad():
        assert not torch.allclose(model.encode(X)[0].float(), outputs["encoder"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["casts", pytest.param("autocast", marks=pytest.mark.slow)])
def test_graphs_of_half_precision_inside_are_float32(how, tmp_path):
    export(HALVES[how](), tmp_path / "b", example=X)
    expected = understood(Base())[1]["encoder"][0]
    np.testing.assert_allclose(vae_runtime.load(tmp_path / "b").encode(X.numpy()).mean, expected, atol=1e-5)


def test_the_bits_of_a_number_stay_when_they_are_read_as_another_dtype():
    bits = torch.tensor([0x3C00], dtype=torch.int16)
    model = Base(lambda x, mask: x * bits.view(torch.float16).to(torch.float64).float())
    outputs = understood(model)[1]
    torch.testing.assert_close(outputs["encoder"][0], understood(Base())[1]["encoder"][0])


# What a decoder gives.

WRITTEN = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.to(torch.bfloat16),
    "uint8": lambda x: (x * 255).to(torch.uint8),
    "int16": lambda x: (x * 1000).short(),
    "bool": lambda x: x > 0.5,
    "argmax": lambda x: x.view(-1, SIZE // 3, 3).argmax(-1),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_decoder_gives_float32(written):
    model = Base(write=WRITTEN[written])
    # Few values leave open what the second tensor is.
    declared = Declaration(posterior="logvar") if written in ("bool", "argmax") else None
    adapted, outputs = understood(model, declared=declared)
    (x,) = outputs["decoder"]
    assert x.dtype == torch.float32
    with torch.no_grad():
        expected = model.decode(adapted.examples["z"]).float()
    torch.testing.assert_close(x, expected, rtol=1e-2, atol=1e-2)
    assert adapted.signature.likelihood.kind == "none"


class Pictures(nn.Module):
    """So many values that some lie at the border of two whole numbers, where rounding decides."""

    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(SIZE, 16), nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 3072))
        self.write = write

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.write(torch.sigmoid(4 * self.head(z)).view(-1, 3, 32, 32))


@pytest.mark.parametrize("written", ["uint8", "bool"])
def test_whole_numbers_at_a_border_may_differ_by_rounding(written, tmp_path):
    model = Pictures(WRITTEN[written])
    export(model, tmp_path / "b", example=X, posterior="logvar", formats=("onnx",))
    assert vae_runtime.verify(tmp_path / "b").passed


@pytest.mark.parametrize(("border", "agrees"), [(0.5, True), (0.51, False)])
def test_another_border_is_no_parity(border, agrees, tmp_path):
    adapted = understood(Pictures(WRITTEN["bool"]), declared=Declaration(posterior="logvar"))[0]
    other = understood(Pictures(lambda x: x > border), declared=Declaration(posterior="logvar"))[0]
    with quiet():
        trace_module(other, "decoder", tmp_path / "model.pt")
    graph = graph_of(other, "decoder", "torchscript", tmp_path / "model.pt", "the tracer")
    assert compare(adapted, [graph]).passed == agrees


def test_rows_that_influence_each_other_are_refused_in_whole_numbers_too():
    model = Pictures(lambda x: WRITTEN["uint8"](x - 0.1 * x.mean(0)))
    with pytest.raises(ExportError, match="rows of a batch influence each other"):
        understood(model, declared=Declaration(posterior="logvar"))


# Whole exports: a graph of a dtype is what the runtime refused.


def test_a_bundle_takes_bools_and_bytes_and_gives_what_the_model_gives(tmp_path):
    model = Base(lambda x, mask: torch.where(mask, x, ~x).float() / 255, WRITTEN["uint8"]).eval()
    x = DTYPES[torch.uint8]
    export(model, tmp_path / "b", example=x, conditions={"mask": MASK})
    assert vae_runtime.verify(tmp_path / "b").passed
    vae = vae_runtime.load(tmp_path / "b")
    fresh = np.random.default_rng(1).integers(0, 256, (5, SIZE), np.uint8)
    mask = np.random.default_rng(2).random((5, SIZE)) < 0.5
    with torch.no_grad():
        mu, logvar = model.encode(torch.from_numpy(fresh), torch.from_numpy(mask))
        expected = model.decode(mu)
    for own in (mask, mask.astype(np.int64), mask.astype(np.uint8)):
        q = vae.encode(fresh, conditions={"mask": own})
        np.testing.assert_allclose(q.mean, mu, atol=1e-6)
        np.testing.assert_allclose(q.std, torch.exp(0.5 * logvar), atol=1e-6)
    np.testing.assert_allclose(vae.decode(q.mean), expected, atol=1)
    for wrong, match in ((fresh.astype(np.int64) + 200, "x.*: expected values from 0 to 255"), (X.numpy(), "float32")):
        with pytest.raises(InputError, match=match):
            vae.encode(wrong, conditions={"mask": np.zeros((len(wrong), SIZE), bool)})
    with pytest.raises(InputError, match=r"mask.*: expected values from 0 to 1, got 2"):
        vae.encode(fresh, conditions={"mask": np.full((5, SIZE), 2)})


def test_a_bundle_of_narrow_codes_round_trips(tmp_path):
    model = Codes(torch.int16).eval()
    export(model, tmp_path / "b", example=X)
    vae = vae_runtime.load(tmp_path / "b")
    with torch.no_grad():
        codes = model.encode(X)
        expected = model.decode(codes)
    assert np.array_equal(vae.encode(X.numpy()).value, codes.numpy())
    for dtype in (np.int64, np.int16, np.uint8):
        np.testing.assert_allclose(vae.decode(codes.numpy().astype(dtype)), expected, atol=1e-6)
