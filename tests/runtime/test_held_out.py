"""Quantiles of held-out scores, the p-values that they give, and how they come into a bundle."""

import os
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import open_bundle
from vae_runtime.calibration import calibrate
from vae_runtime.cli.main import main
from vae_runtime.errors import BundleError, InputError, VaeError
from vae_runtime.held_out import HeldOut, p_values, quantiles, why_no_p_value


def held_out_of(scores, **fields):
    shares, values = quantiles(np.asarray(scores, np.float64))
    usual = {"kind": "elbo", "seed": 0, "n": len(scores), "data": "numbers", "encoder": "fp32", "decoder": "fp32"}
    return HeldOut(**{**usual, "shares": shares, "values": values, **fields})


def counted(scores, s):
    """The p-value of a score by its definition, from all held-out scores."""
    return (1 + np.count_nonzero(scores <= s)) / (len(scores) + 1)


def test_few_scores_are_all_kept():
    scores = np.array([-3.0, -1.0, -2.0, -2.0])
    assert quantiles(scores) == ((0.25, 0.75, 1.0), (-3.0, -2.0, -1.0))
    p = p_values(held_out_of(scores), np.array([-9.0, -3.0, -2.0, -1.0, 5.0]))
    np.testing.assert_allclose(p, [1 / 5, 2 / 5, 4 / 5, 1, 1])


def test_p_values_are_those_of_all_scores():
    scores = noise.normal(1, 0, 1, (5000,))[0].astype(np.float64)
    held_out = held_out_of(scores)
    assert len(held_out.shares) < 150
    # At the quantiles exactly, and in the low tail closely: the lowest scores are all kept.
    p = p_values(held_out, np.array(held_out.values))
    np.testing.assert_allclose(p, [counted(scores, value) for value in held_out.values])
    lowest = np.sort(scores)[:20]
    np.testing.assert_allclose(p_values(held_out, lowest), [counted(scores, value) for value in lowest])
    asked = np.linspace(scores.min() - 1, scores.max() + 1, 400)
    exact = np.array([counted(scores, s) for s in asked])
    p = p_values(held_out, asked)
    assert np.all(np.diff(p) >= 0)
    assert np.abs(p - exact).max() < 0.006
    low = exact < 0.01
    assert np.abs(p - exact)[low].max() < 6e-4


def test_a_score_that_is_no_number_is_the_lowest():
    p = p_values(held_out_of([1.0, 2.0, 3.0]), np.array([np.nan, -np.inf, np.inf]))
    np.testing.assert_array_equal(p, [0.25, 0.25, 1.0])


def test_p_values_of_the_same_kind_are_uniform_and_of_another_small():
    rows = noise.normal(2, 0, 2, (4000,)).astype(np.float64)
    held_out = held_out_of(rows[0])
    same, other = p_values(held_out, rows[1]), p_values(held_out, rows[1] - 5)
    for threshold in (0.01, 0.05, 0.5):
        error = 4 * np.sqrt(2 * threshold * (1 - threshold) / 4000)
        assert abs(np.mean(same <= threshold) - threshold) < error
    assert np.mean(other <= 0.01) > 0.95


@pytest.fixture
def scored(small_bundle, tmp_path):
    """A bundle known by heart that has held-out scores, and observations like these."""
    folder = tmp_path / "scored"
    x = noise.normal(3, 0, 600, (3,), 9) / 2
    calibrate(small_bundle(), x[:400], out=folder, data="normal numbers")
    return folder, x


def test_calibrate_writes_scores_and_nothing_else(scored, small_bundle):
    folder, _ = scored
    before, after = open_bundle(small_bundle(name="again")), open_bundle(folder)
    held_out = after.manifest.scores
    assert (held_out.kind, held_out.k, held_out.seed, held_out.n) == ("elbo", None, 0, 400)
    assert (held_out.data, held_out.encoder, held_out.decoder) == ("normal numbers", "fp32", "fp32")
    names = {"name": "x", "package_name": "x"}
    assert replace(after.manifest, scores=None, **names) == replace(before.manifest, **names)
    changed = {path for path in after.sums if after.sums[path] != before.sums.get(path)}
    assert after.sums.keys() == before.sums.keys()
    assert changed == {"manifest.json"}
    assert vae_runtime.verify(folder).passed


