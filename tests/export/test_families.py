"""What is known of other libraries' models, held against the libraries themselves, in eager PyTorch."""

import dataclasses
import inspect
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal
from zoo.models import ENTRIES

from vae_export.errors import ExportError
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.families.registry import family_of, object_data
from vae_export.understand.inner import module_of
from vae_export.understand.reading import second_to

# Third parties' own deprecations, at import and in their layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

KNOWN = [
    pytest.param(entry, id=str(entry), marks=[pytest.mark.slow] if entry.slow else [])
    for entry in ENTRIES
    if entry.library and not entry.expect
]
# What these do shows their meaning.
NEED_NO_FAMILY = {
    *("transformers: DacModel", "transformers: MimiModel", "transformers: JanusVQVAE", "monai: AutoEncoder"),
    *("monai: AutoencoderKL, 2-D", "monai: AutoencoderKL, 3-D", "monai: VQVAE", "monai: VQVAE, 3-D"),
}


def needs_no_family(entry):
    return entry.family in ("lightning", "snac", "vector-quantize-pytorch") or str(entry) in NEED_NO_FAMILY


def needs(library):
    return pytest.importorskip(library, reason=f"{library} is not installed; `make zoo` has it")


def take(function, value, conditions):
    """Call a family's function with those of the conditions that it takes."""
    names = inspect.signature(function).parameters
    with torch.no_grad():
        return function(value, **{name: tensor for name, tensor in conditions.items() if name in names})


def mean_of(output):
    """The mean out of whatever a library gives."""
    if isinstance(output, (dict, tuple)):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, torch.Tensor) else output.mean


def compare(entry, dtype=torch.float32):
    """The largest differences between a family's encode and decode and the library's own; `export` uses float32."""
    model, arguments = entry.make()
    _, known = family_of(module_of(model).to(dtype))
    x, conditions = arguments["example"].to(dtype), arguments.get("conditions", {})
    encode, decode = (getattr(model, each) if isinstance(each, str) else each for each in (known.encode, known.decode))
    latent = mean_of(take(encode, x, conditions))
    with torch.no_grad():
        expected = mean_of(entry.encode(model, x, conditions)), mean_of(entry.decode(model, (latent,), conditions))
    found = latent, mean_of(take(decode, latent, conditions))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    assert known.posterior != "codes" or latent.dtype == torch.int64
    return [float((a.double() - b.double()).abs().max()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("entry", KNOWN)
def test_computes_what_the_library_computes(entry):
    for library in (entry.library, *entry.more_libraries):
        needs(library)
    if needs_no_family(entry):
        assert family_of(module_of(entry.make()[0])) is None
        return
    # The straight-through estimator of vector-quantized models rounds once more than a look-up does.
    # Another order of the same sums may show in float32, and does not in float64.
    assert max(compare(entry)) <= 1e-6 or max(compare(entry, torch.float64)) <= 1e-12


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.name in ("AutoencoderKL", "VAE")], ids=str)
def test_the_comparison_can_fail(entry):
    needs(entry.library)
    biased = dataclasses.replace(entry, encode=lambda *given: mean_of(entry.encode(*given)) + 1e-5)
    assert max(compare(biased)) > 1e-6
    assert max(compare(biased, torch.float64)) > 1e-12


def pythae_model(name, config, **options):
    models = needs("pythae.models")
    torch.manual_seed(0)
    return getattr(models, name)(getattr(models, config)(input_dim=(1, 6, 6), latent_dim=4, **options)).eval()


NORMAL = [
    ("VAE", "VAEConfig"), ("BetaVAE", "BetaVAEConfig"), ("BetaTCVAE", "BetaTCVAEConfig"),
    ("DisentangledBetaVAE", "DisentangledBetaVAEConfig"), ("INFOVAE_MMD", "INFOVAE_MMD_Config"),
    ("VAMP", "VAMPConfig"), ("Adversarial_AE", "Adversarial_AE_Config"), ("VAEGAN", "VAEGANConfig"),
    ("HVAE", "HVAEConfig"), ("RHVAE", "RHVAEConfig"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), NORMAL)
