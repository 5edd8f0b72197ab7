"""The contenders: ways to run a VAE. Each takes numpy arrays and returns numpy arrays.

This file runs in every contender's own environment, so it imports nothing but numpy before a contender is asked for;
and in the measurement of cold starts, where each further import would count against all of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .contender import FIRST_SEED, Contender, Unavailable

if TYPE_CHECKING:
    from .contender import Array, Call, Run


class Eager(Contender):
    name = "eager"
    title = "PyTorch eager"
    packages = ("torch",)
    given = "the trained module, under torch.inference_mode"

    def setup(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        torch.set_num_interop_threads(1)

    def pure(self) -> Any:
        import torch

        if "pure" not in self._opened:
            # The whole module, which this program has written itself.
            self._opened["pure"] = torch.load(self.path("module.pt"), weights_only=False)
        return self._opened["pure"]

    def module(self, component: str, batch: int) -> Any:
        pure = self.pure()
        return pure.encode if component == "encoder" else pure.decode

    def open(self, component: str, batch: int) -> Run:
        import torch

        module, single = self.module(component, batch), component == "decoder"

        def run(value: Array) -> Any:
            with torch.inference_mode():
                answer = module(torch.from_numpy(value))
                return (answer.numpy(),) if single else (answer[0].numpy(), answer[1].numpy())

        return run

    def draw(self, batch: int, seed: int) -> Array:
        import torch

        drawn: Array = torch.randn((batch, *self.latent), generator=torch.Generator().manual_seed(seed)).numpy()
        return drawn


class Compiled(Eager):
    name = "compile"
    title = "torch.compile"
    given = "the trained module, compiled for each batch size by inductor with freezing"
    fixed = True

    def setup(self) -> None:
        super().setup()
        import torch._dynamo
        import torch._inductor.config as config

        config.freezing = True
        torch._dynamo.config.recompile_limit = 64

    def module(self, component: str, batch: int) -> Any:
        import torch

        from benchmarks.networks import Component

        return torch.compile(Component(self.pure(), component).eval(), dynamic=False)


class TorchScript(Eager):
    name = "torchscript"
    title = "TorchScript"
    given = "the module, traced, frozen and passed through torch.jit.optimize_for_inference"

    def module(self, component: str, batch: int) -> Any:
        import warnings

        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(self.path(f"{component}.torchscript"))
            return torch.jit.optimize_for_inference(module)


class Naive(Contender):
    name = "naive"
    title = "naive ONNX Runtime"
    environment = "runtime"
    packages = ("onnxruntime", "numpy")
    given = "the plain graphs; InferenceSession and session.run, noise from numpy.random.default_rng(seed)"

    def open(self, component: str, batch: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        graph = self.path(f"{component}.onnx")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda value: session.run(names, {"value": value})

    def work(self, kind: str, batch: int, z: Any, x: Any) -> Call:
        if kind == "stream":
            decode, generator = self.function("decoder", batch), np.random.default_rng(FIRST_SEED)
            shape = (batch, *self.latent)
            return lambda: decode(generator.standard_normal(shape, dtype=np.float32))[0]
        if kind == "next":
            # One seed's samples can be addressed by their index only if each has a generator of its own.
            return super().work("sample", batch, z, x)
        if kind == "noise":
            generator = np.random.Generator(np.random.Philox(FIRST_SEED))
            return lambda: generator.standard_normal((batch, *self.latent), dtype=np.float32)
        return super().work(kind, batch, z, x)


class Ours(Contender):
    environment = "runtime"
    packages: tuple[str, ...] = ("vae-runtime", "onnxruntime", "numpy")
    precision = "fp32"

    def vae(self) -> Any:
        import vae_runtime

        if "vae" not in self._opened:
            try:
                self._opened["vae"] = vae_runtime.load(
                    self.path("bundle"), threads=self.threads, variant=self.precision
                )
            except vae_runtime.BundleError as error:
                raise Unavailable(_without_path(str(error), self.folder)) from None
        return self._opened["vae"]

    def check(self) -> None:
        from vae_runtime.bundle import open_bundle

        if self.precision not in open_bundle(self.path("bundle")).manifest.decoder:
            raise Unavailable(f"the bundle has no variant {self.precision}")

    def draw(self, batch: int, seed: int) -> Array:
        drawn: Array = self.vae().prior(batch, seed=seed)
        return drawn

    def work(self, kind: str, batch: int, z: Any, x: Any) -> Call:
        vae = self.vae()
        number, start = FIRST_SEED, 0
        if kind == "decode":
            return lambda: vae.decode(z)
        if kind == "encode":
            return lambda: _mean_and_logvar(vae.encode(x))
        if kind == "reconstruct":
            return lambda: vae.reconstruct(x)
        if kind == "noise":
            return lambda: vae.prior(batch, seed=number)

        def sample() -> Any:
            nonlocal number
            number += 1
            return vae.sample(batch, seed=number - 1)

        def following() -> Any:
            nonlocal start
            start += batch
            return vae.sample(batch, seed=FIRST_SEED, start=start)

        if kind in ("sample", "next", "stream"):
            return sample if kind == "sample" else following
        return super().work(kind, batch, z, x)


def _mean_and_logvar(posterior: Any) -> tuple[Array, Array]:
    return posterior.mean, posterior.logvar


class OursFp32(Ours):
    name = "ours-fp32"
    title = "vae-runtime fp32"
    given = "the bundle that vae_export.export makes of the module; the public API"


class OursNative(OursFp32):
    name = "ours-native"
    title = "vae-runtime fp32, native core"
    environment = "native"
    packages = ("vae-runtime", "vae-runtime-native", "onnxruntime", "numpy")
    given = "the same, with the extra native: only work that draws noise"
    only = ("sample", "next", "stream", "noise")

    def setup(self) -> None:
        from vae_runtime import noise

        if noise.native_core() is None:
            raise Unavailable("vae-runtime-native is not in use")


class OursFp16(Ours):
    name = "ours-fp16"
    title = "vae-runtime fp16"
    exact = False
    precision = "fp16"
    given = "the same bundle's variant fp16"


class OursInt8(Ours):
    name = "ours-int8"
    title = "vae-runtime int8"
    exact = False
    precision = "int8"
    given = "the same bundle's variant int8"


class OpenVino(Contender):
    name = "openvino-f32"
    title = "OpenVINO f32"
    environment = "openvino"
    packages = ("openvino",)
    given = "the plain graphs, reshaped to each batch size; latency hint, one request, its own tensors"
    fixed = True

    def graph(self, component: str) -> str:
        """The file of a component, in the model's folder."""
        return f"{component}.onnx"

    def open(self, component: str, batch: int) -> Run:
        import openvino

        if "core" not in self._opened:
            self._opened["core"] = openvino.Core()
        core = self._opened["core"]
        model = core.read_model(self.path(self.graph(component)))
        shape = model.inputs[0].get_partial_shape()
        shape[0] = batch
        # Our graphs may leave the height and the width open.
        model.reshape(shape if component == "encoder" else [batch, *self.latent])
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self.threads,
                "INFERENCE_PRECISION_HINT": self.precision,
                # Several contenders share the machine's processors; the system may move them all.
                "ENABLE_CPU_PINNING": False,
            },
        )
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != self.precision:
            raise Unavailable(f"OpenVINO: expected to run in {self.precision} here, got {got}")
        request = compiled.create_infer_request()
        entry = request.get_input_tensor().data
        outputs = [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

        def run(value: Array) -> Any:
            # Half the time of handing `value` to `infer`, which wraps it anew in each call.
            entry[:] = value
            request.infer()
            # Copied: the next call writes into the same memory, and the caller keeps what it was given.
            return [output.copy() for output in outputs]

        return run


class OpenVinoBf16(OpenVino):
    name = "openvino-bf16"
    title = "OpenVINO bf16"
    precision = "bf16"
    exact = False
    given = "as OpenVINO f32, with the precision hint bf16"


class OpenVinoInt8(OpenVino):
    name = "openvino-int8"
    title = "OpenVINO int8"
    converter = "nncf"
    exact = False
    given = "the plain graphs after NNCF's post-training quantization, calibrated on 300 inputs"

    def graph(self, component: str) -> str:
        return f"{component}-int8.xml"

    @staticmethod
    def convert(folder: str, component: str, batches: list[int]) -> None:
        _quantize(folder, component, f"{component}.onnx", f"{component}-int8.xml")


# Where the exporter puts a bundle's decoder in 32 bits.
_OURS = os.path.join("bundle", "decoder", "fp32", "model.onnx")


class OpenVinoBf16Rewritten(OpenVinoBf16):
    name = "openvino-bf16-rewritten"
    title = "OpenVINO bf16, our graph"
    only = ("decode",)
    given = "as OpenVINO bf16, with the decoder of vae-runtime's bundle, which the exporter has rewritten"

    def check(self) -> None:
        _require_rewritten(self)

    def graph(self, component: str) -> str:
        return _OURS


class OpenVinoInt8Rewritten(OpenVinoInt8):
    name = "openvino-int8-rewritten"
    title = "OpenVINO int8, our graph"
    only = ("decode",)
    given = "as OpenVINO int8, from the decoder of vae-runtime's bundle"

    def check(self) -> None:
        _require_rewritten(self)

    def graph(self, component: str) -> str:
        return "decoder-rewritten-int8.xml"

    @staticmethod
    def convert(folder: str, component: str, batches: list[int]) -> None:
        if component == "decoder" and _is_rewritten(folder):
            _quantize(folder, component, _OURS, "decoder-rewritten-int8.xml")


def _is_rewritten(folder: str) -> bool:
    """Return whether the exporter rewrites a model's decoder: it rewrites nearest-neighbor resizes."""
    with open(os.path.join(folder, "decoder.onnx"), "rb") as file:
        return b"Resize" in file.read()


def _require_rewritten(contender: Contender) -> None:
    if not _is_rewritten(contender.folder):
        raise Unavailable("the exporter does not rewrite this decoder")


def _quantize(folder: str, component: str, source: str, target: str) -> None:
    """Quantize a graph of the model's folder after training, with NNCF."""
    import nncf
    import openvino

    arrays = np.load(os.path.join(folder, "reference.npz"))
    inputs = arrays["x" if component == "encoder" else "z"]
    if component == "decoder" and len(inputs) < 300:
        random = np.random.Generator(np.random.PCG64(4))
        inputs = random.standard_normal((300, *inputs.shape[1:]), dtype=np.float32)
    model = openvino.Core().read_model(os.path.join(folder, source))
    calibration = nncf.Dataset([inputs[row : row + 1] for row in range(min(300, len(inputs)))])
    quantized = nncf.quantize(model, calibration)
    openvino.save_model(quantized, os.path.join(folder, target), compress_to_fp16=False)


class LiteRt(Contender):
    name = "litert"
    title = "LiteRT"
    environment = "litert"
    converter = "litert-torch"
    packages = ("ai-edge-litert",)
    given = "the module, converted by litert-torch for each batch size; the interpreter with XNNPACK"
    fixed = True

    @staticmethod
    def convert(folder: str, component: str, batches: list[int]) -> None:
        import litert_torch
        import torch

        for batch in batches:
            program = torch.export.load(os.path.join(folder, f"{component}-{batch}.pt2"))
            converted = litert_torch.convert(program.module(), program.example_inputs[0])
            converted.export(os.path.join(folder, f"{component}-{batch}.tflite"))

    def open(self, component: str, batch: int) -> Run:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(self.path(f"{component}-{batch}.tflite"), num_threads=self.threads)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]["index"]
        # A converter may have put the outputs in another order than the module's; the signature's names count them.
        signature = interpreter.get_signature_runner()
        exits = [detail["index"] for _, detail in sorted(signature.get_output_details().items())]
        assign, invoke, fetch = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

        def run(value: Array) -> Any:
            assign(entry, value)
            invoke()
            return [fetch(index) for index in exits]

        return run


