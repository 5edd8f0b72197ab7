"""A run on a disk that is full, or where nothing may be written: one error, nothing half written, and it goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from limits import largest_file

from vae_export.cli import main
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.evaluation import evaluate
from vae_export.training.loop import train
from vae_runtime.errors import InputError, VaeError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and permissions are those of POSIX")

MODEL = ModelConfig(latent=2, hidden=(16,))
TRAINING = TrainConfig(epochs=2, batch_size=64, threads=1)


def run(folder, source):
    return train(folder, MODEL, TRAINING, DataConfig(str(source)), progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits_npy) -> Path:
    """A run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole") / "run", digits_npy).folder


@contextlib.contextmanager
def read_only(folder):
    """A folder that even root cannot write to."""
    if os.geteuid():
        folder.chmod(0o500)
        undo = ["chmod", "700", str(folder)]
    else:
        for options in (["--bind", str(folder), str(folder)], ["-o", "remount,ro,bind", str(folder)]):
            if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
                pytest.skip("nothing can be mounted here")
        undo = ["umount", str(folder)]
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


def files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["config.json", "state.safetensors", "model.safetensors", "curve.png", "report.html"])
def test_a_full_disk_is_one_error_and_the_run_goes_on_once_there_is_space(tmp_path, digits_npy, whole, name):
    """Files are limited to what is smaller than one of them; the first that is larger ends the training."""
    folder = tmp_path / "run"
    if name == "state.safetensors":  # a finished run has none, and this is larger than its weights
        size = files(whole)["model.safetensors"].stat().st_size
    else:
        size = files(whole)[name].stat().st_size // 2
    with largest_file(size), pytest.raises(VaeError) as caught:
        run(folder, digits_npy)
    assert ": not written: File too large; free some space or choose another place" in str(caught.value)
    assert not [path for path in files(folder) if path.endswith(".tmp")]
    assert not run(folder, digits_npy).already_finished
    assert files(folder).keys() == files(whole).keys()
    for each in ("model.safetensors", "samples.png"):
        assert (folder / each).read_bytes() == (whole / each).read_bytes()


def test_a_file_in_the_place_of_the_samples_is_one_error(tmp_path, digits_npy, whole):
    (tmp_path / "samples").write_bytes(b"")
    with pytest.raises(VaeError, match=r"samples: expected a folder, or room to make it: File exists; remove what is"):
        run(tmp_path, digits_npy)
    (tmp_path / "samples").unlink()
    run(tmp_path, digits_npy)
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_conversion_on_a_full_disk_leaves_nothing(tmp_path, whole):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = np.random.default_rng(0).random((300, 4), np.float32)
    parquet.write_table(pyarrow.table({f"c{i}": column for i, column in enumerate(values.T)}), tmp_path / "x.parquet")
    with largest_file(1000), pytest.raises(VaeError, match="run/data: not written: File too large; free some space"):
        run(tmp_path / "run", tmp_path / "x.parquet")
    assert os.listdir(tmp_path) == ["x.parquet"]
    assert not run(tmp_path / "run", tmp_path / "x.parquet").already_finished


def test_a_finished_run_may_lie_where_nothing_can_be_written(tmp_path, digits_npy, capsys):
    folder = run(tmp_path / "run", digits_npy).folder
    # A call that was killed as it replaced a file left this.
    (folder / ".model.safetensors.abc.tmp").write_bytes(b"half")
    with read_only(folder):
        assert run(folder, digits_npy).already_finished
        # Before it computes, which may take hours.
        with pytest.raises(InputError, match=r"run: cannot write here: .*; choose a folder that exists"):
            evaluate(folder, importance_samples=2**31)
    assert run(folder, digits_npy).already_finished
    assert not (folder / ".model.safetensors.abc.tmp").exists()
    assert main(["evaluate", str(folder), "--importance-samples", "2", "--limit", "5"]) == 0
