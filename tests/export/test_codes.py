"""Models of codes: quantizers inside of forward, several levels, ways to decode codes, and how many codes there are."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from vae_export import ExportError
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.probe import probe
from vae_export.understand.reads import branch_of
from vae_export.understand.state import unchanged

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def understood(model, declaration=None, x=X):
    """What is understood of a model, and the outputs of both components for the example."""
    with unchanged(model), torch.no_grad():
        source, own = declared(model)
        adapted = probe(adapt(model, x, (declaration or Declaration()).over(own), source=source))
        return adapted, {name: run_module(module, adapted.given(name)) for name, module in adapted.modules.items()}


class Table(nn.Module):
    """Nearest rows of a buffer; `give` says what is returned of the vectors, [n, d, h, w], and the codes, [n, h, w]."""

    def __init__(self, give, size=12, width=4):
        super().__init__()
        self.register_buffer("embed", torch.randn(size, width))
        self.give = give

    def forward(self, x):
        rows = x.movedim(1, -1)
        codes = (rows[..., None, :] - self.embed).pow(2).sum(-1).argmin(-1)
        vectors = functional.embedding(codes, self.embed).movedim(-1, 1)
        return self.give(x + (vectors - x).detach(), codes)


class Levels(nn.Module):
    """Finite scalars: each number is rounded, and the code is made of all of them. No table has a row for each code."""

    codebook_size = 81

    def forward(self, x):
        rounded = (torch.tanh(x)).round()
        powers = 3 ** torch.arange(4).reshape(4, 1, 1)
        return rounded, ((rounded + 1).long() * powers).sum(1)

    def indices_to_codes(self, indices):
        return torch.stack([indices // 3**power % 3 - 1 for power in range(4)], 1).float()


class Residual(nn.Module):
    """Three tables, each of what the former left; codes [n, h * w, 3] beside vectors [n, h * w, d]."""

    def __init__(self, size=None):
        super().__init__()
        self.codebook_size, self.asked = size, 0
        self.tables = nn.ParameterList(torch.randn(9, 4) / (number + 1) for number in range(3))

    def forward(self, x):
        left, codes = x, []
        for table in self.tables:
            codes.append((left[..., None, :] - table).pow(2).sum(-1).argmin(-1))
            left = left - table[codes[-1]]
        return x - left, torch.stack(codes, -1)

    def get_output_from_indices(self, codes):
        self.asked += 1
        return sum(table[codes[..., number]] for number, table in enumerate(self.tables))


class Layers(nn.Module):
    """No encode, no decode: a list of layers with a quantizer among them."""

    def __init__(self, quantizer, flat=False):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 4, 4, 4), quantizer, nn.ConvTranspose2d(4, 1, 4, 4)])
        self.flat = flat
        with torch.no_grad():
            self.layers[0].weight.mul_(8)

    def forward(self, x):
        x = self.layers[0](x)
        shape = x.shape
        answer = self.layers[1](x.flatten(2).mT if self.flat else x)
        vectors = answer.vectors if isinstance(answer, SimpleNamespace) else answer[0]
        return self.layers[2](vectors.mT.reshape(shape) if self.flat else vectors).clamp(-1, 1), answer


QUANTIZERS = {
    "vectors and codes": (lambda: Table(lambda vectors, codes: (vectors, codes, torch.zeros(()))), (2, 2), 12),
    "codes in one row": (lambda: Table(lambda vectors, codes: (vectors, (None, codes.reshape(-1, 1)))), (2, 2), 12),
    "finite scalars": (Levels, (2, 2), 81),
    "residual": (Residual, (4, 3), 9),
    "residual, of a known size": (lambda: Residual(9), (4, 3), 9),
    # Larger than its tables, so that no table of it can be made.
    "residual, of a wrong size": (lambda: Residual(10), (4, 3), 9),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_in_forward_gives_codes_of_its_own_shape(name):
    torch.manual_seed(0)
    make, shape, count = QUANTIZERS[name]
    model = Layers(make(), flat=name.startswith("residual"))
    adapted, outputs = understood(model)
    (latent,) = adapted.signature.latents
    assert (latent.posterior.kind, latent.shape, latent.posterior.codebook) == ("codes", shape, count)
    with torch.no_grad():
        torch.testing.assert_close(outputs["decoder"][0], model(X)[0])
    assert any("cut at its quantizer, layers.1" in line for line in adapted.recognised)


@pytest.mark.parametrize(("size", "asked"), [(9, False), (None, True)])
def test_a_lookup_becomes_a_table_where_the_number_of_codes_is_known(size, asked):
    torch.manual_seed(0)
    model = Layers(Residual(size), flat=True)
    with unchanged(model), torch.no_grad():
        adapted = adapt(model, X, Declaration())
        before = model.layers[1].asked
        run_module(adapted.modules["decoder"], adapted.given("decoder"))
        assert (model.layers[1].asked > before) == asked


def test_half_of_a_forward_keeps_its_number_of_rows_free_in_a_graph():
    torch.manual_seed(0)
    adapted, _ = understood(Layers(QUANTIZERS["vectors and codes"][0]()))
    (codes,) = adapted.given("decoder")
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(adapted.modules["decoder"], (codes[:3],), dynamic_shapes=(free,)).module()
    torch.testing.assert_close(program(codes), adapted.modules["decoder"](codes))


class Averages(nn.Module):
    """A codebook, a buffer or the weight of a layer, that moves in training mode, as those of libraries do."""

    def __init__(self, layer):
        super().__init__()
        self.embedding = nn.Embedding(12, 4).requires_grad_(False) if layer else None
        self.register_buffer("embed", None if layer else torch.randn(12, 4))

    def forward(self, x):
        table = self.embedding.weight if self.embedding else self.embed
        codes = (x.movedim(1, -1)[..., None, :] - table).pow(2).sum(-1).argmin(-1)
        vectors = functional.embedding(codes, table).movedim(-1, 1)
        if self.training:
            table.data.mul_(0.5)
        return x + (vectors - x).detach(), codes


@pytest.mark.parametrize("layer", [False, True])
def test_a_codebook_that_moves_in_training_mode_stays_as_it_is(layer):
    torch.manual_seed(5)
    model = Layers(Averages(layer)).eval()
    with torch.no_grad():
        expected = model(X)[0]
    adapted, outputs = understood(model)
    assert "cut at its quantizer" in " ".join(adapted.recognised)
    torch.testing.assert_close(outputs["decoder"][0], expected, rtol=0, atol=1e-6)
    # In training mode it does move.
    with torch.no_grad():
        model.train()(X)
        assert not torch.allclose(model.eval()(X)[0], expected, atol=1e-3)


def test_a_decoder_that_sees_the_observation_beside_the_codes_is_refused():
    class Skipping(Layers):
        def forward(self, x):
            return super().forward(x)[0] + 0.1 * x

    torch.manual_seed(0)
    with pytest.raises(ExportError, match="depends on the observation, too, and not on the codes alone"):
        understood(Skipping(QUANTIZERS["vectors and codes"][0]()))


def test_a_label_in_a_table_is_no_quantizer():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.table, self.head = nn.Linear(64, 5), nn.Embedding(3, 5), nn.Linear(5, 64)

        def forward(self, x, label):
            return self.head(self.body(x.flatten(1)) + self.table(label)).view_as(x)

    model, label = Conditional(), torch.tensor([0, 1, 2, 0])
    with unchanged(model), pytest.raises(ExportError, match="no submodule that quantizes"):
        adapt(model, X, Declaration(), conditions={"label": label})


class TwoScales(nn.Module):
    """Codes at two scales in a list, as audio codecs give them; `decode` takes the same list."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv1d(1, 2, 4, 4)
        self.tables = nn.ModuleList([nn.Embedding(16, 3), nn.Embedding(8, 3)])
        self.head = nn.ConvTranspose1d(3, 1, 4, 4)

    def encode(self, x):
        h = (8 * self.body(x).abs()).long()
        return [h[:, 0] % 16, h[:, 1, ::2] % 8]

    def decode(self, codes):
        fine, coarse = (table(level).mT for table, level in zip(self.tables, codes, strict=True))
        return None, self.head(fine + coarse.repeat_interleave(2, -1))


