"""One graph on one device: loud about the device, deaf to other files, silent otherwise."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

import vae_runtime
from vae_runtime import BundleError, DeviceError, InputError, VaeError
from vae_runtime.devices import Device, parse_device, preload_cuda
from vae_runtime.session import Session

CPU = Device("cpu", "CPUExecutionProvider", {})
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()

without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA execution provider")
IN_MEMORY = hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")
in_memory = pytest.mark.skipif(not IN_MEMORY, reason="this ONNX Runtime takes no external data from memory")
on_cuda = pytest.mark.skipif(
    not HAS_CUDA or not shutil.which("nvidia-smi"),
    reason="the CUDA path is not tested here: it needs onnxruntime-gpu and an NVIDIA GPU",
)


# Devices.


@pytest.mark.parametrize("text", ["cpu", "cuda", "cuda:0", "cuda:15", "auto", "DmlExecutionProvider"])
def test_the_form_of_a_device(text):
    assert parse_device(text) == text


@pytest.mark.parametrize(
    "text", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:٣", "cuda:0\n", "cpu ", None, 0, b"cpu"]
)
def test_an_unknown_device_is_refused(digits, text):
    for refuse in (vae_runtime.load, vae_runtime.verify):
        with pytest.raises(InputError, match="device: expected cpu, cuda, cuda:N, auto or the name of an execution"):
            refuse(digits, device=text)


@without_cuda
@pytest.mark.parametrize("text", ["cuda", "cuda:1"])
def test_cuda_that_is_not_there_is_an_error_that_says_what_is_and_what_to_do(digits, text):
    for refuse in (vae_runtime.load, vae_runtime.verify):
        with pytest.raises(DeviceError) as caught:
            refuse(digits, device=text)
        message = str(caught.value)
        assert message.startswith(f"device {text}: ONNX Runtime {onnxruntime.__version__} has no CUDAExecutionProvider")
        assert f"found onnxruntime {onnxruntime.__version__}, for the CPU" in message
        assert "pip install 'vae-runtime[gpu]'" in message


def test_a_provider_by_name_that_is_not_there_is_an_error(digits):
    with pytest.raises(DeviceError, match=r"MadeUpExecutionProvider: this ONNX Runtime .* has .*CPUExecutionProvider"):
        vae_runtime.load(digits, device="MadeUpExecutionProvider")


def test_a_provider_by_name(digits, vae):
    named = vae_runtime.load(digits, device="CPUExecutionProvider")
    assert named.device == "CPUExecutionProvider"
    np.testing.assert_array_equal(named.sample(3, seed=1), vae.sample(3, seed=1))


@without_cuda
def test_auto_takes_the_cpu_and_says_so(digits, caplog):
    with caplog.at_level(logging.INFO, logger="vae_runtime"):
        vae = vae_runtime.load(digits, device="auto")
    assert vae.device == "cpu"
    assert [record.name for record in caplog.records] == ["vae_runtime"]
    assert "device auto: chose cpu, since cuda is unavailable: device cuda:" in caplog.text


@without_cuda
def test_a_provider_that_fails_is_an_error_and_nothing_falls_back(digits, monkeypatch, capfd):
    # An onnxruntime-gpu on a machine without a GPU: the provider is listed, and fails when a session wants it.
    listed = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *listed])
    create = onnxruntime.InferenceSession._create_inference_session

    def fail_on_cuda(self, providers, *rest):
        self._fallback_providers = ["CPUExecutionProvider"]
        if "CUDA" in str(providers):
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return create(self, providers, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail_on_cuda)
    with pytest.raises(DeviceError, match=r"device cuda: CUDA failure 100.*nvidia-smi.*found onnxruntime"):
        vae_runtime.load(digits, device="cuda")
    assert vae_runtime.load(digits, device="auto").device == "cpu"
    assert capfd.readouterr().out == ""


def test_a_session_on_another_provider_than_asked_for_is_refused(digits, monkeypatch):
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"])
    with pytest.raises(DeviceError, match="expected CPUExecutionProvider, got OtherExecution"):
        vae_runtime.load(digits)


def test_a_provider_that_fails_later_does_not_fall_back_either(onnx_bytes, capfd):
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

    o = onnx_bytes
    graph = o.model([o.node("Exp", ["z"], ["x"])], [o.value("z", ["batch", 2])], [o.value("x", ["batch", 2])])
    session = Session(graph, "graph", CPU)
    real = session.raw._sess

    class Failing:
        def __getattr__(self, name):
            return getattr(real, name)

        def run(self, *_):
            raise EPFail("out of device memory")

    session.raw._sess = Failing()
    with pytest.raises(VaeError, match="graph: ONNX Runtime failed: out of device memory"):
        session.run(["x"], {"z": np.zeros((1, 2), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_what_the_preloading_of_cuda_says_stays_off_stdout_in_many_threads(capsys, caplog):
    class Runtime:
        def preload_dlls(self):
            print("failed to load libcudnn")
            threading.Event().wait(0.002)

    stdout = sys.stdout
    with caplog.at_level(logging.INFO, logger="vae_runtime"), ThreadPoolExecutor(8) as pool:
        list(pool.map(preload_cuda, [Runtime()] * 32))
    assert sys.stdout is stdout
    assert capsys.readouterr().out == ""
    assert len(caplog.records) == 32


@on_cuda
def test_on_cuda(digits, vae):
    cuda = vae_runtime.load(digits, device="cuda")
    session = cuda._networks.session("decoder").raw
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    assert session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == "0"
    np.testing.assert_array_equal(cuda.prior(100, seed=1), vae.prior(100, seed=1))
    x = vae.sample(100, seed=1)
    np.testing.assert_allclose(cuda.sample(100, seed=1), x, atol=2e-5)
    np.testing.assert_allclose(cuda.encode(x).mean, vae.encode(x).mean, atol=1e-4)
    assert vae_runtime.verify(digits, device="cuda").passed
    assert vae_runtime.load(digits, device="auto").device == "cuda"
    other = vae_runtime.load(digits, device="cuda:0", provider_options={"use_tf32": 1})
    with_tf32 = other._networks.session("decoder").raw
    assert with_tf32.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == "1"


@on_cuda
def test_a_cuda_device_that_is_not_there(digits):
    with pytest.raises(DeviceError, match="device cuda:99"):
        vae_runtime.load(digits, device="cuda:99")


# Threads.


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, "2", None])
def test_threads_out_of_range_are_refused(digits, threads):
    for refuse in (vae_runtime.load, vae_runtime.verify):
        with pytest.raises(InputError, match="threads: "):
            refuse(digits, threads=threads)


# Graphs.


def test_a_graph_is_computed(onnx_bytes):
    o = onnx_bytes
    graph = o.model([o.node("Exp", ["z"], ["x"])], [o.value("z", ["batch", 2])], [o.value("x", ["batch", 2])])
    session = Session(graph, "graph", CPU)
    assert session.inputs == {"z": ("tensor(float)", ("batch", 2))}
    assert session.outputs == {"x": ("tensor(float)", ("batch", 2))}
    (x,) = session.run(["x"], {"z": np.zeros((3, 2), np.float32)})
    np.testing.assert_array_equal(x, np.ones((3, 2)))


def test_integers_go_in_and_come_out(onnx_bytes):
    o = onnx_bytes
    rows = ["batch", 2]
    graph = o.model([o.node("Add", ["z", "z"], ["x"])], [o.value("z", rows, 7)], [o.value("x", rows, 7)])
    session = Session(graph, "graph", CPU)
    assert session.inputs == {"z": ("tensor(int64)", ("batch", 2))}
    (x,) = session.run(["x"], {"z": np.array([[2**40, -1]])})
    assert x.dtype == np.int64
    np.testing.assert_array_equal(x, [[2**41, -2]])


def test_what_fails_in_onnx_runtime_is_an_error_of_ours(onnx_bytes):
    o = onnx_bytes
    graph = o.model([o.node("Exp", ["z"], ["x"])], [o.value("z", ["batch", 2])], [o.value("x", ["batch", 2])])
    with pytest.raises(VaeError, match=r"^graph: ONNX Runtime failed: "):
        Session(graph, "graph", CPU).run(["x"], {"z": np.zeros((3, 4), np.float32)})


# Values that may become large.

_LARGE_VALUES = """
import gc, sys
import numpy as np
from vae_runtime.devices import Device
from vae_runtime.manifest import TensorSpec
from vae_runtime.session import Session