def test_pythae_posterior_is_the_one_that_forward_draws_from(name, config):
    model = pythae_model(name, config)
    _, known = family_of(model)
    x = torch.rand(5, 1, 6, 6)
    torch.manual_seed(1)
    output = model({"data": x})
    torch.manual_seed(1)
    mean, second = known.encode(x)
    z = mean + second_to(known.posterior, second)[1] * torch.randn_like(mean)
    drawn = output.get("z0", output.z)
    torch.testing.assert_close(z, drawn, rtol=0, atol=1e-6)
    torch.testing.assert_close(known.decode(output.z), output.recon_x.reshape_as(x), rtol=0, atol=1e-6)
    wrong = "logvar" if known.posterior == "softplus" else "std"
    mistaken = mean + second_to(wrong, second.abs())[1] * torch.ones_like(mean)
    assert not torch.allclose(mistaken, drawn, atol=1e-2)


def test_hvae_takes_a_softplus_for_its_standard_deviation():
    assert family_of(pythae_model("HVAE", "HVAEConfig"))[1].posterior == "softplus"
    assert family_of(pythae_model("VAE", "VAEConfig"))[1].posterior == "logvar"


@pytest.mark.parametrize("name", ["VAE", "HVAE"])
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_pythae_likelihood_is_the_loss_up_to_a_constant(name, loss):
    model = pythae_model(name, f"{name}Config", reconstruction_loss=loss)
    _, known = family_of(model)
    xs = torch.rand(2, 3, 1, 6, 6).round()
    z = torch.randn(3, 4)
    with torch.no_grad():
        mean, raw = known.decode(z), model.decoder(z)["reconstruction"]
    if name == "HVAE":
        losses = [-model._log_p_x_given_z(raw, x) for x in xs]
    else:
        # With this posterior there is no divergence from the prior in the loss.
        zeros = torch.zeros(1, 4)
        losses = [
            torch.stack([model.loss_function(r[None], o[None], zeros, zeros, zeros)[1] for r, o in zip(raw, x)])  # noqa: B905
            for x in xs
        ]
    likelihood = Normal(mean, known.scale) if known.likelihood == "gaussian" else Bernoulli(mean)
    own = [-likelihood.log_prob(x).flatten(1).sum(1) for x in xs]
    torch.testing.assert_close(own[0] - own[1], losses[0] - losses[1], rtol=1e-4, atol=1e-3)
    assert (known.likelihood, known.scale) == (("gaussian", 1.0) if loss == "mse" else ("bernoulli", None))


@pytest.mark.parametrize(
    ("name", "config"), [("AE", "AEConfig"), ("WAE_MMD", "WAE_MMD_Config"), ("VQVAE", "VQVAEConfig")]
)
def test_pythae_scale_of_a_squared_error_without_a_half(name, config):
    options = {"reconstruction_loss_scale": 3.0} if name == "WAE_MMD" else {}
    model = pythae_model(name, config, **options)
    _, known = family_of(model)
    error = 2.0
    weight = options.get("reconstruction_loss_scale", 1.0)
    own = -Normal(0.0, known.scale).log_prob(torch.tensor([error, 0.0]))
    assert float(own[0] - own[1]) == pytest.approx(weight * error**2)


def test_pythae_sphere(monkeypatch):
    model = pythae_model("SVAE", "SVAEConfig")
    _, known = family_of(model)
    x = torch.rand(5, 1, 6, 6)
    seen = []
    monkeypatch.setattr(model, "_sample_von_mises", lambda loc, concentration: seen.append(loc) or loc)
    output = model({"data": x})
    direction = known.encode(x)
    torch.testing.assert_close(direction, seen[0], rtol=0, atol=0)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(known.decode(direction), output.recon_x, rtol=0, atol=0)
    assert (known.posterior, known.prior) == ("none", "sphere")
    # A concentration of 1, the min that the library gives, is the nearest to the prior that it assumes:
    # the divergence falls to 0 where the posterior becomes uniform on the sphere.
    divergences = [float(model._compute_kl(3, torch.tensor([[k]]))) for k in (1e-3, 1.0, 10.0)]
    assert divergences == sorted(divergences)
    assert divergences[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("name", "config"), [("VAE_LinNF", "VAE_LinNF_Config"), ("VAE_IAF", "VAE_IAF_Config")])
