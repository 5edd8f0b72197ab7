"""Observations as pictures, pixel by pixel."""

import io
import sys

import numpy as np
import pytest

from vae_runtime.errors import InputError, VaeError
from vae_runtime.image import grid, pairs, png, require_pillow

LINE = 64


def pictures(*values, shape=(1, 1, 2)):
    return np.stack([np.full(shape, value, np.float32) for value in values])


def opened(content):
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(content))
    image.load()
    return image


def test_a_sheet_is_laid_out_row_by_row_with_lines_between():
    x = np.float32([[[[0, 1]]], [[[1, 0]]], [[[0.2, 0.4]]]])
    wanted = [
        [0, 255, LINE, 255, 0],
        [LINE, LINE, LINE, LINE, LINE],
        [51, 102, LINE, LINE, LINE],
    ]
    for same in (x, x[:, 0]):
        sheet = grid(same, columns=2)
        assert sheet.dtype == np.uint8
        np.testing.assert_array_equal(sheet, wanted)


@pytest.mark.parametrize(
    ("n", "columns", "size"),
    [(1, None, (1, 2)), (4, None, (3, 5)), (5, None, (3, 8)), (5, 1, (9, 2)), (5, 9, (1, 14)), (2, 2, (1, 5))],
)
def test_the_size_of_a_sheet(n, columns, size):
    assert grid(pictures(*[0.5] * n), columns=columns).shape == size


def test_values_are_scaled_from_their_range_and_cut():
    x = np.float32([[[[-3, -1, 0, 1, 7]]]])
    np.testing.assert_array_equal(grid(x, value_range=(-1, 1)), [[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(grid(x, value_range=(0, 1)), [[0, 0, 0, 255, 255]])
    np.testing.assert_array_equal(grid(x), [[0, 51, 76, 102, 255]])
    np.testing.assert_array_equal(grid(np.full_like(x, 7)), [[0, 0, 0, 0, 0]])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_colours_keep_their_place(channels, mode):
    x = np.zeros((2, channels, 4, 6), np.float32)
    for channel in range(channels):
        x[0, channel] = (channel + 1) / 5
    sheet = grid(x, value_range=(0, 1))
    assert sheet.shape == ((4, 13) if channels == 1 else (4, 13, channels))
    np.testing.assert_array_equal(sheet[2, 3], [51, 102, 153, 204][:channels] if channels > 1 else 51)
    np.testing.assert_array_equal(sheet[2, 6], [LINE] * channels if channels > 1 else LINE)
    image = opened(png(sheet, min_side=1))
    assert (image.mode, image.size) == (mode, (13, 4))
    np.testing.assert_array_equal(np.asarray(image), sheet)


@pytest.mark.parametrize("shape", [(2, 64), (2, 2, 8, 8), (2, 5, 8, 8), (2, 0, 8, 8), (2, 1, 8, 8, 8), (2,)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InputError, match=r"^observations: expected pictures, .* write them as \.npy"):
        grid(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 1, 8, 8)])
def test_no_pictures_at_all_are_refused(shape):
    with pytest.raises(InputError, match="expected at least one, got none"):
        grid(np.zeros(shape, np.float32))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_the_row(wrong):
    x = np.zeros((3, 8, 8), np.float32)
    x[2, 3, 4] = wrong
    for call in (lambda: grid(x), lambda: grid(x, value_range=(0, 1)), lambda: pairs(np.zeros_like(x), x)):
        with pytest.raises(InputError, match=r"^observations\[\d\]: expected finite values, got NaN or infinity; "):
            call()
    with pytest.raises(InputError, match=r"^observations\[2\]"):
        grid(x)


def test_pairs_show_each_observation_above_its_reconstruction():
    x, r = pictures(0.0, 0.2, 0.4, shape=(1, 1, 1)), pictures(0.6, 0.8, 1.0, shape=(1, 1, 1))
    sheet = pairs(x, r, columns=2)
    np.testing.assert_array_equal(sheet[::2, ::2], [[0, 51], [153, 204], [102, 0], [255, 0]])
    np.testing.assert_array_equal(pairs(x + 1, r + 1, columns=2), sheet)
    np.testing.assert_array_equal(pairs(x, r, columns=10)[::2, ::2], [[0, 51, 102], [153, 204, 255]])


def test_empty_places_of_pairs_are_as_dark_as_can_be():
    x = pictures(1.0, 1.0, 1.0, shape=(1, 1, 1))
    np.testing.assert_array_equal(
        pairs(x, x, columns=2, value_range=(-1, 1))[::2, ::2], [[255, 255], [255, 255], [255, 0], [255, 0]]
    )


def test_small_pictures_are_enlarged_by_a_whole_factor():
    image = opened(png(np.uint8([[0, 255], [51, 102]]), min_side=256))
    assert image.size == (256, 256)
    assert [image.getpixel(place) for place in ((0, 0), (127, 127), (128, 127), (127, 128), (255, 255))] == [
        0, 0, 255, 51, 102,
    ]  # fmt: skip
    assert opened(png(np.zeros((300, 400), np.uint8), min_side=256)).size == (400, 300)


def test_a_picture_has_the_same_bytes_each_time():
    sheet = grid(pictures(0.1, 0.9))
    assert png(sheet) == png(sheet.copy())


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for use in (require_pillow, lambda: png(np.zeros((2, 2), np.uint8))):
        with pytest.raises(VaeError, match=r"Pillow, .* pip install 'vae-runtime\[image\]', or write \.npy"):
            use()