def memory():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

graph = bytes.fromhex(sys.stdin.read())
shape, dynamic = (1, 4), frozenset({1})
named = {"input": "z", "output": "x"}
expected = {kind: [TensorSpec(name, "float32", shape, dynamic)] for kind, name in named.items()}
device = Device("cpu", "CPUExecutionProvider", {})
sessions = [Session(graph, "graph", device, expected=each) for each in (expected, None)]
z = np.linspace(-1, 1, 2**22, dtype=np.float32).reshape(1, 1, -1)
before = memory()
wide, plain = (session.run(["x"], {"z": z})[0] for session in sessions)
assert np.array_equal(wide, plain)
del wide, plain, sessions
gc.collect()
print(memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_values_have_the_same_bits_in_one_range_of_addresses_which_ends_with_the_session(onnx_bytes):
    o = onnx_bytes
    shape = ["batch", 1, "width"]
    nodes = [o.node("Exp", ["z"], ["a"]), o.node("Tanh", ["a"], ["b"]), o.node("Add", ["a", "b"], ["x"])]
    graph = o.model(nodes, [o.value("z", shape)], [o.value("x", shape)])
    done = subprocess.run(
        [sys.executable, "-c", _LARGE_VALUES], input=graph.hex(), capture_output=True, text=True, check=True
    )
    # Each value has 16 MiB.
    assert float(done.stdout) < 16


def test_garbage_is_no_graph(digits, capfd):
    content = (digits / "decoder/fp32/model.onnx").read_bytes()
    random = np.random.default_rng(0)
    for garbage in (b"", b"\0", b"ONNX", b"\x08", content[:1000], content[:-1], content[7:], content * 2, b"{}" * 99):
        with pytest.raises(BundleError, match=r"^graph: "):
            Session(garbage, "graph", CPU)
    for size in range(1, 200):
        with pytest.raises(BundleError):
            Session(random.bytes(size), "graph", CPU)
    assert capfd.readouterr() == ("", "")


def test_a_graph_nested_beyond_reason_is_refused(onnx_bytes):
    o = onnx_bytes
    graph = b""
    for _ in range(2000):
        graph = o.field(1, o.field(5, o.field(6, graph)))
    with pytest.raises(BundleError, match="expected an ONNX graph"):
        Session(o.field(7, graph), "graph", CPU)


# External data: numbers of a tensor in another file.


@pytest.fixture
def matmul(onnx_bytes):
    """A graph x = z · w for a tensor w, 4 by 4."""

    def make(weights):
        o = onnx_bytes
        return o.model(
            [o.node("MatMul", ["z", "w"], ["x"])],
            [o.value("z", ["batch", 4])],
            [o.value("x", ["batch", 4])],
            [weights],
        )

    return make


EYE = np.eye(4, dtype=np.float32)


@pytest.fixture
def external(onnx_bytes, tmp_path, monkeypatch):
    """Tensors with their numbers in a file of the working directory, or elsewhere."""
    monkeypatch.chdir(tmp_path)
    EYE.tofile(tmp_path / "weights.bin")
    # Alive until the test is over.
    memory = EYE.copy()
    everything = {"offset": "0", "length": "64"}
    yield {
        "working directory": onnx_bytes.external_tensor("w", (4, 4), location="weights.bin", **everything),
        "no offset": onnx_bytes.external_tensor("w", (4, 4), location="weights.bin"),
        "upwards": onnx_bytes.external_tensor("w", (4, 4), location=f"../{tmp_path.name}/weights.bin", **everything),
        "absolute": onnx_bytes.external_tensor("w", (4, 4), location=str(tmp_path / "weights.bin"), **everything),
        "memory": onnx_bytes.external_tensor(
            "w", (4, 4), location="*/_ORT_MEM_ADDR_/*", offset=str(memory.ctypes.data), length="64"
        ),
    }
    del memory


def test_plain_onnx_runtime_reads_external_data_from_the_working_directory(matmul, external):
    session = onnxruntime.InferenceSession(matmul(external["working directory"]), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["x"], {"z": EYE})[0], EYE)