def test_pythae_flows_encode_the_mean_of_their_base(name, config, monkeypatch):
    model = pythae_model(name, config)
    _, known = family_of(model)
    x = torch.rand(5, 1, 6, 6)
    monkeypatch.setattr(model, "_sample_gauss", lambda mu, std: (mu, torch.zeros_like(mu)))
    output = model({"data": x})
    torch.testing.assert_close(known.encode(x), output.z, rtol=0, atol=1e-6)
    assert not torch.allclose(known.encode(x), model.encoder(x).embedding, atol=1e-3)
    assert (known.posterior, known.prior) == ("none", "normal")


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_pythae_codes(ema, flat):
    models = needs("pythae.models")
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 2, 2)

        def forward(self, x):
            h = self.layer(x)
            return ModelOutput(embedding=h.flatten(1) if flat else h)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layer = nn.ConvTranspose2d(3, 1, 2, 2)

        def forward(self, z):
            return ModelOutput(reconstruction=self.layer(z.reshape(-1, 3, 3, 2)))

    torch.manual_seed(0)
    config = models.VQVAEConfig(input_dim=(1, 6, 4), latent_dim=18, num_embeddings=16, use_ema=ema)
    model = models.VQVAE(config, Encoder(), Decoder()).eval()
    book = model.quantizer.embeddings if ema else model.quantizer.embeddings.weight
    book.data.normal_()
    # Wide enough that the embeddings are near to several codes.
    model.encoder.layer.weight.data.mul_(8)
    _, known = family_of(model)
    x = torch.randn(5, 1, 6, 4)
    with torch.no_grad():
        output, codes = model({"data": x}), known.encode(x)
        assert codes.shape == ((5, 18) if flat else (5, 3, 2))
        assert torch.equal(codes.flatten(), output.quantized_indices.flatten())
        assert len(codes.unique()) > 3
        torch.testing.assert_close(known.decode(codes), output.recon_x, rtol=0, atol=1e-6)
        assert not torch.allclose(known.decode(codes.flip(-1)), output.recon_x, atol=1e-3)
    assert (known.posterior, known.codebook) == ("codes", 16)


def small_kl(**config):
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8, **config).eval()


@pytest.mark.parametrize("quant", [True, False])
def test_autoencoder_kl_with_every_kind_of_convolution_and_clamp(quant):
    model = small_kl(use_quant_conv=quant, use_post_quant_conv=quant)
    with torch.no_grad():
        last = model.quant_conv if quant else model.encoder.conv_out
        last.weight[4:].mul_(500)
    _, known = family_of(model)
    x = 2 * torch.rand(3, 3, 16, 16) - 1
    with torch.no_grad():
        (mean, logvar), q = known.encode(x), model.encode(x).latent_dist
        torch.testing.assert_close(known.decode(mean), model.decode(mean).sample, rtol=0, atol=0)
    assert torch.equal(mean, q.mean)
    assert torch.equal(logvar, q.logvar)
    assert (float(logvar.min()), float(logvar.max())) == (-30.0, 20.0)


def test_tiles_and_slices_are_left_out():
    model = small_kl()
    _, known = family_of(model)
    x = 2 * torch.rand(2, 3, 24, 24) - 1
    with torch.no_grad():
        whole = known.encode(x)[0]
        model.enable_slicing()
        torch.testing.assert_close(model.encode(x).latent_dist.mean, whole, rtol=0, atol=1e-5)
        model.enable_tiling()
        assert not torch.allclose(model.encode(x).latent_dist.mean, whole, atol=1e-3)
        torch.testing.assert_close(known.encode(x)[0], whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"scaling_factor": 0.5}, 0.5, 0.0),
        ({"scaling_factor": 0.5, "shift_factor": 0.1}, 0.5, 0.1),
        (
            {"scaling_factor": 0.5, "latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (1.0, 2.0, 4.0, 8.0)},
            [0.5, 0.25, 0.125, 0.0625],
            [1.0, 2.0, 3.0, 4.0],
        ),
    ],
)
def test_scale_and_shift_are_those_of_the_pipelines(config, scale, shift):
    _, known = family_of(small_kl(**config))
    assert (known.latent_scale, known.latent_shift) == (scale, shift)