def test_scores_have_p_values(scored):
    folder, x = scored
    vae = vae_runtime.load(folder)
    s = vae.score(x[400:])
    assert s.p_value_reason is None
    held_out = vae.score(x[:400], seed=0).elbo
    exact = [counted(held_out, elbo) for elbo in s.elbo]
    np.testing.assert_allclose(s.p_value, exact, atol=0.01)
    assert abs(np.mean(s.p_value <= 0.1) - 0.1) < 0.08
    assert vae.score(np.full((4, 3), 6.0)).p_value.max() == 1 / 401


def test_held_out_scores_are_drawn_with_their_seed(small_bundle, scored, tmp_path):
    _, x = scored
    for seed in (0, 3):
        folder = tmp_path / str(seed)
        calibrate(small_bundle(name=f"seed{seed}"), x[:400], seed=seed, out=folder)
        vae = vae_runtime.load(folder)
        assert vae.manifest.scores.seed == seed
        lowest = np.sort(vae.score(x[:400], seed=seed).elbo)[:20]
        np.testing.assert_allclose(vae.manifest.scores.values[:20], lowest)


def test_no_p_values_and_why(scored, small_bundle, tmp_path):
    folder, x = scored
    plain = vae_runtime.load(small_bundle(name="none")).score(x[:2])
    assert plain.p_value is None
    assert "no held-out scores" in plain.p_value_reason
    other = vae_runtime.load(folder).score(x[:2], seed=1)
    assert other.p_value is None
    assert "seed=0, got seed=1" in other.p_value_reason
    calibrate(folder, x, k=4, out=tmp_path / "k")
    vae = vae_runtime.load(tmp_path / "k")
    for k in (None, 5):
        s = vae.score(x[:2], k=k)
        assert s.p_value is None
        assert f"k=4, got k={k}" in s.p_value_reason
    bounds = vae.score(x, k=4, seed=0).log_likelihood
    exact = [counted(bounds, bound) for bound in bounds]
    np.testing.assert_allclose(vae.score(x, k=4).p_value, exact, atol=0.01)


def test_no_p_values_of_another_variant(digits, tmp_path, vae):
    pictures = vae.sample(5, seed=1)
    calibrate(digits, pictures, variant="int8", out=tmp_path / "int8")
    s = vae_runtime.load(tmp_path / "int8").score(pictures)
    assert s.p_value is None
    assert "variant int8, in use is fp32" in s.p_value_reason
    assert vae_runtime.load(tmp_path / "int8", variant="int8").score(pictures).p_value is not None


@pytest.mark.parametrize("component", ["encoder", "decoder"])
def test_either_component_may_be_of_another_variant(component):
    other, in_use = held_out_of([-1.0, 0.0], **{component: "int8"}), {"encoder": "fp32", "decoder": "fp32"}
    assert f"of the {component}'s variant int8, in use is fp32" in why_no_p_value(other, in_use, None, 0)
    assert why_no_p_value(other, in_use | {component: "int8"}, None, 0) is None


def test_the_terms_of_the_reconstruction(scored):
    folder, x = scored
    vae = vae_runtime.load(folder)
    s = vae.score(x[:5], contributions=True)
    assert s.contributions.shape == x[:5].shape
    np.testing.assert_allclose(s.contributions.sum(axis=1), s.reconstruction, rtol=1e-12)
    assert vae.score(x[:5]).contributions is None
    moved = x[:5].copy()
    moved[:, 1] += 4
    # The posterior of this bundle narrows as x grows, so the moved value is seen in its own term alone.
    changed = np.abs(vae.score(moved, contributions=True).contributions - s.contributions).max(axis=0)
    assert changed[1] > 0.1
    assert changed[[0, 2]].max() < 1e-6


def test_calibrate_replaces_a_folder_and_a_zip(small_bundle, tmp_path):
    folder, x = small_bundle(), noise.normal(3, 0, 20, (3,), 9)
    digest = calibrate(folder, x)
    assert open_bundle(folder).digest == digest
    assert calibrate(folder, x) == digest
    zipped = tmp_path / "small.zip"
    vae_runtime.pack(folder, zipped)
    calibrate(zipped, x, seed=3)
    assert open_bundle(zipped).manifest.scores.seed == 3
    assert zipfile.is_zipfile(zipped)
    np.save(tmp_path / "x.npy", x)
    calibrate(zipped, tmp_path / "x.npy", seed=3)
    assert open_bundle(zipped).manifest.scores.data == "x.npy"
    assert sorted(os.listdir(tmp_path)) == sorted({folder.name, "small.zip", "x.npy"})


