"""Tiles give the values of the undivided arrays, and what cannot be divided says why."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
import vae_runtime
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source
from vae_runtime import InputError, noise
from vae_runtime.cli.main import main

AXES = {"axes": ("channel", "height", "width"), "latent_axes": ("channel", "height", "width")}
X = torch.rand(2, 1, 48, 48)


class Local(nn.Module):
    """Convolutions alone: 4 pixels for each latent."""

    def __init__(self, layer=nn.Identity):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.SiLU(), layer(), nn.Conv2d(4, 4, 3, 2, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, 1, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(2, 4, 3, 1, 1), nn.SiLU(), layer(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, 1, 1),
            nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, 1, 1),
        )  # fmt: skip

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)), mean, logvar


class Halving(Local):
    """A decoder that shrinks its latents once more inside, so that borders of tiles must be even."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(2, 4, 2, 2), nn.SiLU(), nn.ConvTranspose2d(4, 1, 8, 8))


class Attention(nn.Module):
    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2).view_as(x)


class Position(nn.Module):
    """Adds to each value its place: no value reaches another, and crops differ all the same."""

    def forward(self, x):
        return x + 0.01 * torch.arange(x.shape[2])[:, None] + 0.01 * torch.arange(x.shape[3])


class Wide(Local):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(
            *(nn.Conv2d(2, 2, 3, 1, 2**k, dilation=2**k) for k in range(5)), nn.ConvTranspose2d(2, 1, 4, 4)
        )


def understood(model, x=X):
    declaration = Declaration(dynamic=("height", "width"), **AXES)
    model = model.eval()
    with unchanged(model):
        return understand_source(model_source(model, declaration, Examples(x), None))


def tiles_of(model, x=X):
    return {tiles.component: tiles for tiles in understood(model, x).signature.tiles}


def test_the_receptive_field_is_measured():
    tiles = tiles_of(Local())
    # Three convolutions at strides of 1, ½ and ¼ of a latent: 1 + 1/2 + 1/4, and so 2 latents on either side.
    assert dict(tiles["decoder"].halo) == {"height": 2, "width": 2}
    assert set(tiles["encoder"].halo.values()) == {2}
    assert dict(tiles_of(Halving())["decoder"].halo) == {"height": 1, "width": 1}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: Local(lambda: nn.GroupNorm(2, 4)), "every answer depends on the whole, by a layer GroupNorm"),
        (lambda: Local(lambda: nn.InstanceNorm2d(4)), "by a layer InstanceNorm2d"),
        (lambda: Local(Attention), "by a layer Attention"),
        (lambda: Local(Position), "height: tiles with the halo differ from the undivided answer"),
        (Wide, "a tile with its halo of 31 is larger than any proven size, 96; an example of"),
    ],
)
def test_what_cannot_be_divided_says_why(model, words):
    tiles = tiles_of(model())["decoder"]
    assert not tiles.halo
    assert words in tiles.reason


class TwoLatents(Local):
    def encode(self, x):
        mean, logvar = super().encode(x)
        return (mean, logvar), (0.5 * mean, logvar - 1)

    def decode(self, first, second):
        return super().decode(first + second)

    def forward(self, x):
        return self.decode(*(m + torch.randn_like(m) * torch.exp(0.5 * v) for m, v in self.encode(x)))


def test_several_latents_are_not_divided():
    tiles = tiles_of(TwoLatents())
    assert {each.reason for each in tiles.values()} == {"there are several latents"}


def test_a_model_without_dynamic_axes_has_no_tiles():
    model = Local().eval()
    with unchanged(model):
        signature = understand_source(model_source(model, Declaration(**AXES), Examples(X), None)).signature
    assert signature.tiles == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_tiling": True, "tile_sample_min_height": 256, "tile_sample_min_width": 128}, ["above 256 × 128, the"]),
        ({"use_tiling": True, "tile_sample_min_size": 512}, ["above 512, the bundle"]),
        ({"use_tiling": True}, ["above some size"]),
        ({"use_tiling": False, "tile_sample_min_size": 512}, []),
    ],
)
def test_a_model_that_blends_tiles_itself_is_noted(settings, words):
    model = Local()
    vars(model).update(settings)
    lines = [line for line in understood(model).recognised if line.startswith("tiles: use_tiling")]
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def exported(model, folder):
    vae_export.export(model.eval(), folder, example=X, dynamic=("height", "width"), formats=("onnx",), **AXES)
    return vae_runtime.load(folder)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return exported(Local(), tmp_path_factory.mktemp("tiles") / "bundle")