def test_oobleck_has_the_standard_deviation_of_the_library():
    entry = next(entry for entry in ENTRIES if entry.name == "AutoencoderOobleck")
    needs("diffusers")
    model, arguments = entry.make()
    _, known = family_of(model)
    with torch.no_grad():
        _, std = known.encode(arguments["example"])
        torch.testing.assert_close(std, model.encode(arguments["example"]).latent_dist.std, rtol=0, atol=0)
    assert known.posterior == "std"


@pytest.mark.parametrize("norm_type", ["group", "spatial"])
def test_vq_model_decodes_what_its_quantizer_gives(norm_type):
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(32,), latent_channels=4, num_vq_embeddings=32, norm_type=norm_type
    ).eval()
    model.quantize.embedding.weight.data.normal_()
    _, known = family_of(model)
    x = 2 * torch.rand(2, 3, 16, 16) - 1
    with torch.no_grad():
        torch.testing.assert_close(known.decode(known.encode(x)), model(x).sample, rtol=0, atol=1e-5)
    assert known.codebook == 32


SCVI = [
    {},
    {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    {"gene_likelihood": "nb", "dispersion": "gene-label"},
    {"gene_likelihood": "poisson", "dispersion": "gene-cell"},
    {"gene_likelihood": "nb", "dispersion": "gene-cell", "log_variational": False},
    {"encode_covariates": True, "n_continuous_cov": 2, "n_cats_per_cov": [3, 4], "n_layers": 2},
    {"encode_covariates": True, "batch_representation": "embedding", "n_cats_per_cov": [3]},
    {"latent_distribution": "ln"},
    {"use_size_factor_key": True, "n_batch": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", SCVI, ids=str)
def test_scvi_is_its_inference_and_generative(options):
    scvi = needs("scvi.module")
    torch.manual_seed(0)
    options = {"n_batch": 3, "n_labels": 2, **options}
    module = scvi.VAE(n_input=12, n_hidden=16, n_latent=4, **options).eval()
    x = torch.poisson(torch.full((6, 12), 4.0))
    batch, y = torch.arange(6) % options["n_batch"], torch.arange(6) % 2
    further = {}
    if "n_continuous_cov" in options:
        further["cont_covs"] = torch.randn(6, 2)
    if "n_cats_per_cov" in options:
        further["cat_covs"] = torch.stack([torch.arange(6) % n for n in options["n_cats_per_cov"]], dim=1)
    size = torch.log(x.sum(1, keepdim=True))
    sized = {"size_factor" if "use_size_factor_key" in options else "library": size}
    name, known = family_of(module)
    assert name == "scvi-tools VAE"
    with torch.no_grad():
        q = module.inference(x, batch[:, None], **further)["qz"]
        mean, var = known.encode(x, batch_index=batch, **further)
        torch.testing.assert_close(mean, q.loc, rtol=0, atol=0)
        torch.testing.assert_close(var, q.scale**2)
        z = module.z_encoder.z_transformation(mean)
        px = module.generative(z, size, batch[:, None], **further, y=y[:, None], size_factor=size)["px"]
        answer = known.decode(mean, batch_index=batch, y=y, **further, **sized)
    expected = {"px_rate": "rate" if options.get("gene_likelihood") == "poisson" else "mu", "px_scale": "scale"}
    if options.get("gene_likelihood") != "poisson":
        expected["px_r"] = "theta"
    if "gene_likelihood" not in options:
        expected["px_dropout"] = "zi_logits"
    assert set(answer) == set(expected)
    assert next(iter(answer)) == "px_rate"
    for name, attribute in expected.items():
        truth = getattr(px, attribute).expand(6, 12)
        torch.testing.assert_close(answer[name], truth, rtol=1e-6, atol=1e-6)
    with pytest.raises(ExportError, match=r"scvi-tools VAE: expected the condition (library|size_factor)"):
        known.decode(mean, batch_index=batch, y=y)


@pytest.mark.parametrize("observed", [True, False])
def test_scvi_with_a_latent_library_size_takes_it_as_a_condition_and_says_so(observed):
    further = {"use_observed_lib_size": observed, "gene_likelihood": "zinb", "batch_representation": "one-hot"}
    _, known = family_of(stand_in("scvi.module._vae", "VAE", **further))
    assert ("is a condition of the decoder" in (known.posterior_reason or "")) is not observed


class Manager:
    """What scvi-tools' manager of a data set is asked for."""

    def __init__(self, **registry):
        self.data_registry = registry

    def get_from_registry(self, key):
        return self.data_registry[key]

    def get_state_registry(self, key):
        return types.SimpleNamespace(categorical_mapping=np.array([f"{key} {number}" for number in range(2)], object))


COUNTS = np.arange(70 * 3, dtype=np.float64).reshape(70, 3) + 1
COLUMN = np.arange(70)[:, None] % 2


@pytest.mark.parametrize(
    ("module", "registry", "expected"),
    [
        ("VAE", {}, {"batch_index", "library"}),
        ("LDVAE", {"extra_continuous_covs": COUNTS}, {"batch_index", "library", "cont_covs"}),
        ("SCANVAE", {"dispersion": "gene-label"}, {"batch_index", "library", "y"}),
        ("VAE", {"use_size_factor_key": True, "size_factor": COLUMN + 1}, {"batch_index", "size_factor"}),
        ("VAE", {"n_batch": 1, "extra_categorical_covs": COLUMN}, {"library", "cat_covs"}),
        ("VAEC", {"n_batch": 1}, {"library", "y"}),
        ("TOTALVAE", {"proteins": COUNTS}, {"batch_index", "library", "proteins"}),
    ],
)
def test_a_trained_object_of_scvi_gives_its_data(module, registry, expected):
    settings = {"n_batch": 2, "use_size_factor_key": False, "dispersion": "gene"}
    settings |= {name: registry.pop(name) for name in list(registry) if name in settings}
    holder = types.SimpleNamespace
    manager = Manager(X=COUNTS, batch=COLUMN, labels=COLUMN, **registry)
    model = stand_in("scvi.model", "Trained", bases=(holder,), module=stand_in("scvi.module", module, **settings))
    assert object_data(model, None) is None
    model.adata_manager = manager
    own = object_data(model, None)
    assert own.conditions.keys() == expected
    assert own.example.shape == (64, 3)
    assert own.example.dtype == torch.float32
    assert {len(tensor) for tensor in own.conditions.values()} == {64}
    given = object_data(model, torch.tensor(COUNTS[:5], dtype=torch.float32))
    if "library" in expected:
        total = torch.tensor(COUNTS[:5].sum(1, keepdims=True), dtype=torch.float32)
        own_size = total if module in ("VAEC", "TOTALVAE") else total.log()
        torch.testing.assert_close(given.conditions["library"], own_size)
    for name, key in (("batch_index", "batch"), ("y", "labels")):
        if name in expected:
            assert given.class_names[name] == [f"{key} 0", f"{key} 1"]
            assert given.conditions[name].tolist() == [0, 1, 0, 1, 0]
    # A class of the user's own that derives from the library's has the same data.
    derived = type("Mine", (type(model.module),), {"__module__": "mine"})()
    vars(derived).update(vars(model.module))
    model.module = derived
    assert object_data(model, None).conditions.keys() == expected
    # The same object from another package is not known.
    other = stand_in("mine", "Trained", bases=(holder,), module=model.module, adata_manager=manager)
    assert object_data(other, None) is None


@pytest.mark.parametrize("use_sigmoid", [True, False])
def test_monai_ends_its_decoder_in_a_sigmoid_where_its_forward_does(use_sigmoid):
    members = {
        "encode_forward": lambda self, x: (x, -x),
        "decode_forward": lambda self, z, use_sigmoid=True: torch.sigmoid(z) if use_sigmoid else z,
    }
    model = stand_in("monai.networks.nets", "VarAutoEncoder", members=members, use_sigmoid=use_sigmoid)
    _, known = family_of(model)
    z = torch.randn(2, 3)
    torch.testing.assert_close(known.decode(z), torch.sigmoid(z) if use_sigmoid else z)
    assert (known.posterior, known.prior) == ("logvar", "normal")


class Detector(nn.Module):
    """The module of a pyod detector: its forward takes the logvar within bounds."""

    def __init__(self):
        super().__init__()
        self.logvar_clip = (-1.0, 1.0)
        self.layer = nn.Linear(3, 3)

    def encode(self, x):
        return self.layer(x), 10 * self.layer(x)

    def decode(self, z):
        return 2 * z


def test_a_detector_of_pyod_gives_the_logvar_of_its_loss():
    model = stand_in("pyod.models.vae", "VAEModel", bases=(Detector,))
    name, known = family_of(model)
    with torch.no_grad():
        _, logvar = known.encode(torch.randn(20, 3))
    assert name == "pyod VAEModel"
    assert (float(logvar.min()), float(logvar.max())) == (-1.0, 1.0)
    assert (known.posterior, known.prior, known.likelihood) == ("logvar", "normal", "none")


RAW = np.random.default_rng(0).normal(size=(20, 3)) * [1, 10, 100] + [0, 5, -50]


@pytest.mark.parametrize("standardized", [True, False])
def test_a_detector_of_pyod_standardizes_its_example_and_says_how(standardized):
    statistics = {"X_mean": RAW.mean(0), "X_std": RAW.std(0)} if standardized else {"X_mean": None, "X_std": None}
    module = stand_in("pyod.models.vae", "VAEModel", bases=(Detector,))
    detector = stand_in("pyod.models.vae", "VAE", bases=(types.SimpleNamespace,), model=module, **statistics)
    source = model_source(detector, Declaration(), Examples(RAW, observations=RAW[:8]), None)
    if not standardized:
        assert source.normalisation is None
        torch.testing.assert_close(source.example[:20], torch.tensor(RAW, dtype=torch.float32))
        return
    offset, divisor = (np.array(each) for each in (source.normalisation.offset, source.normalisation.divisor))
    np.testing.assert_allclose(divisor, RAW.std(0) + 1e-8, rtol=0)
    expected = torch.tensor((RAW - offset) / divisor, dtype=torch.float32)
    torch.testing.assert_close(source.example[:20], expected)
    torch.testing.assert_close(source.observations, expected[:8])
    assert "standardized as the VAE does" in source.notes[-1]


# Recognition, without any library.


def stand_in(package, name, bases=(nn.Module,), members=None, **attributes):
    """A model of a class of this name, as if it were from this package."""
    cls = type(name, bases, {"__module__": package, **(members or {})})
    model = cls()
    for key, value in attributes.items():
        setattr(model, key, value)
    return model


def tiny(package="diffusers.models.autoencoders.autoencoder_tiny", name="AutoencoderTiny", **options):
    return stand_in(package, name, config=types.SimpleNamespace(scaling_factor=2.0, shift_factor=None), **options)


def test_recognises_by_library_and_name():
    name, known = family_of(tiny())
    assert name == "diffusers AutoencoderTiny"
    assert (known.posterior, known.latent_scale, known.latent_shift) == ("none", 2.0, 0.0)


@pytest.mark.parametrize("package", ["mine", "diffusers_like.models", "__main__"])
def test_a_name_alone_is_not_enough(package):
    assert family_of(tiny(package)) is None
    assert family_of(tiny(name="Other")) is None


def test_a_class_of_the_users_own_counts_unless_it_replaces_a_method():
    base = type(tiny())
    assert family_of(tiny("mine", "Mine", bases=(base,)))[0] == "diffusers AutoencoderTiny"
    assert family_of(tiny("mine", "Mine", bases=(base,), members={"decode": lambda self, z: z})) is None
    # Another model of the same library, which this version knows nothing of.
    assert family_of(tiny("diffusers.models", "AutoencoderNew", bases=(base,))) is None


def test_a_plain_module_belongs_to_none():
    assert family_of(nn.Linear(2, 2)) is None


def test_codes_that_are_drawn_at_random_are_refused():
    quantize = types.SimpleNamespace(remap="used.npy")
    with pytest.raises(ExportError, match="remap="):
        family_of(stand_in("diffusers.models", "VQModel", quantize=quantize))


def test_no_library_is_imported(python):
    code = (
        "import sys; from vae_export.understand.families.registry import family_of; from torch import nn; "
        "family_of(nn.Linear(2, 2)); "
        "print(sorted({'diffusers', 'pythae', 'scvi'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_check_of_imports_can_fail(python):
    needs("pythae")
    done = python("-W", "ignore", "-c", "import sys, pythae; print(sorted({'pythae'} & set(sys.modules)))")
    assert done.stdout.strip() == "['pythae']", done.stderr