def test_a_file_is_scored_part_by_part_as_the_array(small_bundle, tmp_path, monkeypatch):
    folder, x, done = small_bundle(), noise.normal(3, 0, 20, (3,), 9), []
    np.save(tmp_path / "x.npy", x)
    digest = calibrate(folder, x, data="numbers", out=tmp_path / "whole")
    monkeypatch.setattr("vae_runtime.calibration._ROWS", 8)
    calibrate(folder, tmp_path / "x.npy", data="numbers", out=tmp_path / "parts", progress=done.append)
    assert done == [8, 16, 20]
    assert open_bundle(tmp_path / "parts").digest == digest


def test_conditions_go_with_the_rows_of_each_part(root, tmp_path, monkeypatch):
    bundle = root / "models" / "digits-conditional"
    labels = np.arange(20) % 10
    x = vae_runtime.load(bundle).sample(20, conditions={"label": labels}, seed=1)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("vae_runtime.calibration._ROWS", 8)
    for name, rows in (("whole", x), ("parts", tmp_path / "x.npy")):
        calibrate(bundle, rows, conditions={"label": labels}, out=tmp_path / name)
    whole, parts = (open_bundle(tmp_path / name).manifest.scores for name in ("whole", "parts"))
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5)


def test_a_bundle_that_is_calibrated_has_no_signature_of_another(small_bundle, tmp_path, capsys):
    folder, x = small_bundle(), tmp_path / "x.npy"
    np.save(x, noise.normal(3, 0, 20, (3,), 9))
    zipped = tmp_path / "small.zip"
    vae_runtime.pack(folder, zipped)
    for bundle, signature in ((folder, folder / "model.sig"), (zipped, tmp_path / "small.zip.sig")):
        signature.write_text("{}")
        assert main(["calibrate", str(bundle), str(x), "--out", str(tmp_path / "other")]) == 0
        assert signature.exists()
        assert f"other: has no signature; that of {bundle} was of other scores" in capsys.readouterr().err
        assert main(["calibrate", str(bundle), str(x)]) == 0
        assert not signature.exists()
        done = capsys.readouterr()
        assert f"{bundle}: has no signature" in done.err
        assert f"{bundle}: no p-value is below 0.0476, 1 / (20 + 1)" in done.out
        shutil.rmtree(tmp_path / "other")


def test_what_cannot_be_calibrated_is_refused_and_stays(small_bundle, codes_bundle, tmp_path):
    folder, x = small_bundle(), noise.normal(3, 0, 20, (3,), 9)
    digest = open_bundle(folder).digest
    with pytest.raises(InputError, match=r"x\[\d+\]: expected finite scores, got "):
        # This decoder gives negative rates for some.
        calibrate(small_bundle("poisson", scale=None, name="counts"), np.ones((200, 3)))
    with pytest.raises(InputError, match="expected at least one"):
        calibrate(folder, x[:0])
    with pytest.raises(InputError, match="seed: expected"):
        calibrate(folder, x[:7], seed=2**53)
    with pytest.raises(InputError, match="expected a bundle that has an ELBO"):
        calibrate(codes_bundle(), np.ones((3, 3)), conditions={"label": 0})
    with pytest.raises(InputError, match=r"^data: expected printable text, got 'a\\nb'"):
        calibrate(folder, x[:7], data="a\nb", out=tmp_path / "lines")
    with pytest.raises(InputError, match=r"^data: expected printable text, got 5"):
        calibrate(folder, x[:7], data=5, out=tmp_path / "lines")
    np.save(tmp_path / "two\nlines.npy", x[:7])
    with pytest.raises(InputError, match=r"^data: expected printable text, got 'two\\nlines.npy'"):
        calibrate(folder, tmp_path / "two\nlines.npy", out=tmp_path / "lines")
    with pytest.raises(VaeError, match="already exists"):
        calibrate(folder, x[:7], out=tmp_path)
    with pytest.raises(InputError, match="outside the bundle"):
        calibrate(folder, x[:7], out=folder / "inside")
    vae_runtime.pack(folder, tmp_path / "decoder", only="decoder")
    with pytest.raises(BundleError, match="expected an encoder and a decoder"):
        calibrate(tmp_path / "decoder", x)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(VaeError, match=r"mine\.txt: is not part of the bundle"):
        calibrate(folder, x[:7])
    (folder / "mine.txt").unlink()
    assert open_bundle(folder).digest == digest