def test_a_graph_with_external_data_is_refused(matmul, external, onnx_bytes):
    inline = Session(matmul(onnx_bytes.tensor("w", EYE)), "graph", CPU)
    np.testing.assert_array_equal(inline.run(["x"], {"z": EYE})[0], EYE)
    for where, weights in external.items():
        with pytest.raises(BundleError, match=r"^graph: expected inline numbers, got a tensor whose") as caught:
            Session(matmul(weights), "graph", CPU)
        assert caught.value.__cause__ is None, where


def test_external_data_are_found_wherever_a_tensor_can_be(onnx_bytes, external):
    o = onnx_bytes
    tensor = external["working directory"]
    in_attribute = o.field(1, "value") + o.field(5, tensor)
    in_node = o.field(5, in_attribute)
    graphs = {
        "attribute": o.field(1, in_node),
        "attribute's list": o.field(1, o.field(5, o.field(10, tensor))),
        "subgraph": o.field(1, o.field(5, o.field(6, o.field(5, tensor)))),
        "subgraph's node": o.field(1, o.field(5, o.field(11, o.field(1, in_node)))),
        "sparse": o.field(15, o.field(1, tensor)),
        "sparse indices": o.field(15, o.field(2, tensor)),
    }
    models = {name: o.field(7, graph) for name, graph in graphs.items()}
    models["function"] = o.field(25, o.field(7, in_node))
    models["training"] = o.field(20, o.field(2, o.field(5, tensor)))
    # The graph's tag with bits beyond the 32 that protobuf keeps.
    content = o.field(5, tensor)
    models["wide tag"] = b"\xba\x80\x80\x80\x10" + o.field(7, content)[1:]
    for where, content in models.items():
        with pytest.raises(BundleError, match="in another file"):
            Session(content, where, CPU)
        # ONNX Runtime would read some of these from the disk, bytes given or not.
        expected = "expected a known field" if where == "wide tag" else "only for initializers of the main graph"
        with pytest.raises(BundleError, match=expected):
            Session(content, where, CPU, data={"weights.bin": EYE.tobytes()})


