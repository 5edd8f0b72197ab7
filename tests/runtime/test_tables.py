"""Tables: observations as rows of named columns."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import vae_runtime
from vae_runtime.cli.main import main
from vae_runtime.errors import BundleError, InputError
from vae_runtime.tables import csv_of

MODES = {"kind": "modes", "means": [10.0, -3.25], "scales": [4.0, 0.5]}
HOSTILE = ["=1+1", 'a,"b"', "line\nbreak\r", "'", "", None]


@pytest.fixture
def tabular(small_bundle, edit_manifest):
    """Write the small bundle, whose observations of 3 values are its latents, with a table."""

    def write(*columns):
        folder = small_bundle()
        edit_manifest(folder, lambda document: document["additional_metadata"]["vae"].update(table=list(columns)))
        return folder

    return write


X = np.array([[0.5, 2, 1], [-0.25, 1, 1], [7, 0, 1], [-7, -2, -1]], np.float32)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (None, [12.0, 9.0, -2.75, -3.75]),
        ("nearest", [12, 9, -3, -4]),
        ("zero", [12, 9, -2, -3]),
    ],
)
def test_numbers_are_in_the_first_mode_with_the_largest_value(tabular, rounding, expected):
    column = {"name": "n", **MODES} | ({"rounding": rounding} if rounding else {})
    columns = vae_runtime.to_table(vae_runtime.load(tabular(column)), X)
    assert columns["n"].tolist() == expected
    assert columns["n"].dtype == (np.float64 if rounding is None else np.int64)


@pytest.mark.parametrize(
    ("categories", "dtype"),
    [
        (["u", "v", None], object),
        ([True, False, True], np.bool_),
        ([3, 5, 9], np.int64),
        ([3, 5, 2**63], object),
        ([0.5, 1.5, None], np.float64),
        (["1", 1, True], object),
    ],
)
def test_categories_keep_their_types(tabular, categories, dtype):
    column = {"name": "c", "kind": "categories", "categories": categories}
    x = [[0, 1.0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0]]
    values = vae_runtime.to_table(vae_runtime.load(tabular(column)), x)["c"]
    assert values.dtype == dtype
    expected = [np.nan if each is None and dtype is np.float64 else each for each in categories]
    np.testing.assert_array_equal(values, np.array([expected[index] for index in (1, 0, 2, 0)], dtype))


def test_columns_share_an_observation_in_order(tabular):
    first = {"name": "a", "kind": "categories", "categories": ["only"]}
    second = {"name": "b", "kind": "modes", "means": [0], "scales": [1]}
    columns = vae_runtime.to_table(vae_runtime.load(tabular(first, second)), [[9.0, 0.25, 5.0]])
    assert list(columns) == ["a", "b"]
    assert (columns["a"].tolist(), columns["b"].tolist()) == (["only"], [0.25])


def test_the_command_writes_csv_that_other_programs_read(tabular, tmp_path, capsys):
    name = 'in "quotes",\nand = lines'
    folder = tabular({"name": name, "kind": "categories", "categories": HOSTILE[:3]})
    assert main(["sample", str(folder), "-n", "9", "--seed", "1", "--out", str(tmp_path / "x.csv")]) == 0
    vae = vae_runtime.load(folder)
    expected = vae_runtime.to_table(vae, vae.sample(9, seed=1))[name].tolist()
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [[name], *([value] for value in expected)]
    assert len(set(expected)) > 1
    capsys.readouterr()
    np.save(tmp_path / "z.npy", vae.prior(9, seed=1))
    assert main(["decode", str(folder), str(tmp_path / "z.npy"), "--out", str(tmp_path / "y.csv")]) == 0
    assert (tmp_path / "y.csv").read_bytes() == (tmp_path / "x.csv").read_bytes()
    assert main(["info", str(folder)]) == 0
    assert "(3 categories)" in capsys.readouterr().out


def test_every_field_of_csv_is_escaped():
    columns = {name or "empty": np.array(HOSTILE, object) for name in HOSTILE} | {"n": np.array([np.nan, *range(5)])}
    lines = list(csv.reader(csv_of(columns).decode().splitlines(keepends=True)))
    assert lines[0] == list(columns)
    assert [line[0] for line in lines[1:]] == [value or "" for value in HOSTILE]
    assert [line[-1] for line in lines[1:]] == ["", "0.0", "1.0", "2.0", "3.0", "4.0"]


def test_a_bundle_without_a_table_has_no_csv(small_bundle, tmp_path, capsys):
    folder = small_bundle()
    with pytest.raises(InputError, match="to_table: expected a bundle with a table, got small, which has none"):
        vae_runtime.to_table(vae_runtime.load(folder), X)
    assert main(["sample", str(folder), "--out", str(tmp_path / "x.csv")]) == 1
    assert "x.csv: expected a bundle with a table" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_table_of_another_width_is_damage(tabular):
    folder = tabular({"name": "c", "kind": "categories", "categories": ["a", "b"]})
    with pytest.raises(BundleError, match=r"table: expected columns of \[3\] values, the decoder's, got 2"):
        vae_runtime.load(folder)
    broken = tabular({"name": "c", "kind": "modes", "means": [1, 2], "scales": [0, 1]})
    with pytest.raises(BundleError, match=r"table\[0\]\.scales\[0\]: expected a positive number, got 0"):
        vae_runtime.load(broken)
