from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refusal

from vae_export.training.config import DataConfig
from vae_export.training.data.checks import require_range
from vae_export.training.data.dataset import load as load_data
from vae_export.training.data.part import Part, Rows
from vae_export.training.data.split import hashes
from vae_runtime.errors import InputError
from vae_runtime.manifest import Normalisation


def load(source, **fields):
    return load_data(DataConfig(str(source), **fields))


def refused(source, **fields) -> str:
    return refusal(load, source, **fields)


def all_of(part) -> np.ndarray:
    return part.rows(slice(None))


def rows(*parts) -> set[bytes]:
    return {row.tobytes() for part in parts for row in (part if isinstance(part, np.ndarray) else all_of(part))}


def test_digits_are_the_bundled_ones_with_their_provenance():
    digits = load("digits")
    assert digits.shape == (1, 8, 8)
    train = all_of(digits.train)
    assert train.dtype == np.float32
    assert (train.min(), train.max(), digits.unit) == (0, 1, True)
    assert digits.normalisation == Normalisation(0, 16)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1465, 167, 165)
    assert digits.provenance.name == "digits"
    assert digits.provenance.license == "CC BY 4.0"


def test_the_split_follows_the_seed_and_shares_no_observation(digits_npy):
    first, again, other = load(digits_npy), load(digits_npy), load(digits_npy, seed=1)
    parts = [first.train, first.validation, first.test]
    assert len(rows(*parts)) == sum(map(len, parts)) == 300
    for name in ("train", "validation", "test"):
        assert np.array_equal(all_of(getattr(first, name)), all_of(getattr(again, name)))
        assert rows(getattr(first, name)) != rows(getattr(other, name))
    assert first.provenance.digest == other.provenance.digest


@given(validation=st.floats(0, 0.9), test=st.floats(0, 0.8), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_split_has_all_observations_once_in_about_their_shares(digits_npy, validation, test, seed):
    dataset = load(digits_npy, validation_fraction=validation, test_fraction=test, seed=seed)
    parts = [dataset.train, dataset.validation, dataset.test]
    # Six standard deviations of a binomial number.
    assert abs(len(dataset.test) - 300 * test) <= 6 * np.sqrt(300 * test * (1 - test)) + 1
    assert rows(*parts) == rows(np.load(digits_npy) / np.float32(255))
    assert sum(map(len, parts)) == 300


def test_the_part_of_a_row_depends_on_its_values_and_the_seed_alone(tmp_path, digits_npy):
    values = np.load(digits_npy)
    random = np.random.Generator(np.random.PCG64(0))
    order = random.permutation(np.repeat(np.arange(300), random.integers(1, 4, 300)))
    np.save(tmp_path / "more.npy", np.concatenate([values[order][:, :, ::-1], values[order]]))
    few, more = load(digits_npy), load(tmp_path / "more.npy")
    for name in ("train", "validation", "test"):
        assert rows(getattr(few, name)) <= rows(getattr(more, name))
    assert not rows(more.train) & (rows(more.validation) | rows(more.test))
    # The type does not matter, nor a sign that equal numbers may differ in.
    floats = values.astype(np.float64) - 15
    assert (floats == 0).any()
    np.save(tmp_path / "double.npy", floats)
    np.save(tmp_path / "single.npy", np.where(floats == 0, -0.0, floats).astype(">f4"))
    one, other = load(tmp_path / "double.npy"), load(tmp_path / "single.npy")
    assert np.array_equal(one.train.numbers, other.train.numbers)
    assert one.provenance.digest == other.provenance.digest
    # More validation data take nothing from the test data.
    assert rows(load(digits_npy, validation_fraction=0.5).test) == rows(few.test)


def test_the_split_of_known_rows_never_changes():
    """A split that changed would let a run be measured on what it was trained on."""
    assert hashes(np.arange(12, dtype=np.uint8).reshape(3, 4), 7).tolist() == [
        2834785902379363972,
        7402879734762681959,
        1245543942944134800,
    ]


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder_keeps_its_own_test_set(idx_folder, zipped):
    dataset = load(idx_folder(zipped=zipped), validation_fraction=0.25)
    assert len(dataset.train) + len(dataset.validation) == 40
    assert len(dataset.test) == 10
    assert dataset.shape == (1, 8, 8)
    assert all_of(dataset.train).max() == np.float32(240 / 255)
    assert np.array_equal(all_of(dataset.test), all_of(load(idx_folder(), seed=5).test))


def test_the_digest_is_of_the_values_and_not_of_the_files(idx_folder):
    folders = [idx_folder(zipped=True), idx_folder(zipped=False), idx_folder()]
    changed = folders[2] / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(changed.read_bytes()))
    content[-1] ^= 1
    changed.write_bytes(gzip.compress(bytes(content)))
    one, same, other = (load(folder).provenance.digest for folder in folders)
    assert one == same != other
    assert one.startswith("sha256:")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda b: b[:-20], "expected a whole gzip file"),
        ("train-images-idx3-ubyte.gz", lambda b: b"no gzip", "expected a whole gzip file"),
        ("t10k-images-idx3-ubyte", lambda b: b[:-1], "expected 10 images of 8×8, 656 bytes, got 655"),
        ("t10k-images-idx3-ubyte", lambda b: b + b"!", "656 bytes, got 657"),
        ("t10k-images-idx3-ubyte", lambda b: b[:9], "expected an IDX header of 16 bytes, got 9"),
        (
            "t10k-images-idx3-ubyte",
            lambda b: b"\0\0\x08\x01" + b[4:],
            "expected magic number 0x00000803 (images), got 0x00000801",
        ),
        ("t10k-images-idx3-ubyte", lambda b: struct.pack(">4I", 0x803, 0, 8, 8), "expected at least one image"),
        ("t10k-images-idx3-ubyte", lambda b: struct.pack(">4I", 0x803, 1, 2, 2) + b"1234", "images of one size"),
    ],
)
def test_a_damaged_idx_file_is_refused(idx_folder, name, damage, message):
    folder = idx_folder(zipped=name.endswith(".gz"))
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    assert message in refused(folder)
    assert str(folder) in refused(folder)


