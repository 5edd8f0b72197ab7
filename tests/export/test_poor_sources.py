"""Sources that are empty, damaged in part, or hold more than training takes are named, and nothing is lost unsaid."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as Picture
from PIL import Image
from refusals import refusal
from torch.utils.data import DataLoader, TensorDataset

from vae_export.training.config import DataConfig
from vae_export.training.data.dataset import load as load_data


def load(source, given=None, **fields):
    config = DataConfig(str(source), **{"test_fraction": 0, "validation_fraction": 0, **fields})
    return load_data(config, given=given)


def refused(source, given=None, **fields) -> str:
    return refusal(load, source, given, **fields)


def test_an_empty_source_is_named_as_it_was_given(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "tables").mkdir()
    for path in (tmp_path / "rows.parquet", tmp_path / "tables" / "rows.parquet"):
        pq.write_table(pa.table({"a": pa.array([], pa.float32())}), path)
    tarfile.open(tmp_path / "rows.tar", "w").close()
    np.save(tmp_path / "rows.npy", np.zeros((0, 4), np.float32))
    for name in ("folder", "tables", "rows.parquet", "rows.tar", "rows.npy"):
        assert refused(tmp_path / name).startswith(f"{tmp_path / name}: expected ")


@pytest.mark.parametrize("given", [[], iter(()), DataLoader(TensorDataset(torch.zeros(0, 2)), batch_size=4)])
def test_an_empty_object_is_named_as_it_was_called(given):
    assert refused("my rows", given) == "my rows: expected at least one row, got none; give other data"


def test_an_empty_object_of_a_module_is_named_with_the_module(tmp_path, monkeypatch):
    (tmp_path / "empty_rows.py").write_text("rows = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused("empty_rows:rows").startswith("empty_rows:rows: expected at least one row, got none")


PICTURES = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)


def encoded(*pictures, format="PNG", **options) -> bytes:
    """The bytes of a file with a frame for each picture."""
    first, *others = map(Image.fromarray, pictures)
    file = io.BytesIO()
    first.save(file, format, save_all=bool(others), append_images=others, **options)
    return file.getvalue()


@pytest.fixture
def damaged():
    """The files of five pictures, of which two are damaged and one is no picture."""
    files = [encoded(picture) for picture in PICTURES]
    return [files[0], files[1][:45], files[2], b"a text", files[4][:-30]]


def test_damaged_pictures_in_parquet_are_skipped_counted_and_named(tmp_path, damaged):
    path = tmp_path / "x.parquet"
    for files in (pa.array(damaged), pa.array([{"bytes": file, "path": None} for file in damaged])):
        pq.write_table(pa.table({"image": files}), path)
        assert refused(path).startswith(f"{path}: row 1: expected an image")
        dataset = load(path, corrupt="skip")
        assert np.array_equal(dataset.train.source.observations, PICTURES[[0, 2]].transpose(0, 3, 1, 2))
        assert dataset.skipped.count == 3
        places = [text.partition(": expected an image")[0] for text in dataset.skipped.named]
        assert places == [f"{path}: row {number}" for number in (1, 3, 4)]


@pytest.mark.parametrize("as_files", [False, True])
def test_damaged_pictures_of_the_hub_are_skipped_counted_and_named(tmp_path, damaged, as_files):
    (tmp_path / "set" / "train").mkdir(parents=True)
    if as_files:
        for number, file in enumerate(damaged):
            (tmp_path / "set" / "train" / f"{number}.png").write_bytes(file)
    else:
        rows = {"image": [{"bytes": file, "path": None} for file in damaged]}
        stored = Dataset.from_dict(rows, Features({"image": Picture(decode=False)})).cast_column("image", Picture())
        stored.to_parquet(tmp_path / "set" / "train.parquet")
    source = f"hf:{tmp_path / 'set'}"
    assert refused(source).startswith(f"{source}: row 1: expected an image: ")
    dataset = load(source, corrupt="skip")
    assert np.array_equal(dataset.train.source.observations, PICTURES[[0, 2]].transpose(0, 3, 1, 2))
    assert dataset.skipped.count == 3
    named = [text.removeprefix(f"{source}: ").partition(": expected an image")[0] for text in dataset.skipped.named]
    assert named == ["row 1", "row 3", "row 4"]


def test_a_picture_of_the_hub_that_is_not_there_ends_the_run_even_so(tmp_path):
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "gone.png")}]}
    stored = Dataset.from_dict(rows, Features({"image": Picture(decode=False)})).cast_column("image", Picture())
    (tmp_path / "set").mkdir()
    pq.write_table(stored.data.table, tmp_path / "set" / "train.parquet")
    assert "cannot be read: " in refused(f"hf:{tmp_path / 'set'}", corrupt="skip")


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_a_picture_of_several_frames_is_refused_or_skipped(tmp_path, format):
    name = f"b.{format.lower()}"
    (tmp_path / "a.png").write_bytes(encoded(PICTURES[0]))
    (tmp_path / name).write_bytes(encoded(*PICTURES[1:3], format=format))
    words = f"{tmp_path / name}: expected an image: expected one frame, got a {format} of several; save each as a file"
    assert refused(tmp_path).startswith(words)
    dataset = load(tmp_path, corrupt="skip")
    assert len(dataset.train) == 1
    assert dataset.skipped.named[0].startswith(words)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "BMP", "JPEG"])
def test_a_picture_of_one_frame_is_read(tmp_path, format):
    (tmp_path / f"a.{format.lower()}").write_bytes(encoded(PICTURES[0]))
    assert len(load(tmp_path).train) == 1


def test_the_first_picture_of_a_telephone_is_its_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(*PICTURES[:2], format="MPO"))
    assert len(load(tmp_path).train) == 1


@pytest.mark.parametrize("value", [2**24 + 1, -(2**63)])
@pytest.mark.parametrize("form", ["columns", "beside null", "list", "labeled", "objects", "loader", "array"])
def test_integers_that_float32_does_not_hold_are_refused_whatever_is_skipped(tmp_path, form, value):
    given, path, fields = None, tmp_path / "x.parquet", {"corrupt": "skip"}
    if form == "array":
        path = path.with_suffix(".npy")
        np.save(path, [[1, 1], [1, value]])
    elif form == "objects":
        given = [np.array([1, 2]), np.array([3, value])]
    elif form == "loader":
        given = DataLoader(TensorDataset(torch.tensor([[1, 2], [3, value]])), batch_size=2)
    elif form == "list":
        pq.write_table(pa.table({"x": [[1, 2], [3, value]]}), path)
    else:
        # A missing label has rows read one by one.
        labels = {"y": ["a", None]} if form == "labeled" else {}
        fields |= {"conditions": ("y",)} if form == "labeled" else {}
        second = None if form == "beside null" else 1
        pq.write_table(pa.table({"a": [0.5, 0.5], "b": [value, second], **labels}), path)
    message = refused(path, given, **fields)
    assert message.startswith(str(path))
    assert f"expected integers between -16777216 and 16777216, which float32 holds exactly, got {value} at" in message


def test_integers_that_float32_holds_are_taken(tmp_path):
    pq.write_table(pa.table({"a": [0.5, 0.5], "b": [2**24, -(2**24)]}), tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").train.rows(slice(None)).tolist() == [[0.5, 2**24], [0.5, -(2**24)]]
    # One number is no rows, however large it is.
    one = DataLoader([0], collate_fn=lambda _: torch.tensor(2**25))
    assert "expected observations [n, …], got int64 []" in refused("one", one)