# External data that are given, as bytes by the file's name.


def test_of_an_old_onnx_runtime_external_data_are_an_error_that_names_the_newer(matmul, external, monkeypatch):
    if IN_MEMORY:
        monkeypatch.delattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")
    with pytest.raises(BundleError, match=rf"^graph: ONNX Runtime {onnxruntime.__version__} cannot load weights from"):
        Session(matmul(external["working directory"]), "graph", CPU, data={"weights.bin": EYE.tobytes()})


@in_memory
def test_external_data_are_taken_from_the_bytes_and_not_from_the_disk(matmul, external, onnx_bytes, tmp_path):
    # `external` has put other numbers into a file of this name in the working directory.
    weights = 2 + EYE
    for offset, content in ((0, weights.tobytes()), (3, b"..." + weights.tobytes() + b".")):
        tensor = onnx_bytes.external_tensor("w", (4, 4), location="weights.bin", offset=str(offset), length="64")
        session = Session(matmul(tensor), "graph", CPU, data={"weights.bin": content})
        np.testing.assert_array_equal(session.run(["x"], {"z": EYE})[0], weights)
    (tmp_path / "weights.bin").unlink()
    Session(matmul(external["working directory"]), "graph", CPU, data={"weights.bin": weights.tobytes()})
    Session(
        matmul(onnx_bytes.external_tensor("w", (4, 4), location="weights.bin", length="64")),
        "graph",
        CPU,
        data={"weights.bin": weights.tobytes()},
    )