@given(content=st.binary(max_size=100))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_idx_or_npy_are_refused(tmp_path, idx_folder, content):
    folder = idx_folder(zipped=False)
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    refused(folder)
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy")


@given(cut=st.integers(0, 19_327))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_npy_is_refused(tmp_path, digits_npy, cut):
    content = digits_npy.read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:cut])
    assert cut < len(content)
    assert "expected an .npy file of numbers" in refused(tmp_path / "cut.npy")


def test_a_folder_without_its_test_images_names_the_file(idx_folder):
    folder = idx_folder()
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    assert "expected t10k-images-idx3-ubyte or the same with .gz, got neither" in refused(folder)


def test_npy_floats_stay_as_they_are(tmp_path):
    values = np.linspace(-3, 5, 40).reshape(20, 2)
    np.save(tmp_path / "x.npy", values)
    dataset = load(tmp_path / "x.npy", validation_fraction=0.2, test_fraction=0)
    assert (dataset.normalisation, dataset.unit) == (None, False)
    assert rows(dataset.train, dataset.validation) == rows(values.astype(np.float32))


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.uint32])
def test_integers_stay_counts(tmp_path, kind):
    values = np.arange(40).reshape(20, 2) * 400_000 if kind != np.int16 else np.arange(40).reshape(20, 2)
    np.save(tmp_path / "x.npy", values.astype(kind))
    np.save(tmp_path / "y.npy", values.astype(np.float64))
    counts, floats = (load(tmp_path / name, test_fraction=0) for name in ("x.npy", "y.npy"))
    assert (counts.normalisation, counts.unit) == (None, False)
    assert rows(counts.train, counts.validation) == rows(values.astype(np.float32))
    # They are the data that they are as floats.
    assert counts.provenance.digest == floats.provenance.digest


