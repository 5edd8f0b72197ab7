"""Prepared graphs: the same answers as the graph itself, and none of files that were altered."""

import multiprocessing
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vae_runtime import BundleError, generate, noise
from vae_runtime.bundle import open_bundle
from vae_runtime.devices import Device
from vae_runtime.manifest import Latent, LatentPosterior, Likelihood, Observation, Signature
from vae_runtime.networks import open_prepared
from vae_runtime.prepared import prepare
from vae_runtime.session import Session

CPU = Device("cpu", "CPUExecutionProvider", {})


@pytest.fixture
def large(onnx_bytes):
    """A graph of 16 MiB: x = tanh(z · w) · v."""
    o = onnx_bytes
    random = np.random.default_rng(0)
    weights = [o.tensor("w", random.normal(size=(1024, 2304))), o.tensor("v", random.normal(size=(2304, 1024)))]
    nodes = [o.node("MatMul", ["z", "w"], ["a"]), o.node("Tanh", ["a"], ["b"]), o.node("MatMul", ["b", "v"], ["x"])]
    return o.model(nodes, [o.value("z", ["batch", 1024])], [o.value("x", ["batch", 1024])], weights)


@pytest.fixture
def disk(tmp_path):
    """A disk in memory that takes a part of the weights."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_prepared_graph_gives_the_same_bits(large, tmp_path):
    prepared = prepare(large, {}, "graph", str(tmp_path), "decoder")
    assert prepared is not None
    plain, mapped = Session(large, "graph", CPU), Session(prepared, "graph", CPU)
    assert mapped.is_dense == plain.is_dense
    for rows in (1, 3, 64):
        z = np.random.default_rng(rows).normal(size=(rows, 1024)).astype(np.float32)
        np.testing.assert_array_equal(mapped.run(["x"], {"z": z})[0], plain.run(["x"], {"z": z})[0])


def test_an_altered_or_missing_file_is_refused(large, tmp_path):
    prepared = prepare(large, {}, "graph", str(tmp_path), "decoder")
    assert prepared is not None
    assert len(prepared.sums) == 2
    for path in prepared.sums:
        with open(path, "r+b") as file:
            before = file.read()
            file.seek(len(before) // 2)
            file.write(bytes([before[len(before) // 2] ^ 1]))
        with pytest.raises(BundleError, match=r"expected the SHA-256 .*, got .*; run the command again"):
            Session(prepared, "graph", CPU)
        with open(path, "wb") as file:
            file.write(before)
    Session(prepared, "graph", CPU)
    (tmp_path / "decoder.onnx.data").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        Session(prepared, "graph", CPU)


def test_a_small_graph_and_a_folder_without_room_are_not_prepared(large, onnx_bytes, tmp_path):
    o = onnx_bytes
    small = o.model([o.node("Exp", ["z"], ["x"])], [o.value("z", ["batch", 2])], [o.value("x", ["batch", 2])])
    assert prepare(small, {}, "graph", str(tmp_path), "decoder") is None
    assert prepare(large, {}, "graph", str(tmp_path / "missing"), "decoder") is None
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bundle(large, onnx_bytes, write_bundle):
    """A bundle with the large graph as its decoder."""
    o = onnx_bytes
    encoder = o.model(
        [o.node("Identity", ["x"], ["value"])], [o.value("x", ["batch", 1024])], [o.value("value", ["batch", 1024])]
    )
    signature = Signature(
        observation=Observation("x", (1024,), ("feature",)),
        latents=(Latent("z", (1024,), LatentPosterior("none", value="value")),),
        likelihood=Likelihood("gaussian", scale=1.0),
    )
    return write_bundle("large", signature, encoder, large, {"x": noise.normal(1, 0, 2, (1024,))})


def made(bundle, folder, workers):
    """The samples that a call makes, and whether a worker had the prepared weights mapped while it was under way."""
    mapped = []

    def look(done, n):
        for worker in multiprocessing.active_children():
            mapped.append("/decoder.onnx.data" in Path(f"/proc/{worker.pid}/maps").read_text("utf-8"))

    x = generate(bundle, folder, 128, seed=1, batch_size=16, shard_size=32, workers=workers, progress=look)
    return x[:], any(mapped)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mapped files are listed in /proc")
@pytest.mark.skipif(
    not hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="this ONNX Runtime lets go of mapped weights once it has packed them",
)
def test_workers_map_the_weights_of_large_graphs(bundle, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    wanted, _ = made(bundle, tmp_path / "one", 1)
    found, mapped = made(bundle, tmp_path / "two", 2)
    assert mapped
    assert np.array_equal(found, wanted)
    assert list(temporary.iterdir()) == []


def test_without_room_for_them_each_worker_loads_its_own(bundle, large, disk, tmp_path, monkeypatch):
    assert prepare(large, {}, "graph", str(disk), "decoder") is None
    assert list(disk.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    found, mapped = made(bundle, tmp_path / "two", 2)
    assert not mapped
    assert list(disk.iterdir()) == []
    assert np.array_equal(found, made(bundle, tmp_path / "one", 1)[0])


def test_a_prepared_graph_is_checked_as_any_other(bundle, large, onnx_bytes, tmp_path):
    o = onnx_bytes
    weights = [o.tensor("w", np.ones((1024, 2 * 2304)))]
    rows = [o.value("z", ["batch", 1024])], [o.value("y", ["batch", 2 * 2304])], weights
    hostile = o.model([o.node("Scan", ["z", "w"], ["y"])], *rows)
    with pytest.raises(BundleError, match="Scan"):
        prepare(hostile, {}, "graph", str(tmp_path), "decoder")
    other = prepare(o.model([o.node("MatMul", ["z", "w"], ["y"])], *rows), {}, "graph", str(tmp_path), "decoder")
    assert other is not None
    with pytest.raises(BundleError, match=r"decoder/fp32/model\.onnx: expected the outputs .* the graph has \['y'\]"):
        open_prepared(open_bundle(bundle), "decoder", "fp32", CPU, 1, other)