@in_memory
def test_bytes_that_the_graph_does_not_use_do_no_harm(matmul, onnx_bytes):
    session = Session(matmul(onnx_bytes.tensor("w", EYE)), "graph", CPU, data={"weights.bin": b""})
    np.testing.assert_array_equal(session.run(["x"], {"z": EYE})[0], EYE)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"location": "weights.bin"},
        {"location": "other.bin", "offset": "0", "length": "64"},
        {"location": "./weights.bin", "offset": "0", "length": "64"},
        {"location": "", "offset": "0", "length": "64"},
        {"offset": "0", "length": "64"},
        {"location": "weights.bin", "offset": "1", "length": "64"},
        {"location": "weights.bin", "offset": "64", "length": "64"},
        {"location": "weights.bin", "offset": "0", "length": "65"},
        {"location": "weights.bin", "offset": "-1", "length": "64"},
        {"location": "weights.bin", "offset": "+0", "length": "64"},
        {"location": "weights.bin", "offset": "0x0", "length": "64"},
        {"location": "weights.bin", "offset": "\u0660", "length": "64"},
        {"location": "weights.bin", "offset": "", "length": "64"},
        {"location": "weights.bin", "offset": str(2**64), "length": "64"},
        {"location": "weights.bin", "offset": "0" * 5000, "length": "64"},
        {"location": "weights.bin", "offset": "0", "length": ""},
        {"location": "weights.bin", "offset": "0", "length": "0"},
        {"location": "weights.bin", "offset": "0", "length": "-64"},
        {"location": "weights.bin", "offset": "0", "length": "64", "checksum": "0"},
        {"location": "weights.bin", "offset": "0", "length": "64", "prepacked_0": "a|0|64"},
        {"location": "\ud7ff", "offset": "0", "length": "64"},
    ],
)
def test_external_data_beyond_the_bytes_that_are_given_are_refused(matmul, external, onnx_bytes, entries):
    tensor = onnx_bytes.external_tensor("w", (4, 4), **entries)
    data = {"weights.bin": EYE.tobytes()}
    if not entries:
        # An empty entry: a key and a value that are not there.
        tensor += onnx_bytes.field(13, b"")
    with pytest.raises(
        BundleError, match=r"^graph: expected a tensor's numbers within weights\.bin \(64 bytes\), got"
    ) as caught:
        Session(matmul(tensor), "graph", CPU, data=data)
    assert len(str(caught.value)) < 500


def test_what_leads_elsewhere_is_refused_with_bytes_given_too(matmul, external, onnx_bytes):
    data = {"weights.bin": EYE.tobytes()}
    for where in ("upwards", "absolute", "memory"):
        with pytest.raises(BundleError, match=r"within weights\.bin .*, got location"):
            Session(matmul(external[where]), "graph", CPU, data=data)
    # A location that stands twice, in two entries and in one.
    o = onnx_bytes
    twice = external["working directory"] + o.field(13, o.field(1, "location") + o.field(2, "/etc/passwd"))
    last = o.external_tensor("w", (4, 4), offset="0", length="64")
    last += o.field(13, o.field(1, "location") + o.field(2, "weights.bin", "/etc/passwd"))
    for tensor in (twice, last):
        with pytest.raises(BundleError, match=r"within weights\.bin .* '/etc/passwd'"):
            Session(matmul(tensor), "graph", CPU, data=data)


@in_memory
def test_a_length_that_is_not_the_tensors_is_refused(matmul, onnx_bytes):
    data = {"weights.bin": EYE.tobytes() * 2}
    for length in ("32", "128"):
        tensor = onnx_bytes.external_tensor("w", (4, 4), location="weights.bin", offset="0", length=length)
        with pytest.raises(BundleError, match=rf"^graph: tensor 'w': expected 64 bytes of values, got '{length}'"):
            Session(matmul(tensor), "graph", CPU, data=data)


@in_memory
def test_the_weights_of_a_bundle_lie_beside_its_graph(weighted_bundle, tmp_path, monkeypatch, resign):
    folder = weighted_bundle()
    monkeypatch.chdir(tmp_path)
    vae = vae_runtime.load(folder)
    z = vae.prior(2, seed=0)
    np.testing.assert_array_equal(vae.decode(z), 2 * z)
    assert vae_runtime.verify(folder).passed
    weights = folder / "decoder/fp32/weights.bin"
    content = weights.read_bytes()
    weights.write_bytes(np.full((3, 3), 0.5, np.float32).tobytes())
    with pytest.raises(BundleError, match=r"weights\.bin: expected the SHA-256"):
        vae_runtime.load(folder)
    resign(folder)
    assert not vae_runtime.verify(folder).passed
    weights.write_bytes(content[:-1])
    resign(folder)
    with pytest.raises(BundleError, match=r"expected a tensor's numbers within weights\.bin \(35 bytes\)"):
        vae_runtime.load(folder)


