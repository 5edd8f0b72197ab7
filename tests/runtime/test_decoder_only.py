"""Bundles that were exported without an encoder."""

from __future__ import annotations

import numpy as np
import pytest

import vae_runtime
from vae_runtime.bench import bench
from vae_runtime.bundle import open_bundle
from vae_runtime.cli.main import main
from vae_runtime.errors import BundleError
from vae_runtime.packing import pack

REFUSED = {"component": "encoder", "variant": "fp32", "reason": "the model was exported without an encoder"}


@pytest.fixture
def decoder(small_bundle, tmp_path, edit_manifest):
    """A bundle of the small decoder alone, as an export without an encoder writes it."""
    pack(small_bundle(), tmp_path / "decoder", only="decoder")

    def change(document):
        vae = document["additional_metadata"]["vae"]
        del vae["packed_from"]
        vae.update(refused=[REFUSED], must_understand=["refused"])

    edit_manifest(tmp_path / "decoder", change)
    return tmp_path / "decoder"


def test_a_decoder_alone_samples_and_is_verified(decoder):
    vae = vae_runtime.load(decoder)
    assert list(vae.manifest.components) == ["decoder"]
    assert np.array_equal(vae.sample(2, seed=1), vae.prior(2, seed=1))
    assert vae_runtime.verify(decoder).passed


def test_what_needs_an_encoder_says_that_there_was_none(decoder, tmp_path, capsys):
    pack(decoder, tmp_path / "again.zip")
    x = np.zeros((1, 3), np.float32)
    reason = "exported without an encoder, so encode, reconstruct and score are unavailable; export it with its encoder"
    for place in (decoder, tmp_path / "again.zip"):
        vae = vae_runtime.load(place)
        for use in (vae.encode, vae.reconstruct, vae.score, vae.transform):
            with pytest.raises(BundleError, match=reason):
                use(x)
    np.save(tmp_path / "x.npy", x)
    assert main(["encode", str(decoder), str(tmp_path / "x.npy"), "--out", str(tmp_path / "z.npz")]) == 1
    assert reason in capsys.readouterr().err
    assert main(["info", str(decoder)]) == 0
    assert "encoder/fp32                left out: the model was exported without an encoder" in capsys.readouterr().out
    assert "exported without an encoder" in str(bench(decoder, batches=[1], rounds=1))


@pytest.mark.parametrize("missing", [[], [{**REFUSED, "variant": "fp16"}], [{**REFUSED, "component": "decoder"}]])
def test_an_encoder_that_nothing_says_was_missing_is_damage(decoder, edit_manifest, missing):
    edit_manifest(decoder, lambda document: document["additional_metadata"]["vae"].update(refused=missing))
    with pytest.raises(BundleError, match=r"components\.encoder: expected this field, got nothing"):
        open_bundle(decoder)


def test_without_an_encoder_the_decoder_must_be_there(decoder, edit_manifest):
    edit_manifest(decoder, lambda document: document["components"].pop("decoder"))
    with pytest.raises(BundleError, match=r"components\.decoder: expected this field, got nothing"):
        open_bundle(decoder)
