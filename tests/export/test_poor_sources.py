"""Sources that are empty, damaged in part, or hold more than training takes are named, and nothing is lost unsaid."""

from __future__ import annotations

import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
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
