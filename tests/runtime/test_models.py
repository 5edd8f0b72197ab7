"""The bundles that ship: which, how large, and that their cards say what a card must."""

import re
from pathlib import Path

import pytest

import vae_runtime

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = ["breast-cancer", "digits", "digits-conditional", "mnist", "pictures"]


def test_these_ship():
    assert sorted(path.parent.name for path in MODELS.glob("*/manifest.json")) == SHIPPED


def test_they_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 16 * 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_data_license_and_protocol(name):
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert "License of the weights: Apache-2.0." in card
    assert re.search(r"License of the data: CC", card)
    assert re.search(r"Protocol: [\d,]+ test observations of [\w-]+, binari[sz]ation \w+, 1000 importance", card)
    assert "negative log-likelihood" in card
    assert ("](samples.png)" in card) == (name != "breast-cancer")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_bundle_keeps_held_out_scores_for_p_values(name):
    vae = vae_runtime.load(MODELS / name)
    held_out = vae.manifest.scores
    assert held_out.data.startswith(f"{'digits' if 'digits' in name else name}, test data")
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert f"of {held_out.n:,} held-out observations ({held_out.data})" in card


def test_the_card_of_a_model_of_ones_own_says_its_class_and_classes():
    card = (MODELS / "digits-conditional" / "README.md").read_text(encoding="utf-8")
    assert "those of the class ConditionalVAE" in card
    assert "10 classes: zero, one, two" in card
    assert "a row for each label](samples.png)" in card


def test_the_pictures_are_called_a_showcase_with_each_license():
    card = (MODELS / "pictures" / "README.md").read_text(encoding="utf-8")
    assert "no claim of quality" in card
    assert "squares for test overlap others that were trained on" in card
    for credit in ("grass (linolafett, CC0 1.0)", "rocket (SpaceX, public domain)", "china (danielbuechele, CC BY"):
        assert credit in card
    assert "bits per dimension" in card


def test_the_table_tells_malignant_samples():
    card = (MODELS / "breast-cancer" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"212 malignant from the (\d+) benign test samples: AUROC (0\.\d+) ± (0\.\d+)", card)
    assert int(found[1]) == vae_runtime.load(MODELS / "breast-cancer").manifest.scores.n
    assert float(found[2]) > 0.9
    assert 0 < float(found[3]) < 0.05


def test_the_digits_are_called_a_surrogate_and_mnist_is_not():
    cards = {name: (MODELS / name / "README.md").read_text(encoding="utf-8") for name in SHIPPED}
    assert "surrogate" in cards["digits"]
    assert "surrogate" not in cards["mnist"]
    assert "10000 test observations of mnist, binarization stochastic" in cards["mnist"]