def test_several_integers_are_several_latents_each_with_its_codebook():
    torch.manual_seed(0)
    model, x = TwoScales(), torch.randn(4, 1, 32)
    adapted, outputs = understood(model, x=x)
    signature = adapted.signature
    assert [(latent.name, latent.shape, latent.posterior.codebook) for latent in signature.latents] == [
        ("codes1", (8,), 16),
        ("codes2", (4,), 8),
    ]
    assert [latent.axes for latent in signature.latents] == [("time",), ("time",)]
    assert signature.observation.axes == ("channel", "time")
    with torch.no_grad():
        torch.testing.assert_close(outputs["decoder"][0], model.decode(model.encode(x))[1])
    assert "decode: takes the codes as one list" in adapted.recognised
    assert "decode: item 2 of its answer is the observation, [1, 32]" in adapted.recognised


class Tokens(nn.Module):
    """An answer with fields, one of which holds integers; `ways` says how the codes can be decoded."""

    def __init__(self, way):
        super().__init__()
        self.body, self.table, self.head = nn.Linear(64, 6), nn.Embedding(10, 2), nn.Linear(12, 64)
        self.way = way

    def encode(self, x):
        codes = (4 * self.body(x.flatten(1)).abs()).int() % 10
        if self.way == "row":
            codes = codes.reshape(-1)
        return {"hidden": x, "image_tokens": codes, "loss": x.mean()}

    def decode(self, hidden=None, image_tokens=None):
        if hidden is not None and (self.way != "row" or hidden.is_floating_point()):
            return self.head(hidden)
        codes = hidden if image_tokens is None else image_tokens
        return self.head(self.table(codes).reshape(-1, 12)).view(-1, 1, 8, 8)


