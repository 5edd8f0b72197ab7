"""The bundles that ship: which, how large, and that their cards say what a card must."""

import re
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = ["digits", "digits-conditional", "mnist"]


def test_these_ship():
    assert sorted(path.parent.name for path in MODELS.glob("*/manifest.json")) == SHIPPED


def test_they_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 12 * 2**20


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_card_says_data_license_and_protocol(name):
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert "License of the weights: Apache-2.0." in card
    assert re.search(r"License of the data: CC BY", card)
    assert re.search(r"Protocol: [\d,]+ test observations of \w+, binarisation \w+, 1000 importance samples", card)
    assert "negative log-likelihood" in card
    assert "](samples.png)" in card


def test_the_card_of_a_model_of_ones_own_says_data_license_and_classes():
    card = (MODELS / "digits-conditional" / "README.md").read_text(encoding="utf-8")
    assert "License of the weights: Apache-2.0." in card
    assert "CC BY 4.0" in card
    assert "10 classes: zero, one, two" in card
    assert "a row for each label](samples.png)" in card


def test_the_digits_are_called_a_surrogate_and_mnist_is_not():
    cards = {name: (MODELS / name / "README.md").read_text(encoding="utf-8") for name in SHIPPED}
    assert "surrogate" in cards["digits"]
    assert "surrogate" not in cards["mnist"]
    assert "10000 test observations of mnist, binarisation stochastic" in cards["mnist"]