@pytest.mark.parametrize("top", [np.uint8(255), np.float64(1)])
def test_data_of_two_values_are_known_as_binary(tmp_path, top):
    values = np.eye(6, dtype=top.dtype) * top
    np.save(tmp_path / "x.npy", values)
    assert load(tmp_path / "x.npy").provenance.binary
    values[2, 3] = top / 2
    np.save(tmp_path / "x.npy", values)
    assert not load(tmp_path / "x.npy").provenance.binary


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), "expected finite float32 values, got nan at [0, 1]"),
        (np.array([[0.0, 1], [-np.inf, 0]]), "expected finite float32 values, got -inf at [1, 0]"),
        (np.full((2, 2), 1e300), "expected finite float32 values, got 1e+300 at [0, 0]"),
        (np.array([[0, 1], [2**24 + 1, 0]]), "which float32 holds exactly, got 16777217 at [1, 0]; scale them"),
        (np.eye(3, dtype=bool), "expected numbers, got bool; convert them"),
        (np.zeros(5, np.uint8), "expected an array [n, *shape] with at least one value, got [5]"),
        (np.zeros((0, 3), np.uint8), "at least one value, got [0, 3]"),
        (np.array([[object()]]), "expected an .npy file of numbers: expected numbers, got Python objects"),
    ],
)
def test_an_unfit_array_is_refused(tmp_path, values, message):
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    assert message in refused(tmp_path / "x.npy")


def test_an_archive_is_no_array(tmp_path):
    file = io.BytesIO()
    np.savez(file, x=np.zeros((2, 2)))
    (tmp_path / "x.npy").write_bytes(file.getvalue())
    assert "expected an .npy file of numbers: the magic string is not correct" in refused(tmp_path / "x.npy")


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("RGB", 3), ("RGBA", 4), ("LA", 4)])
def test_images_become_channels_in_the_order_of_their_names(tmp_path, mode, channels):
    for number in (2, 10, 1):
        Image.new("L", (6, 4), 25 * number).convert(mode).save(tmp_path / f"{number:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = load(tmp_path, validation_fraction=0, test_fraction=0)
    assert (len(dataset.train), *dataset.shape) == (3, channels, 4, 6)
    if mode == "L":
        assert np.array_equal(all_of(dataset.train)[:, 0, 0, 0], np.array([25, 50, 250], np.float32) / np.float32(255))


def test_images_of_mixed_sizes_are_refused(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    Image.new("L", (6, 5)).save(tmp_path / "b.png")
    assert "b.png: expected uint8 [1, 4, 6] as the first row has, got uint8 [1, 5, 6]" in refused(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    assert "got uint8 [3, 4, 6]" in refused(tmp_path)


def test_an_image_that_is_none_is_refused(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    assert "b.png: expected an image" in refused(tmp_path)
    Image.new("I;16", (6, 4)).save(tmp_path / "b.png")
    assert "b.png: expected an image: expected 8 bits per channel, got 16" in refused(tmp_path)
    (tmp_path / "b.png").write_bytes(color_of_16_bits())
    assert "b.png: expected an image: expected 8 bits per channel, got 16" in refused(tmp_path)


def color_of_16_bits() -> bytes:
    """A PNG of 6×4 pixels, which Pillow reads and cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = zlib.compress(bytes(4 * (1 + 6 * 6)))
    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_a_source_that_is_not_there_or_empty_is_refused(tmp_path):
    assert "no such file or folder; give `digits`" in refused(tmp_path / "nowhere")
    assert "expected images, IDX files or Parquet files, got none of them" in refused(tmp_path)
    (tmp_path / "x.csv").write_text("1,2")
    assert "expected a .npy or .parquet file, tar files or a folder" in refused(tmp_path / "x.csv")


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    seed = next(seed for seed in range(99) if hashes(np.zeros((1, 3), "<f4"), seed)[0] < 2**62)
    message = refused(tmp_path / "x.npy", test_fraction=0.5, validation_fraction=0, seed=seed)
    assert "expected at least one observation to train on, got 2 in all, 0 of them damaged, 2 for test" in message
    assert "give more data, in which equal rows count as one, or lower the fractions" in message
    np.save(tmp_path / "x.npy", np.full((2, 3), np.nan))
    assert "got 2 in all, 2 of them damaged, 0 for test" in refused(tmp_path / "x.npy", corrupt="skip")


def test_a_value_outside_the_unit_range_is_named():
    x = Rows("x", np.array([[0.5, 1.0], [0.0, 1.5]], np.float32))
    require_range(Part(x, np.array([0])), "x.npy")
    require_range(Part(x, np.array([], int)), "x.npy")
    message = r"x\.npy: row 1: expected values in \[0, 1\] for binarization, got 1\.5 at \[1\]; .* gaussian or laplace"
    with pytest.raises(InputError, match=message):
        require_range(Part(x, np.array([0, 1])), "x.npy")