class Named(Tokens):
    def decode(self, z):
        return self.head(z.reshape(-1, 12)).view(-1, 1, 8, 8)

    def decode_code(self, code):
        return self.decode(self.table(code))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (lambda: Tokens("keyword"), "decode: takes the codes as image_tokens="),
        (lambda: Tokens("row"), "decode: Tokens.decode"),
        (lambda: Named("method"), "decode: Named.decode_code"),
    ],
)
def test_the_integers_of_an_answer_are_codes_and_the_model_says_how_it_decodes_them(model, line):
    torch.manual_seed(0)
    model = model()
    adapted, outputs = understood(model)
    (latent,) = adapted.signature.latents
    assert (latent.posterior.kind, latent.shape, latent.posterior.codebook) == ("codes", (6,), 10)
    assert line in adapted.recognised
    codes = outputs["encoder"][0]
    with torch.no_grad():
        expected = model.head(model.table(codes).reshape(-1, 12)).view(-1, 1, 8, 8)
    torch.testing.assert_close(outputs["decoder"][0], expected)


def test_codes_that_nothing_decodes_are_refused():
    class Undecoded(Named):
        decode_code = None

    with pytest.raises(
        ExportError, match=r"decode: fails on latents \[4, 6\]: .*; the latents are codes, pass decode="
    ):
        understood(Undecoded("method"))


def test_a_codebook_larger_than_what_decode_takes_is_seen_in_the_tables():
    class Renamed(Named):
        """A table that no name shows, and a misleading number of codes."""

        codebook_size = 11

        def __init__(self):
            super().__init__("method")
            self.rows = nn.Parameter(torch.randn(10, 2))
            del self.table

        def decode_code(self, code):
            return self.decode(self.rows[code])

    (latent,) = understood(Renamed())[0].signature.latents
    assert latent.posterior.codebook == 10


class Spread(nn.Module):
    """encode gives what `give` makes of mu, logvar and a reconstruction."""

    def __init__(self, give):
        super().__init__()
        torch.manual_seed(1)
        self.mu, self.logvar, self.head = nn.Linear(10, 3), nn.Linear(10, 3), nn.Linear(3, 10)
        self.give = give

    def encode(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        return self.give(mu, logvar, self.head(mu))

    def decode(self, z):
        return self.head(z)

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))


@pytest.mark.parametrize(
    ("give", "cut"),
    [
        (lambda mu, logvar, x: (mu, mu, logvar), False),
        (lambda mu, logvar, x: (x, mu, logvar), False),
        (lambda mu, logvar, x: (mu, logvar, torch.exp(0.5 * logvar)), False),
        # Neither of the two says that the other is a second form of it, and forward shows what it draws.
        (lambda mu, logvar, x: (mu, logvar.exp(), logvar), True),
        (lambda mu, logvar, x: (x, mu, logvar, torch.exp(0.5 * logvar)), False),
    ],
)
def test_tensors_that_follow_from_others_are_no_latents(give, cut):
    x = torch.rand(4, 10)
    adapted, outputs = understood(Spread(give), x=x)
    (latent,) = adapted.signature.latents
    assert latent.posterior.kind == "normal"
    assert any("halves of forward" in line for line in adapted.recognised) == cut
    model = Spread(give)
    with torch.no_grad():
        torch.testing.assert_close(outputs["encoder"][0], model.mu(x))
        torch.testing.assert_close(outputs["encoder"][1], model.logvar(x))


def test_two_latents_of_one_shape_stay_two():
    x = torch.rand(4, 10)

    class Twice(Spread):
        def encode(self, x):
            return self.mu(x), self.logvar(x), self.mu(x) + 1, self.logvar(x) - 1

        def decode(self, z1, z2):
            return self.head(z1 + z2)

        def forward(self, x):
            mu1, logvar1, mu2, logvar2 = self.encode(x)
            z1 = mu1 + torch.exp(0.5 * logvar1) * torch.randn_like(mu1)
            return self.decode(z1, mu2 + torch.exp(0.5 * logvar2) * torch.randn_like(mu2))

    assert len(understood(Twice(None), x=x)[0].signature.latents) == 2