@in_memory
def test_weights_that_the_manifest_does_not_name_are_refused(weighted_bundle, edit_manifest):
    folder = weighted_bundle()

    def forget(document):
        del document["components"]["decoder"]["variants"]["fp32"]["additional_metadata"]["vae"]["data"]

    edit_manifest(folder, forget)
    with pytest.raises(BundleError, match="expected inline numbers, got a tensor whose numbers are in another file"):
        vae_runtime.load(folder)


def test_a_tensor_of_that_name_or_text_is_not_external_data(onnx_bytes):
    o = onnx_bytes
    graph = o.model(
        [o.node("Add", ["z", "location"], ["x"])],
        [o.value("z", ["batch", 2])],
        [o.value("x", ["batch", 2])],
        [o.tensor("location", [1.0, 2.0])],
    )
    Session(graph + o.field(14, o.field(1, "location") + o.field(2, "weights.bin")), "graph", CPU)


# Graphs that are not what the manifest says.


def vae_section(**changes):
    return lambda document: document["additional_metadata"]["vae"].update(changes)


def in_section(section, **changes):
    return lambda document: document["additional_metadata"]["vae"][section].update(changes)


def latent(**changes):
    return lambda document: document["additional_metadata"]["vae"]["latents"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (latent(shape=[4]), r"input z: expected float32 \[batch, 4\] .* \['batch', 3\]"),
        (latent(shape=[3, 1]), r"input z: expected float32 \[batch, 3, 1\]"),
        (latent(name="code"), r"expected the inputs \['code'\] of the manifest, the graph has \['z'\]"),
        (in_section("observation", shape=[3, 2], axes=["a", "b"]), r"output x: expected float32 \[batch, 3, 2\]"),
    ],
)
def test_a_graph_that_contradicts_the_manifest_is_refused(small_bundle, edit_manifest, change, message):
    folder = small_bundle()
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=message):
        vae_runtime.load(folder)


def test_a_graph_with_other_inputs_outputs_or_types_is_refused(small_bundle, onnx_bytes, resign):
    folder = small_bundle()
    o = onnx_bytes
    rows = ["batch", 3]
    one = o.node("Identity", ["z"], ["x"])
    decoders = {
        r"expected the outputs \['x'\] of .* \['x', 'y'\]": o.model(
            [one, o.node("Neg", ["z"], ["y"])], [o.value("z", rows)], [o.value("x", rows), o.value("y", rows)]
        ),
        r"expected the inputs \['z'\] of .* \['y', 'z'\]": o.model(
            [o.node("Add", ["z", "y"], ["x"])], [o.value("z", rows), o.value("y", rows)], [o.value("x", rows)]
        ),
        r"has tensor\(double\)": o.model([one], [o.value("z", rows, 11)], [o.value("x", rows, 11)]),
        r"input z: expected float32 \[batch, 3\] .* \[1, 3\]": o.model(
            [one], [o.value("z", [1, 3])], [o.value("x", [1, 3])]
        ),
        r"\['batch', 'width'\]": o.model([one], [o.value("z", ["batch", "width"])], [o.value("x", ["batch", "width"])]),
    }
    for message, decoder in decoders.items():
        (folder / "decoder/fp32/model.onnx").write_bytes(decoder)
        resign(folder)
        with pytest.raises(BundleError, match=message):
            vae_runtime.load(folder)
        report = vae_runtime.verify(folder)
        assert [check.what for check in report.checks if check.passed is False] == ["decoder/fp32"]


# Silence.


def test_nothing_is_printed_and_no_global_state_changes(digits, capfd, bundle_copy, resign):
    environment, handlers, level = dict(os.environ), list(logging.root.handlers), logging.root.level
    vae = vae_runtime.load(digits, threads=2)
    vae.reconstruct(vae.sample(3))
    assert vae_runtime.verify(digits).passed
    (bundle_copy / "decoder/fp32/model.onnx").write_bytes(b"garbage")
    resign(bundle_copy)
    with pytest.raises(BundleError):
        vae_runtime.load(bundle_copy)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert logging.root.handlers == handlers
    assert logging.root.level == level
    assert logging.getLogger("vae_runtime").handlers == []


