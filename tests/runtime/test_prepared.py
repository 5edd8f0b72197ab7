"""Prepared graphs: the same answers as the graph itself, and none of files that were altered."""

import numpy as np
import pytest

from vae_runtime import BundleError
from vae_runtime.devices import Device
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