def test_an_example_of_another_shape_than_the_model_takes_is_told_so():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 3), nn.Linear(3, 64)

    with pytest.raises(ExportError, match=r"it takes the same flattened; give the example in that shape, \[4, 64\]"):
        understood(Flat(), x=X[:, 0])


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (nn.Conv1d(2, 2, 1), (2, 16), ("channel", "time")),
        (nn.Conv1d(16, 2, 1), (2, 16), ("height", "width")),
        (nn.Conv3d(1, 2, 1), (1, 4, 4, 4), ("channel", "depth", "height", "width")),
        (nn.Linear(16, 16), (2, 16), ("height", "width")),
    ],
)
def test_axes_are_named_as_the_first_layer_treats_them(layer, shape, axes):
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def encode(self, x):
            return x * 2

        def decode(self, z):
            return z * 1.0

    assert understood(Layered(), x=torch.rand(4, *shape))[0].signature.observation.axes == axes


class Padded(nn.Module):
    """A convolution whose paddings are computed of buffers, as codecs of sound do; the model's flag is a buffer too."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 4, 2), nn.ConvTranspose1d(4, 1, 2, 2)
        self.register_buffer("stride", torch.tensor(2))
        self.register_buffer("kernel", torch.tensor(4))
        self.register_buffer("ready", torch.tensor([1.0]))

    def encoder(self, x):
        if not self.ready:
            raise RuntimeError("not initialized")
        total = self.kernel - self.stride
        frames = torch.ceil((x.shape[-1] - self.kernel + total) / self.stride + 1).to(torch.int64) - 1
        extra = frames * self.stride + self.kernel - total - x.shape[-1]
        return self.conv(functional.pad(x, (max(total, extra), extra)))

    def decoder(self, z):
        h = self.head(z)
        return h[..., : h.shape[-1] - (self.kernel - 2 * self.stride)]


def values_that_python_reads(model, x):
    with unchanged(model), torch.no_grad():
        adapted = adapt(model, x, Declaration(posterior="none"))
        return adapted, branch_of(adapted, "encoder")


def test_python_may_read_what_no_input_reaches():
    torch.manual_seed(0)
    model, x = Padded(), torch.randn(3, 1, 16)
    adapted, branch = values_that_python_reads(model, x)
    assert branch is None
    with unchanged(model), torch.no_grad():
        program = torch.export.export(
            adapted.modules["encoder"], (x,), dynamic_shapes=(({0: torch.export.Dim.DYNAMIC},),), strict=False
        )
        torch.testing.assert_close(program.module()(x[:2])[0], model.encoder(x[:2]))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, x: bool(x.sum() > 0),
        lambda model, x: bool(model.ready + x[0, 0, 0] > 0),
        # Changed in place by an input, a buffer is a constant no more.
        lambda model, x: bool(model.ready.copy_(x.sum().reshape(1)) > 0),
    ],
)
def test_a_value_that_an_input_reaches_is_still_seen(change):
    class Branching(Padded):
        def encoder(self, x):
            return super().encoder(x) if change(self, x) else super().encoder(x) * 2

    _, branch = values_that_python_reads(Branching(), torch.rand(3, 1, 16))
    assert "lambda model, x" in branch


def test_the_codecs_of_transformers_say_what_a_bundle_lacks():
    """Classes with the library's names: what a family looks at is their config and their methods."""
    frames = type("EncodecModel", (nn.Module,), {"__module__": "transformers.models.encodec.modeling_encodec"})
    model = frames()
    model.config = SimpleNamespace(normalize=False, chunk_length=None, codebook_size=16)
    source, declaration = declared(model)
    assert source == "transformers EncodecModel"
    assert (declaration.codebook, declaration.latent_axes) == (16, ("level", "time"))
    model.config.normalize = True
    with pytest.raises(ExportError, match="keeps a scale of each chunk beside the codes"):
        declared(model)
    alone = type("ChameleonVQVAE", (nn.Module,), {"__module__": "transformers.models.chameleon"})
    with pytest.raises(ExportError, match="a bundle needs a decoder"):
        declared(alone())


def test_a_smaller_number_that_a_part_gives_is_not_that_of_the_codes():
    class Two(nn.Module):
        n_e = 5

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.book, self.head = nn.Embedding(8, 3), nn.Linear(3, 10)

        def encode(self, x):
            return (x[:, :1] * 3.99).long()

        def decode(self, codes):
            return self.head(self.book(codes)[:, 0])

    adapted, _ = understood(Two(), x=torch.rand(6, 10))
    assert adapted.signature.latent.posterior.codebook == 8
