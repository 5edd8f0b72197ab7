"""Each kind of source, from real small files: what it gives, and what is refused or skipped."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from refusals import refusal
from torch.utils.data import DataLoader, TensorDataset

import vae_runtime
from vae_export import export
from vae_export.training import checkpoint
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.batches import augmentation
from vae_export.training.data.conversion import converted
from vae_export.training.data.dataset import load as load_data
from vae_export.training.loop import train
from vae_runtime.errors import InputError
from vae_runtime.manifest import Normalisation

RNG = np.random.Generator(np.random.PCG64(0))


def load(source, folder=None, **fields):
    return load_data(DataConfig(str(source), **{"test_fraction": 0, "validation_fraction": 0, **fields}), folder)


def refused(source, **fields) -> str:
    return refusal(load, source, **fields)


def whole(dataset):
    """All rows of a data set that has training data alone, and their conditions."""
    return dataset.train.rows(slice(None)), dataset.train.conditions(slice(None))


PICTURES = RNG.integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
EXPECTED = PICTURES.transpose(0, 3, 1, 2) / np.float32(255)
KINDS = ["cat", "dog", "dog", "ant", "cat", "ant", "dog"]
NUMBERS = [1, 2, 2, 0, 1, 0, 2]


def png(picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def classed(tmp_path):
    """A folder of pictures in folders of classes, in another order than theirs."""
    for number, (picture, kind) in enumerate(zip(PICTURES, KINDS, strict=True)):
        (tmp_path / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / kind / f"{number}.png").write_bytes(png(picture))
    return tmp_path / "pictures"


ORDER = [3, 5, 0, 4, 1, 2, 6]


@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_in_folders_of_classes(classed, tmp_path, workers):
    dataset = load(classed, tmp_path / "run" / "data", conditions=("label",), workers=workers)
    x, conditions = whole(dataset)
    assert np.array_equal(x, EXPECTED[ORDER])
    assert dataset.classes == {"label": ("ant", "cat", "dog")}
    assert conditions["label"].tolist() == [NUMBERS[each] for each in ORDER]
    assert conditions["label"].dtype == np.int64
    # Converted once: the source is not looked at again, and rows are mapped.
    classed.rename(tmp_path / "gone")
    again = load(classed, tmp_path / "run" / "data", conditions=("label",))
    assert again.provenance == dataset.provenance
    assert isinstance(again.train.source.observations, np.memmap)
    with pytest.raises(InputError, match=r"holds rows of another source: conditions is \['label'\], asked for \[\]"):
        load(classed, tmp_path / "run" / "data")


@pytest.mark.skipif(os.name != "posix", reason="devices are those of POSIX")
def test_a_device_is_refused_as_a_source():
    assert refused("/dev/null").startswith("/dev/null: expected a file or a folder, got a pipe or a device; save")


def test_labels_that_a_source_has_not_are_refused(classed, tmp_path):
    assert "expected a folder for each class" in refused(classed / "cat", conditions=("label",))
    assert "has the condition label alone, got 'breed'" in refused(classed, conditions=("breed",))
    np.save(tmp_path / "x.npy", np.eye(3))
    for asked in ({"conditions": ("label",)}, {"labels": "label"}):
        text = refused(tmp_path / "x.npy", **asked)
        assert text.startswith("label: expected a file beside the array, got label; write label=C.npy")
    np.save(tmp_path / "y.npy", np.arange(4))
    assert "expected 3 rows" in refused(tmp_path / "x.npy", conditions=(f"y={tmp_path / 'y.npy'}",))


def test_pictures_beside_folders_of_classes_are_refused(classed):
    (classed / "first.png").write_bytes(png(PICTURES[0]))
    assert "for each class, got both: first.png and ant/3.png; move one of them away" in refused(classed)


@pytest.mark.parametrize("count", [1, 7])
def test_damaged_pictures_are_refused_or_skipped_counted_and_named(classed, tmp_path, count):
    for number in range(count):
        (classed / "cat" / f"a{number}.png").write_bytes(png(PICTURES[0])[:60])
    Image.new("RGB", (9, 9)).save(classed / "dog" / "0.png")
    assert "a0.png: expected an image" in refused(classed)
    dataset = load(classed, tmp_path / "data", corrupt="skip")
    assert len(json.loads((tmp_path / "data" / "data.json").read_text())["named"]) == min(count + 1, 5)
    assert np.array_equal(whole(dataset)[0], EXPECTED[ORDER])
    assert dataset.provenance.skipped == dataset.skipped.count == count + 1
    assert len(dataset.skipped.named) == min(count + 1, 5)
    assert "a0.png: expected an image" in dataset.skipped.named[0]


def test_a_row_after_others_that_were_left_out_is_not_taken_for_another(tmp_path):
    rows = [[0.0, 1.0], "broken", [2.0, 3.0], [math.nan, 5.0], *([float(n), 0.0] for n in range(30))]
    given = load_data(DataConfig("rows", corrupt="skip"), tmp_path / "data", given=rows)
    assert given.skipped.count == 2
    assert given.skipped.named[0].startswith("rows: row 1: expected numbers")
    assert given.skipped.named[1].startswith("row 2 of those left: expected finite float32 values, got nan")


def test_rows_with_nan_are_skipped_counted_and_named(tmp_path, capsys):
    x = RNG.normal(size=(200, 3)).astype(np.float32)
    x[5, 1], x[50, 0] = np.nan, np.inf
    np.save(tmp_path / "x.npy", x)
    assert "expected finite float32 values, got nan at [5, 1]" in refused(tmp_path / "x.npy")
    model, config = ModelConfig(latent=2, hidden=(4,), likelihood="gaussian"), TrainConfig(epochs=1, threads=1)
    train(tmp_path / "run", model, config, DataConfig(str(tmp_path / "x.npy"), corrupt="skip"))
    info = checkpoint.read_info(tmp_path / "run")
    assert info.provenance.skipped == 2
    assert info.found.skipped[0] == "row 5: expected finite float32 values, got nan"
    assert info.provenance.train + info.provenance.validation + info.provenance.test == 198
    assert "data: 2 damaged rows skipped: row 5: expected finite" in capsys.readouterr().err


def test_labels_of_idx_files(tmp_path, idx_folder):
    folder = idx_folder(zipped=False)
    for part, labels in (("train", NUMBERS * 6), ("t10k", NUMBERS * 2)):
        content = bytes((labels)[: 40 if part == "train" else 10])
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(content)) + content)
    dataset = load(folder, conditions=("label",))
    assert dataset.train.conditions(slice(7))["label"].tolist() == NUMBERS
    assert dataset.test.conditions(slice(7))["label"].tolist() == NUMBERS
    assert dataset.provenance.digest != load(folder).provenance.digest
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 1) + b"\1")
    assert "expected 10 labels, as many as images, got 1" in refused(folder, conditions=("label",))


def test_conditions_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", RNG.random((6, 2)))
    np.save(tmp_path / "c.npy", np.array([0, 1, 2, 0, 1, 2], np.uint8))
    np.save(tmp_path / "v.npy", RNG.random((6, 3)))
    dataset = load(tmp_path / "x.npy", conditions=(f"c={tmp_path / 'c.npy'}", f"v={tmp_path / 'v.npy'}"))
    given = dataset.train.conditions(np.array([5, 0]))
    assert given["c"].tolist() == [2, 0]
    assert given["c"].dtype == np.int64
    assert (given["v"].shape, given["v"].dtype) == ((2, 3), np.float32)
    np.save(tmp_path / "c.npy", np.array([0, 1, 2, 0, 1, -2]))
    assert "expected numbers of classes from 0" in refused(tmp_path / "x.npy", conditions=(f"c={tmp_path / 'c.npy'}",))


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_vectors_of_arrays_are_finite(tmp_path, damage):
    np.save(tmp_path / "x.npy", RNG.random((6, 2)))
    vectors = np.ones((6, 3))
    vectors[4, 1] = damage
    np.save(tmp_path / "v.npy", vectors)
    assert "v.npy: expected finite numbers" in refused(tmp_path / "x.npy", conditions=(f"v={tmp_path / 'v.npy'}",))


def test_digits_have_labels():
    from sklearn.datasets import load_digits

    dataset = load("digits", conditions=("label",))
    assert np.array_equal(dataset.train.conditions(slice(None))["label"], load_digits().target)


def test_columns_of_parquet(tmp_path):
    values = RNG.random((6, 2))
    table = pa.table({"a": values[:, 0], "kind": KINDS[:6], "b": values[:, 1], "size": list(range(6))})
    (tmp_path / "tables").mkdir()
    pq.write_table(table[:4], tmp_path / "tables" / "0.parquet")
    pq.write_table(table[4:], tmp_path / "tables" / "1.parquet")
    x, conditions = whole(load(tmp_path / "tables", conditions=("label=kind", "size")))
    assert np.array_equal(x, values.astype(np.float32))
    assert conditions["label"].tolist() == NUMBERS[:6]
    assert conditions["size"].tolist() == list(range(6))
    x, _ = whole(load(tmp_path / "tables" / "1.parquet", columns=("b", "size")))
    assert np.array_equal(x, np.stack([values[4:, 1], [4, 5]], 1).astype(np.float32))
    assert "expected a column 'colour', got a, kind, b, size" in refused(tmp_path / "tables", columns=("colour",))
    assert "expected numbers or a picture in kind, got 'cat'" in refused(tmp_path / "tables")
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0], "kind": ["cat", None]}), tmp_path / "holes.parquet")
    assert "row 1: expected a value of kind, got none" in refused(tmp_path / "holes.parquet", conditions=("kind",))
    pq.write_table(pa.table({"a": [1.0, None, 3.0], "b": [1.0, 2.0, 3.0]}), tmp_path / "holes.parquet")
    assert "expected finite float32 values, got nan at [1, 0]" in refused(tmp_path / "holes.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "holes.parquet").read_bytes()[:-9])
    assert "torn.parquet: expected a Parquet file: " in refused(tmp_path / "torn.parquet")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, float("nan"), 0.5], "row 1: expected finite numbers of c, got nan"),
        ([0, -1, 2], "row 1: expected classes of c numbered from 0, got -1"),
        ([0, 2**31, 2], f"row 1: expected classes of c numbered from 0, got {2**31}"),
    ],
)
def test_conditions_that_no_model_takes_are_refused_or_skipped(tmp_path, labels, message):
    column = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    pq.write_table(pa.table({"x": column, "c": labels}), tmp_path / "x.parquet")
    assert message in refused(tmp_path / "x.parquet", conditions=("c",))
    dataset = load(tmp_path / "x.parquet", conditions=("c",), corrupt="skip")
    assert np.array_equal(whole(dataset)[0], [column[0], column[2]])
    assert dataset.skipped.count == 1


def test_rows_of_another_type_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for row, kind in enumerate((np.uint8, np.float32)):
            file = io.BytesIO()
            np.save(file, np.ones(3, kind))
            add(archive, f"{row}.npy", file.getvalue())
    assert "1: expected uint8 [3] as the first row has, got float32 [3]" in refused(tmp_path / "x.tar")


@pytest.mark.parametrize("texts_first", [True, False])
def test_a_condition_is_of_texts_or_of_numbers(tmp_path, texts_first):
    kinds = [{"k": "a"}, {"k": 1}] if texts_first else [{"k": 1}, {"k": "a"}]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for row, kind in enumerate(kinds):
            add(archive, f"{row}.png", png(PICTURES[row]))
            add(archive, f"{row}.json", json.dumps(kind).encode())
    first, other = ("texts", "1") if texts_first else ("numbers", "'a'")
    assert f"1: expected {first} of k as the first row has, got {other}" in refused(
        tmp_path / "x.tar", conditions=("k",)
    )


def test_pictures_and_lists_of_parquet(tmp_path):
    cells = [{"bytes": png(picture), "path": None} for picture in PICTURES]
    pq.write_table(pa.table({"image": cells, "label": KINDS}), tmp_path / "pictures.parquet")
    x, conditions = whole(load(tmp_path / "pictures.parquet", conditions=("label",)))
    assert np.array_equal(x, EXPECTED)
    assert conditions["label"].tolist() == NUMBERS
    bytes_ = pa.array([[0, 255], [7, 9]], pa.list_(pa.uint8()))
    pq.write_table(pa.table({"x": bytes_}), tmp_path / "lists.parquet")
    assert np.array_equal(
        whole(load(tmp_path / "lists.parquet"))[0], np.array([[0, 255], [7, 9]], np.uint8) / np.float32(255)
    )


def test_a_data_set_as_the_hub_has_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "cat", "dog"])})
    rows = {"image": [Image.fromarray(picture) for picture in PICTURES], "label": NUMBERS}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set" / "train-0.parquet")
    dataset = load(f"hf:{tmp_path / 'set'}:train", conditions=("label",))
    x, conditions = whole(dataset)
    assert np.array_equal(x, EXPECTED)
    assert conditions["label"].tolist() == NUMBERS
    assert dataset.classes == {"label": ("ant", "cat", "dog")}
    assert dataset.provenance.name == "set"
    assert np.array_equal(whole(load(f"hf:{tmp_path / 'set'}:default:train", columns=("image",)))[0], EXPECTED)
    assert "cannot be opened: " in refused(f"hf:{tmp_path / 'set'}:nosuch")
    assert "cannot be opened: BuilderConfig 'other' not found" in refused(f"hf:{tmp_path / 'set'}:other:train")
    for form in ("", "a::train", "a:b:c:d"):
        assert f"hf:{form}: expected hf:NAME, hf:NAME:SPLIT or" in refused(f"hf:{form}")
    assert "expected a column 'depth', got image, label" in refused(f"hf:{tmp_path / 'set'}:train", columns=("depth",))


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_tar_files_of_webdataset(tmp_path):
    for shard, rows in enumerate((range(4), range(4, 7))):
        with tarfile.open(tmp_path / f"shards-{shard:03}.tar", "w") as archive:
            for row in rows:
                add(archive, f"{row:04}.png", png(PICTURES[row]))
                add(archive, f"{row:04}.cls", str(NUMBERS[row]).encode())
                add(archive, f"{row:04}.json", json.dumps({"kind": KINDS[row]}).encode())
    pattern = tmp_path / "shards-{000..001}.tar"
    x, conditions = whole(load(pattern, conditions=("label=cls", "kind")))
    assert np.array_equal(x, EXPECTED)
    assert conditions["label"].tolist() == conditions["kind"].tolist() == NUMBERS
    assert "expected a value of colour, got none" in refused(pattern, conditions=("colour",))
    content = (tmp_path / "shards-001.tar").read_bytes()
    header = content.index(b"0005.cls")
    damaged = content[:header] + b"!" + content[header + 1 :]
    # Cut in a file, between two, in a header, and with a header that is damaged.
    for torn in (content[:700], content[:header], content[: header + 99], damaged):
        (tmp_path / "shards-001.tar").write_bytes(torn)
        assert "shards-001.tar: expected a whole tar file" in refused(pattern, corrupt="skip")
    (tmp_path / "shards-001.tar").unlink()
    assert "shards-001.tar: no such file" in refused(pattern)


def test_files_of_a_row_lie_in_one_folder_of_a_tar_file(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for folder, picture in zip("ab", PICTURES[:2], strict=True):
            # Endings may be in capitals.
            add(archive, f"{folder}/0.PNG", png(picture))
            add(archive, f"{folder}/0.kind.txt", folder.encode())
    dataset = load(tmp_path / "x.tar", conditions=("kind=kind.txt",))
    assert np.array_equal(whole(dataset)[0], EXPECTED[:2])
    assert dataset.classes == {"kind": ("a", "b")}
    monkeypatch.setattr("vae_export.training.data.sources.webdataset._MAX_FILE", 10)
    assert "a/0.PNG: expected at most 10 bytes" in refused(tmp_path / "x.tar", corrupt="skip")


MODULE = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3
pairs = TensorDataset(X, Y)
loader = DataLoader(pairs, batch_size=5)
class Mapped(Dataset):
    def __len__(self): return 12
    def __getitem__(self, index): return {"x": X[index], "y": int(Y[index])}
class Broken(Mapped):
    def __getitem__(self, index): return {"x": X[index] if index != 4 else 1 / 0, "y": 0}
class Flowing(IterableDataset):
    def __iter__(self): return zip(X.numpy(), Y.tolist())
number = 5
def flipped(x, random):
    return torch.where(torch.rand((len(x), 1), generator=random) < 0.5, x, x.flip(1))
def lost(x, generator):
    x[1, 0] = float("nan")
    return x


def rounded(x, generator):
    return torch.full_like(x, 1 + 2**-23)


def brighter(x, generator):
    x[1, 0] = 1.5
    return x


def narrower(x, random):
    return x[:, :1]
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module in the working directory, and its name."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("what", ["pairs", "loader", "Mapped", "Flowing"])
def test_data_sets_and_loaders_of_pytorch(own_module, what):
    x, conditions = whole(load(f"{own_module}:{what}", conditions=("y",)))
    assert np.array_equal(x, np.arange(24, dtype=np.float32).reshape(12, 2))
    assert conditions["y"].tolist() == [0, 1, 2] * 4


def test_a_data_set_of_pytorch_that_fails(own_module):
    message = refused(f"{own_module}:Broken", conditions=("y",))
    assert "Broken: row 4: expected a row, got ZeroDivisionError: division by zero" in message
    dataset = load(f"{own_module}:Broken", conditions=("y",), corrupt="skip")
    assert (len(dataset.train), dataset.skipped.count) == (11, 1)
    assert "has no nothing" in refused(f"{own_module}:nothing")
    assert "expected an observation and 2 conditions, got 2 values" in refused(
        f"{own_module}:pairs", conditions=("y", "z")
    )
    assert "number() failed" in refused(f"{own_module}:number")


def test_a_loader_that_is_given_and_a_batch_that_does_not_fit(tmp_path):
    x, y = torch.from_numpy(RNG.normal(size=(200, 2)).astype(np.float32)), torch.arange(200) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    source = DataConfig("mine", conditions=("y",))
    dataset = load_data(source, tmp_path / "data", given=loader)
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 200
    assert np.array_equal(dataset.train.conditions(slice(None))["y"], dataset.train.numbers % 3)
    train(tmp_path / "run", MODEL, TRAINING, DataConfig("mine"), dataset=loader, progress=False)
    assert checkpoint.read_info(tmp_path / "run").provenance.name == "mine"
    for batch, words in (
        ((x[:5], y[:4]), "expected numbers or texts of y for 5 rows, got int64 [4]"),
        ((x[:5], None), "expected numbers or texts of y for 5 rows, got object []"),
        ((["a"], y[:1]), "expected numbers or texts of x for 1 row, got <U1 [1]"),
        (x[:5], "expected an observation and 1 condition, got 1 value"),
    ):
        bad = DataLoader([0], collate_fn=lambda _, batch=batch: batch)
        with pytest.raises(InputError, match=re.escape(words)):
            load_data(source, given=bad)


def test_a_function_that_augments_is_given_the_generator():
    random, seen = torch.Generator(), []
    augmentation(lambda x, given: seen.append(given) or x, "f", lambda x: None, random)(torch.ones(2, 3))
    assert seen == [random]


@pytest.mark.parametrize(
    ("likelihood", "augment", "words"),
    [
        ("gaussian", "lost", "expected finite values for a gaussian likelihood, got nan"),
        ("bernoulli", "brighter", "expected values in [0, 1] for a bernoulli likelihood, got 1.5"),
        ("bernoulli", "rounded", "expected values in [0, 1] for a bernoulli likelihood, got 1.0000001"),
        ("poisson", "brighter", "expected counts (0, 1, 2, …) for a poisson likelihood, got 1.5"),
    ],
)
def test_augmentation_gives_what_the_training_is_defined_for(own_module, likelihood, augment, words):
    np.save("x.npy", RNG.integers(0, 2, (200, 2)).astype(np.float32))
    data = DataConfig("x.npy", augment=f"{own_module}:{augment}")
    with pytest.raises(InputError, match=re.escape(f"{augment}: {words} at [")):
        train("run", replace(MODEL, likelihood=likelihood), TRAINING, data, progress=False)
    if likelihood == "gaussian":
        data, binarised = DataConfig("x.npy", augment=f"{own_module}:brighter"), replace(TRAINING, binarise="threshold")
        with pytest.raises(InputError, match=r"brighter: expected values in \[0, 1\] for binarization, got 1\.5 at"):
            train("run", MODEL, binarised, data, progress=False)


def digest(folder):
    return (folder / "model.safetensors").read_bytes()


MODEL, TRAINING = ModelConfig(latent=2, hidden=(4,), likelihood="gaussian"), TrainConfig(epochs=2, threads=1)


def test_augmentation_follows_the_seed_and_is_of_the_training_data_alone(own_module, tmp_path):
    np.save("x.npy", RNG.normal(size=(200, 2)))
    for name, augment in (("plain", ""), ("one", f"{own_module}:flipped"), ("two", f"{own_module}:flipped")):
        train(name, MODEL, TRAINING, DataConfig("x.npy", augment=augment), progress=False)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"narrower: expected float32 \[128, 2\], as it was given, got float32 \[128, 1\]"
    ):
        train("bad", MODEL, TRAINING, DataConfig("x.npy", augment=f"{own_module}:narrower"), progress=False)


def test_standard_normalisation_is_found_shown_and_written_into_the_bundle(tmp_path, capsys):
    raw = RNG.normal(size=(300, 3)) * [1, 20, 0.5] + [0, 1000, -3]
    np.save(tmp_path / "x.npy", raw)
    source = DataConfig(str(tmp_path / "x.npy"), normalise="standard")
    train(tmp_path / "run", MODEL, TRAINING, source)
    assert "data: x = (raw - offset) / divisor" in capsys.readouterr().err
    info = checkpoint.read_info(tmp_path / "run")
    dataset = checkpoint.run_data(info)
    x = dataset.train.rows(slice(None))
    assert np.allclose(x.mean(0), 0, atol=1e-4)
    assert np.allclose(x.std(0), 1, atol=1e-4)
    bundle = export(tmp_path / "run", tmp_path / "bundle", formats=("onnx",)).path
    normalisation = vae_runtime.load(bundle).manifest.observation.normalisation
    assert normalisation == info.found.normalisation == dataset.normalisation
    assert np.allclose(normalisation.divisor, raw.std(0), rtol=0.2)
    constant = raw.copy()
    constant[:, 1] = 5
    np.save(tmp_path / "x.npy", constant)
    assert "expected values that differ in each channel or feature" in refused(tmp_path / "x.npy", normalise="standard")


def test_a_normalisation_that_was_found_before_is_taken(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    source = DataConfig(str(tmp_path / "x.npy"), normalise="standard", test_fraction=0, validation_fraction=0)
    before = Normalisation((1.0, 2.0), (4.0, 8.0))
    x = load_data(source, normalisation=before).train.rows(slice(None))
    assert np.array_equal(x, ((np.load(tmp_path / "x.npy") - [1, 2]) / [4, 8]).astype(np.float32))


def test_no_normalisation_leaves_bytes_as_they_are(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.uint8).reshape(10, 4))
    assert np.array_equal(whole(load(tmp_path / "x.npy", normalise="none"))[0], np.load(tmp_path / "x.npy"))
    assert load(tmp_path / "x.npy", normalise="none").normalisation is None
    assert load(tmp_path / "x.npy").normalisation == Normalisation(0, 255)


def test_a_run_on_converted_data_trains_resumes_and_exports_without_its_source(tmp_path):
    for number in range(60):
        Image.fromarray(RNG.integers(0, 256, (6, 6), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "pictures").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "pictures" / path.name)
    source = DataConfig(str(tmp_path / "pictures"), validation_fraction=0.2, test_fraction=0.2)
    outcome = train(tmp_path / "run", MODEL, TRAINING, source, progress=False)
    assert outcome.info.provenance.name == "pictures"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["data_samples_per_second"] > 0 for line in lines)
    (tmp_path / "pictures").rename(tmp_path / "gone")
    assert train(tmp_path / "run", MODEL, TRAINING, source, progress=False).already_finished
    (tmp_path / "run").rename(tmp_path / "moved")
    info = checkpoint.read_info(tmp_path / "moved")
    assert checkpoint.run_data(info, run=tmp_path / "moved").provenance == info.provenance
    data = tmp_path / "moved" / "data"
    (data / "observations.npy").write_bytes((data / "observations.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"expected an \.npy file of numbers: expected \d+ bytes"):
        converted(data, None)


def test_converted_conditions_of_another_length_are_refused(classed, tmp_path):
    load(classed, tmp_path / "data", conditions=("label",))
    np.save(tmp_path / "data" / "condition.label.npy", np.zeros(6, np.int64))
    with pytest.raises(InputError, match="data: expected the rows of a run: expected as many rows in each file"):
        converted(tmp_path / "data", None)


@pytest.mark.long
def test_a_conversion_that_was_killed_starts_over(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(600):
        Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "pictures" / f"{number:03}.png")
    script = (
        "import sys; from pathlib import Path; from vae_export.training.config import DataConfig; "
        "from vae_export.training.data.dataset import load; load(DataConfig(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "pictures"), str(tmp_path / "run" / "data")]
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/.data.*/observations.npy")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "data").exists()
    assert list(tmp_path.glob("run/.data.*"))
    dataset = load(tmp_path / "pictures", tmp_path / "run" / "data")
    assert len(dataset.train) == 600
    assert os.listdir(tmp_path / "run") == ["data"]


LIMITED = """
import resource, sys
import numpy as np, torch
from vae_export.training.config import *
from vae_export.training.loop import train
import vae_runtime.image, PIL.Image, matplotlib.pyplot
run, source, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
train(run + "-warm", ModelConfig(latent=2, hidden=(4,)), TrainConfig(epochs=1, threads=1), DataConfig(), progress=False)
with open("/proc/self/status") as status:
    now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + room, now + room))
if len(sys.argv) > 4:
    np.load(source).astype(np.float32)
train(run, ModelConfig(latent=2, hidden=(4,), likelihood="gaussian"),
      TrainConfig(epochs=1, batch_size=128, threads=1), DataConfig(source), progress=False)
"""


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux' limit on a process' own memory")
def test_it_trains_from_an_array_larger_than_its_memory(tmp_path):
    """256 MiB of bytes, 1 GiB as float32, within 192 MiB beyond what an empty training takes."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (2**16, 2**12))
    for start in range(0, len(x), 2**13):
        x[start : start + 2**13] = RNG.integers(0, 256, (2**13, 2**12), dtype=np.uint8)
    x.flush()
    arguments = [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(tmp_path / "x.npy"), str(3 * 2**26)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert checkpoint.read_info(tmp_path / "run").result is not None
    # The limit is one: what reads the array whole does not get through.
    done = subprocess.run([*arguments, "whole"], capture_output=True, text=True, timeout=500)
    assert "MemoryError" in done.stderr