@pytest.mark.long
def test_borders_are_multiples_of_what_the_latents_are(tmp_path):
    vae = exported(Halving(), tmp_path / "bundle")
    z = np.random.default_rng(0).normal(size=(1, 2, 24, 18)).astype(np.float32)
    for tile in (4, 24, 40):
        np.testing.assert_allclose(vae.decode(z, tile=tile), vae.decode(z), atol=1e-6)


def test_the_command_takes_tiles(local, tmp_path):
    z = np.random.default_rng(0).normal(size=(1, 2, 20, 20)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    x = tmp_path / "x.npy"
    assert main(["decode", str(local.bundle.path), str(tmp_path / "z.npy"), "--tile", "16", "--out", str(x)]) == 0
    np.testing.assert_allclose(np.load(x), local.decode(z), atol=1e-6)
    mean = tmp_path / "mean.npy"
    assert main(["encode", str(local.bundle.path), str(x), "--tile", "auto", "--out", str(mean)]) == 0
    np.testing.assert_allclose(np.load(mean), local.encode(np.load(x)).mean, atol=1e-6)


@pytest.mark.parametrize("tile", ["auto", 4, 17, 40, 1000, {"height": 24}, {"height": 8, "width": 60}])
def test_tiles_give_the_values_of_the_undivided_arrays(local, tile):
    z = np.random.default_rng(0).normal(size=(2, 2, 23, 19)).astype(np.float32)
    whole = local.decode(z)
    np.testing.assert_allclose(local.decode(z, tile=tile), whole, atol=1e-6)
    x = np.random.default_rng(1).random((2, 1, 92, 76), np.float32)
    q, tiled = local.encode(x), local.encode(x, tile=tile)
    for name in ("mean", "std", "logvar"):
        np.testing.assert_allclose(getattr(tiled, name), getattr(q, name), atol=1e-6)


def test_the_answer_may_lie_where_the_latents_are(local):
    z = np.random.default_rng(0).normal(size=(2, 2, 23, 19)).astype(np.float32)
    expected = local.decode(z, tile=16)
    shared = np.zeros(expected.size, np.float32)
    latents = shared[: z.size].reshape(z.shape)
    latents[...] = z
    assert np.array_equal(local.decode(latents, tile=16, out=shared.reshape(expected.shape)), expected)


def test_tiles_go_beyond_the_proven_sizes(local):
    z = np.random.default_rng(0).normal(size=(1, 2, 61, 30)).astype(np.float32)
    with pytest.raises(InputError, match="height"):
        local.decode(z)
    out = np.empty((1, 1, 244, 120), np.float32)
    assert local.decode(z, tile=32, out=out) is out
    np.testing.assert_allclose(out, local.decode(z, tile=48), atol=1e-6)
    with torch.no_grad():
        expected = Local().eval().decode(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_samples_and_reconstructions_take_tiles(local):
    np.testing.assert_allclose(local.sample(3, seed=7, tile=16), local.sample(3, seed=7), atol=1e-6)
    options = {"seed": 7, "start": 5, "temperature": 0.5, "latent_shape": (2, 20, 18)}
    np.testing.assert_allclose(local.sample(2, **options, tile=32), local.sample(2, **options), atol=1e-6)
    x = np.random.default_rng(1).random((2, 1, 80, 72), np.float32)
    for seed in (None, 3):
        tiled = local.reconstruct(x, seed=seed, start=4 if seed else 0, tile=24)
        np.testing.assert_allclose(tiled, local.reconstruct(x, seed=seed, start=4 if seed else 0), atol=1e-6)


def test_samples_go_beyond_the_proven_sizes(local):
    with pytest.raises(InputError, match="height 61 was not proven"):
        local.sample(1, seed=7, latent_shape=(2, 61, 30))
    x = local.sample(1, seed=7, latent_shape=(2, 61, 30), tile="auto")
    z = noise.normal(7, 0, 1, (2, 61, 30))
    np.testing.assert_allclose(x, local.decode(z, tile=32), atol=1e-6)
    assert local.reconstruct(x, tile=32).shape == x.shape
    with pytest.raises(InputError, match=r"expected \[2, height, width\]"):
        local.sample(1, seed=7, latent_shape=(3, 61, 30), tile="auto")
    for wrong, words in (({"on_device": True}, "tile: on_device leaves"), ({"observe": True}, "observe")):
        with pytest.raises(InputError, match=words):
            local.sample(1, seed=7, tile=32, **wrong)
    # Where each batch of an array on a device begins follows from the sizes alone.
    with pytest.raises(InputError, match="batch_size: on_device decodes x, whose sizes are open, all at once"):
        local.sample(3, seed=7, on_device=True, batch_size=2)


@pytest.fixture
def large(tmp_path):
    """A file of pictures of a size that was not proven."""
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((5, 1, 100, 60), np.float32))
    return tmp_path / "x.npy"


def test_generation_takes_tiles(local, tmp_path, large):
    job = {"seed": 7, "batch_size": 2, "workers": 1, "tile": 32}
    whole = vae_runtime.generate(local.bundle.path, tmp_path / "a", 5, **job | {"tile": None})
    tiled = vae_runtime.generate(local.bundle.path, tmp_path / "b", 5, **job)
    np.testing.assert_allclose(tiled[:], whole[:], atol=1e-6)
    x = np.load(large)
    with pytest.raises(InputError, match=r"x\.npy: row 0: .* height 100 was not proven"):
        vae_runtime.generate(local.bundle.path, tmp_path / "c", reconstruct=large, **job | {"tile": None})
    again = vae_runtime.generate(local.bundle.path, tmp_path / "c", reconstruct=large, **job)
    np.testing.assert_allclose(again[:], local.reconstruct(x, tile=40), atol=1e-6)
    latents = vae_runtime.generate(local.bundle.path, tmp_path / "d", encode=large, **job)
    q = local.encode(x, tile=40)
    np.testing.assert_allclose(latents[:]["mu"], q.mean, atol=1e-6)
    np.testing.assert_allclose(latents[:]["z"], q.sample(seed=7), atol=1e-6)


def test_a_wrong_value_in_a_large_picture_is_named_by_its_row(local, tmp_path, large):
    x = np.load(large)
    x[3, 0, 99, 59] = np.nan
    np.save(large, x)
    with pytest.raises(InputError, match=r"x\.npy: row 3: x.*nan"):
        vae_runtime.generate(local.bundle.path, tmp_path / "s", reconstruct=large, seed=7, workers=1, tile=32)


def test_tiles_are_part_of_the_job(local, tmp_path):
    job = {"seed": 7, "batch_size": 2, "workers": 1}
    vae_runtime.generate(local.bundle.path, tmp_path / "s", 4, **job, tile=32)
    for other in ({"tile": 16}, {"tile": "auto"}, {}):
        with pytest.raises(InputError, match=f"tile: 32 in the folder, {other.get('tile')!r} now"):
            vae_runtime.generate(local.bundle.path, tmp_path / "s", 4, **job, **other)
    vae_runtime.generate(local.bundle.path, tmp_path / "s", 6, **job, tile=32)
    assert vae_runtime.verify_samples(tmp_path / "s", local.bundle.path).passed
    # Jobs without tiles are those of folders that were written before there were any.
    vae_runtime.generate(local.bundle.path, tmp_path / "t", 4, **job)
    assert "tile" not in json.loads((tmp_path / "t" / "job.json").read_text())
    with pytest.raises(InputError, match="tile: None in the folder, 8 now"):
        vae_runtime.generate(local.bundle.path, tmp_path / "t", 4, **job, tile=8)


def test_the_commands_that_sample_take_tiles(local, tmp_path, large):
    bundle, out = str(local.bundle.path), str(tmp_path / "x.npy")
    shape = ["--latent-shape", "2,40,30"]
    assert main(["sample", bundle, "-n", "2", "--seed", "7", *shape, "--tile", "32", "--out", out]) == 0
    np.testing.assert_allclose(np.load(out), local.sample(2, seed=7, latent_shape=(2, 40, 30), tile=32), atol=1e-6)
    latents, beyond = str(tmp_path / "latents.npy"), ["--latent-shape", "2,61,30", "--tile", "32"]
    assert main(["sample", bundle, "-n", "1", "--seed", "7", *beyond, "--latents", latents, "--out", out]) == 0
    np.testing.assert_allclose(np.load(out), local.decode(np.load(latents), tile=32), atol=1e-6)
    assert main(["reconstruct", bundle, out, "--tile", "24", "--out", str(tmp_path / "r.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), local.reconstruct(np.load(out), tile=24), atol=1e-6)
    samples = str(tmp_path / "samples")
    words = ["generate", bundle, "--reconstruct", out, "--out", samples]
    assert main([*words, "--seed", "7", "--tile", "32"]) == 0
    assert main([*words, "--verify"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--verify", "--tile", "32"])


def test_a_halo_that_is_too_small_would_be_seen(local, monkeypatch):
    z = np.random.default_rng(0).normal(size=(1, 2, 20, 20)).astype(np.float32)
    whole = local.decode(z)
    decoder = next(tiles for tiles in local.manifest.tiles if tiles.component == "decoder")
    monkeypatch.setitem(decoder.halo, "height", 0)
    assert np.abs(local.decode(z, tile=16) - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tile": "large"}, 'expected "auto", a size, or sizes of height, width by name'),
        ({"tile": 0}, "tile: expected"),
        ({"tile": {"depth": 8}}, "expected sizes of height, width, got 'depth'"),
        ({"tile": 8, "observe": True}, "observe"),
        ({"tile": 8, "out": np.empty((1, 1, 8, 8), np.float32)}, r"out: expected .* \[1, 1, 80, 80\]"),
    ],
)
def test_wrong_tiles_are_refused(local, arguments, words):
    with pytest.raises(InputError, match=words):
        local.decode(np.zeros((1, 2, 20, 20), np.float32), **arguments)


def test_a_bundle_that_cannot_be_divided_says_so():
    vae = vae_runtime.load("models/digits")
    with pytest.raises(InputError, match="tile: the decoder cannot be divided: no axis of the bundle is dynamic"):
        vae.decode(vae.prior(1, seed=0), tile="auto")


# Tiles that are blended.


@pytest.fixture(scope="module")
def autoencoder():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=2, sample_size=16,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def blended(autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blended") / "bundle"
    vae_export.export(autoencoder, folder, example=torch.rand(2, 3, 16, 16), formats=("onnx",))
    return vae_runtime.load(folder)


@pytest.mark.long
@pytest.mark.parametrize("size", [(23, 20), (8, 12), (9, 8), (8, 8), (6, 31)])
@torch.no_grad()
def test_blended_tiles_are_those_of_diffusers(autoencoder, blended, size):
    """Its tiles have 16 pixels, as its configuration says; arrays of that size or less are undivided."""
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, *size)).astype(np.float32))
    whole = autoencoder.decode(z).sample
    x = whole[:, :3].clamp(-1, 1)
    autoencoder.enable_tiling()
    try:
        expected, q = autoencoder.decode(z).sample.numpy(), autoencoder.encode(x).latent_dist
    finally:
        autoencoder.disable_tiling()
    tiles = {"tile": 16, "tile_blend": True}
    np.testing.assert_allclose(blended.decode(z.numpy(), **tiles), expected, atol=2e-5)
    p = blended.encode(x.numpy(), **tiles)
    for name in ("mean", "std", "logvar"):
        np.testing.assert_allclose(getattr(p, name), getattr(q, name).numpy(), atol=2e-5)
    if max(size) > 8:
        assert np.abs(whole.numpy() - expected).max() > 1e-2
        assert np.abs(blended.decode(z.numpy(), tile=16, tile_blend=0.5) - expected).max() > 1e-2


def test_tiles_are_blended_on_request_alone(blended):
    z = np.zeros((1, 2, 12, 12), np.float32)
    for tiles, words in (
        ({"tile": 16}, "by a layer GroupNorm; .* leave tile out, or add `tile_blend`"),
        ({"tile_blend": True}, "tile_blend: expected a `tile` to blend, got none"),
        *(
            (
                {"tile": tile, "tile_blend": blend},
                f'tile: expected "auto", a size, or sizes of height, width by name, got {got}',
            )
            for blend in (True, 0.2)
            for tile, got in (({}, "none; name"), (True, "True"), ([8, 8], r"\[8, 8\]"), ("64x", "'64x'"))
        ),
        ({"tile": {"height": "8"}, "tile_blend": True}, "tile: height: expected an integer, got '8'"),
        ({"tile": 16, "tile_blend": 0.7}, "tile_blend: expected a number from 0.01 to 0.5, got 0.7"),
        ({"tile": 64, "tile_blend": True}, "tile: height: expected a proven size, 2 … 32, got 64"),
        ({"tile": {"height": 16, "width": 1}, "tile_blend": True}, "tile: width: expected a proven size, .* got 1"),
        ({"tile": "auto", "tile_blend": True, "observe": True}, "observe: expected with undivided answers"),
    ):
        with pytest.raises(InputError, match=words):
            blended.decode(z, **tiles)
    with pytest.raises(InputError, match=r"tile: the encoder cannot be divided: .* by a layer GroupNorm"):
        blended.reconstruct(np.zeros((1, 3, 24, 24), np.float32), tile=16)


def test_exact_tiles_are_never_blended(local):
    z = np.random.default_rng(0).normal(size=(1, 2, 20, 20)).astype(np.float32)
    assert np.array_equal(local.decode(z, tile=16, tile_blend=True), local.decode(z, tile=16))


def test_generation_and_commands_blend_tiles(blended, tmp_path):
    x = np.random.default_rng(1).random((3, 3, 40, 26), np.float32)
    np.save(tmp_path / "x.npy", x)
    tiles = {"tile": 16, "tile_blend": True}
    expected = blended.reconstruct(x, **tiles)
    job = {"reconstruct": tmp_path / "x.npy", "seed": 7, "batch_size": 2, "workers": 1}
    again = vae_runtime.generate(blended.bundle.path, tmp_path / "s", **job, **tiles)
    np.testing.assert_allclose(again[:], expected, atol=1e-5)
    assert json.loads((tmp_path / "s" / "job.json").read_text())["tile_blend"] is True
    with pytest.raises(InputError, match=r"tile_blend: True in the folder, 0\.5 now"):
        vae_runtime.generate(blended.bundle.path, tmp_path / "s", **job, tile=np.int64(16), tile_blend=0.5)
    command = ["reconstruct", str(blended.bundle.path), str(tmp_path / "x.npy"), "--out", str(tmp_path / "r.npy")]
    assert main([*command, "--tile", "16", "--tile-blend"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), expected, atol=1e-5)
    assert main([*command, "--tile", "16"]) == 1
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--tile-blend"])


def test_a_refusal_names_the_flag(blended, tmp_path, capsys):
    np.save(tmp_path / "z.npy", np.zeros((1, 2, 12, 12), np.float32))
    command = ["decode", str(blended.bundle.path), str(tmp_path / "z.npy"), "--out", str(tmp_path / "x.npy")]
    assert main([*command, "--tile", "16"]) == 1
    assert "or add --tile-blend for tiles" in capsys.readouterr().err