def test_the_first_import_changes_no_environment_and_prints_nothing(python, digits):
    code = (
        "import os, logging; before = dict(os.environ), os.getcwd(); import vae_runtime\n"
        f"vae_runtime.load({str(digits)!r}).sample(1)\n"
        "assert (dict(os.environ), os.getcwd()) == before; assert not logging.root.handlers"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ONNX Runtime that is missing, or there twice.

LOAD = """
import sys, vae_runtime
try:
    vae_runtime.load(sys.argv[1], device=sys.argv[2])
except vae_runtime.DeviceError as error:
    print(error)
"""


def distribution(folder, name, version):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_without_onnx_runtime_the_error_names_both_extras(python, digits):
    missing = """import sys
from importlib import metadata
sys.modules["onnxruntime"] = None
def version(name): raise metadata.PackageNotFoundError(name)
metadata.version = version
"""
    done = python("-c", missing + LOAD, digits, "cpu")
    assert done.stderr == ""
    assert done.stdout.startswith("ONNX Runtime cannot be imported (")
    assert "'vae-runtime[cpu]'" in done.stdout
    assert "'vae-runtime[gpu]'" in done.stdout


def test_an_installed_onnx_runtime_that_cannot_be_imported_is_to_be_installed_again(python, digits, tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('no library')")
    code = """import sys
from importlib import metadata
sys.path.insert(0, sys.argv[3])
def version(name):
    if name != "onnxruntime": raise metadata.PackageNotFoundError(name)
    return "1.98.0"
metadata.version = version
"""
    done = python("-c", code + LOAD, digits, "cpu", tmp_path)
    assert done.stderr == ""
    assert done.stdout == (
        "ONNX Runtime cannot be imported (no library); found onnxruntime 1.98.0, which is damaged: "
        "pip install --force-reinstall onnxruntime\n"
    )


@without_cuda
def test_both_distributions_installed_is_explained(python, digits, tmp_path):
    distribution(tmp_path, "onnxruntime", "1.98.0")
    distribution(tmp_path, "onnxruntime-gpu", "1.99.0")
    code = "import sys; exec(sys.argv[3])\n" + LOAD
    for missing in ("", "sys.modules['onnxruntime'] = None"):
        done = python("-c", code, digits, "cuda", missing, env={"PYTHONPATH": str(tmp_path)})
        assert done.stderr == ""
        assert "onnxruntime 1.98.0 and onnxruntime-gpu 1.99.0 are both installed and overwrite each" in done.stdout


def test_what_an_uninstall_of_one_of_two_leaves_is_explained(python, digits, tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    distribution(tmp_path, "onnxruntime", "1.98.0")
    distribution(tmp_path, "onnxruntime-gpu", "1.99.0")
    done = python("-c", LOAD, digits, "cpu", env={"PYTHONPATH": str(tmp_path)})
    assert done.stderr == ""
    assert done.stdout.startswith("ONNX Runtime is damaged; onnxruntime 1.98.0 and onnxruntime-gpu 1.99.0 are both")


FOLDING = """
import sys
from pathlib import Path
from vae_runtime.devices import resolve_device
from vae_runtime.session import Session
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
cpu = resolve_device("cpu")
Session(Path(sys.argv[1]).read_bytes(), "small", cpu)
before = peak()
Session(Path(sys.argv[2]).read_bytes(), "large", cpu)
print(peak() - before)
"""


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 30) or not os.path.exists("/proc/self/status"),
    reason="this ONNX Runtime has no limit for what it computes of constants, or memory is measured by /proc",
)
def test_what_a_graph_computes_of_constants_is_bounded_as_it_loads(onnx_bytes, python, tmp_path):
    o = onnx_bytes
    for name, count in (("small", 4), ("large", 2**14)):
        # The second reshapes a column into a row: the sum of both is a matrix of 1 GiB.
        nodes = [
            o.node("Reshape", ["w", "shape"], ["row"]),
            o.node("Add", ["w", "row"], ["matrix"]),
            o.node("ReduceMax", ["matrix"], ["top"], keepdims=0),
            o.node("Add", ["z", "top"], ["x"]),
        ]
        tensors = [o.tensor("w", np.zeros((count, 1))), o.tensor("shape", [1, -1], 7)]
        model = o.model(nodes, [o.value("z", ["batch", 3])], [o.value("x", ["batch", 3])], tensors)
        (tmp_path / name).write_bytes(model)
    result = python("-c", FOLDING, tmp_path / "small", tmp_path / "large")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 100