class ExecuTorch(Contender):
    name = "executorch"
    title = "ExecuTorch (XNNPACK)"
    environment = "executorch"
    converter = "executorch"
    packages = ("executorch", "torch")
    given = "the module, lowered to XNNPACK for each batch size; its Python runtime, with PyTorch's tensors"
    fixed = True

    @staticmethod
    def convert(folder: str, component: str, batches: list[int]) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        for batch in batches:
            program = torch.export.load(os.path.join(folder, f"{component}-{batch}.pt2"))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            with open(os.path.join(folder, f"{component}-{batch}.pte"), "wb") as file:
                lowered.write_to_file(file)

    def setup(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(self.threads)
        got = portable_lib._threadpool_get_thread_count()
        if got != self.threads:
            raise Unavailable(f"ExecuTorch: expected {self.threads} threads, got {got}")

    def open(self, component: str, batch: int) -> Run:
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(self.path(f"{component}-{batch}.pte"))
        # A method does not keep its program alive.
        self._opened["program", component, batch] = program
        method = program.load_method("forward")

        def run(value: Array) -> Any:
            # Copied: the next call writes into the same memory, and the caller keeps what it was given.
            return [np.array(answer.numpy()) for answer in method.execute([torch.from_numpy(value)])]

        return run


def _without_path(text: str, folder: str) -> str:
    return text.replace(os.path.abspath(folder), os.path.basename(folder)).replace(folder, os.path.basename(folder))


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (
        Eager,
        Compiled,
        TorchScript,
        Naive,
        OpenVino,
        OpenVinoBf16,
        OpenVinoInt8,
        OpenVinoBf16Rewritten,
        OpenVinoInt8Rewritten,
        LiteRt,
        ExecuTorch,
        OursFp32,
        OursNative,
        OursFp16,
        OursInt8,
    )
}


def first(name: str, folder: str, latent: tuple[int, ...], ready: int) -> None:
    """Draw one sample as soon as may be, say so on a file descriptor, then what it took.

    Raises:
        Unavailable: the contender cannot run here.
    """
    contender = CONTENDERS[name](folder, 1, latent)
    contender.setup()
    sample = contender.work("sample", 1, None, None)()
    if sample.shape[0] != 1:
        raise Unavailable(f"expected one sample, got an array {list(sample.shape)}")
    os.write(ready, b"1")
    import json
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = used.ru_maxrss * 1024
    if os.path.exists("/proc/self/status"):
        # ru_maxrss counts what the parent held when it forked; the kernel's own mark begins with the program.
        with open("/proc/self/status", encoding="ascii") as file:
            memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    os.write(ready, json.dumps({"cpu": used.ru_utime + used.ru_stime, "memory": memory}).encode())
