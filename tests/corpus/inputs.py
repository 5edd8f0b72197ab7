"""Hostile files for the commands' arguments: `python -m tests.corpus.inputs [EVERY]` prints what went wrong, as JSON.

Each must be refused: in one line, with nothing written, in some seconds of the processor and below 300 MiB.
"""

import contextlib
import gzip
import io
import itertools
import json
import os
import pickle
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.corpus.__main__ import peak
from tests.corpus.cases import DIGITS

MAX_CHARACTERS = 2100
# Puts a file where a path says.
Put = Callable[[Path], object]

MODEL = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.e, self.d = torch.nn.Linear(width, 4), torch.nn.Linear(2, width)

    def encode(self, x):
        return self.e(x).chunk(2, 1)

    def decode(self, z):
        return self.d(z)
"""


def content(value: bytes) -> Put:
    return lambda path: path.write_bytes(value)


def sparse(head: bytes, size: int) -> Put:
    def put(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return put


PLACES: dict[str, Put] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


# Arrays.


def npy(header: str, values: bytes = b"\0" * 64, *, version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + values


def array(shape: str, kind: str = "'<f4'") -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}")


def arrays() -> Iterator[tuple[str, Put]]:
    for name, shape in {
        "petabytes": "(1125899906842624, 8)", "an overflow": "(4294967296, 4294967296, 4)",
        "less than nothing": "(-1, 8)",
        "an overflow to nothing": "(9223372036854775808, 2)", "99 axes": f"({'1, ' * 99})", "no shape": "'x'",
        "shapes of shapes": "((1, 8),)", "a true shape": "(True, 1e3)",
    }.items():  # fmt: skip
        yield name, content(array(shape))
    for name, kind in {
        "objects": "'|O'", "texts": "'<U2'", "records": "[('a', '<f4'), ('b', '|O')]", "bytes": "'|V1000000000'",
        "arrays of arrays": "('<f4', (100000, 100000))", "no type": "'nonsense'", "times": "'<M8[s]'",
    }.items():  # fmt: skip
        yield name, content(array("(1, 8)", kind))
    yield "a deep header", content(npy("(" * 9000 + ")" * 9000, version=2))
    yield "a deeper header", content(npy("-" * 9900 + "1"))
    yield "a giant header", content(npy("{" + " " * 2**26, version=2))
    yield "a header that promises 4 GiB", content(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1))
    yield "code as a header", content(npy("__import__('os').system('touch /tmp/never')"))
    yield "another version", content(npy("{}", version=9))
    yield "no values", content(array("(9, 8)"))
    yield "a pickle", content(pickle.dumps(list))
    yield "nothing", content(b"")
    yield "zeros", content(b"\0" * 4096)
    head = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1610612736, 1)}", b"")
    yield "6 GiB that are not there", sparse(head, 6 * 2**30 + len(head))
    yield from PLACES.items()


# Pictures.


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, data: bytes | None = None) -> bytes:
    header = struct.pack(">2I5B", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 4096) if data is None else data
    out = b"\x89PNG\r\n\x1a\n"
    for name, value in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        out += struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
    return out


def saved(form: str, size: tuple[int, int] = (32, 32), **options: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", size).save(out, form, **options)
    return out.getvalue()


def large_canvas() -> bytes:
    """An animation whose header gives it a large canvas."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "WEBP", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    webp = bytearray(out.getvalue())
    start = webp.index(b"VP8X") + 12
    webp[start : start + 6] = struct.pack("<I", 16382)[:3] * 2
    return bytes(webp)


def pictures() -> Iterator[tuple[str, str, Put]]:
    """Names and contents of the one picture in a folder."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(never) (w) file closefile\nshowpage\n"
    for suffix in ("png", "jpg", "tif", "webp"):
        yield f"PostScript as {suffix}", suffix, content(script)
    yield (
        "PostScript in a DOS file",
        "png",
        content(b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, 99, 0, 0, 0, 0) + script),
    )
    yield "PDF", "png", content(b"%PDF-1.4\n1 0 obj\n")
    for form in ("PPM", "ICO", "TGA", "PCX", "DDS", "JPEG2000", "SGI"):
        yield f"{form} as png", "png", content(saved(form))
    yield "a bomb of 2.5 gigapixels", "png", content(png(50_000, 50_000, depth=1))
    yield "a bomb of 150 megapixels", "png", content(png(15_000, 10_000))
    yield "a bomb of 16 megapixels", "png", content(png(4096, 4096))
    yield "a size of 2**31", "png", content(png(2**31 - 1, 2**31 - 1))
    yield "a size of 0", "png", content(png(0, 8))
    yield "a bomb of notes", "png", content(png(8, 8, *[(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 2**21))] * 99))
    yield "cut short", "png", content(saved("PNG")[:60])
    yield "16 bits", "png", content(png(8, 8, depth=16, data=zlib.compress(b"\0" * 136)))
    yield (
        "a large BMP",
        "bmp",
        content(b"BM" + struct.pack("<3I", 54, 0, 54) + struct.pack("<I2i2H6I", 40, 2**30, 2**30, 1, 24, *[0] * 6)),
    )
    yield (
        "a large GIF",
        "gif",
        content(
            b"GIF89a"
            + struct.pack("<2H3B", 65535, 65535, 0, 0, 0)
            + b","
            + struct.pack("<4HB", 0, 0, 65535, 65535, 0)
            + b"\2\0;"
        ),
    )
    tiff = saved("TIFF").replace(struct.pack("<2H2L", 256, 4, 1, 32), struct.pack("<2H2L", 256, 4, 1, 2**24))
    yield (
        "a large TIFF",
        "tif",
        content(tiff.replace(struct.pack("<2H2L", 257, 4, 1, 32), struct.pack("<2H2L", 257, 4, 1, 2**24))),
    )
    for form, suffix in (("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tiff")):
        yield f"{form} cut short", suffix, content(saved(form)[:40])
    yield "nothing", "png", content(b"")
    yield "a canvas of 268 megapixels", "webp", content(large_canvas())
    for name, put in PLACES.items():
        yield name, "png", put
    yield "6 GiB that are not there", "png", sparse(saved("PNG"), 6 * 2**30)


# MNIST's files.


def idx(n: int, height: int, width: int) -> bytes:
    return struct.pack(">4I", 0x803, n, height, width)


def idx_files() -> Iterator[tuple[str, str, Put]]:
    """Suffixes and contents of the training images."""
    # A file of gzip may have many members.
    member = gzip.compress(b"\0" * 2**24)
    yield "a bomb", ".gz", content(member * 128)
    yield "a bomb of images", ".gz", content(gzip.compress(idx(2**11, 2**10, 2**10)) + member * 128)
    yield "a bomb after the images", ".gz", content(gzip.compress(idx(1, 8, 8)) + member * 128)
    for name, sizes in {"2**96 images": [2**32 - 1] * 3, "no image": [0, 8, 8]}.items():
        yield name, ".gz", content(gzip.compress(idx(*sizes)))
        yield name, "", content(idx(*sizes))
    yield "no gzip", ".gz", content(idx(1, 8, 8) + b"\0" * 64)
    yield "cut short", ".gz", content(gzip.compress(idx(9, 8, 8) + b"\0" * 576)[:-9])
    yield "too long", "", content(idx(1, 8, 8) + b"\0" * 65)
    yield "4 GiB that are not there", "", sparse(idx(2**12, 2**10, 2**10), 2**32 + 16)
    for name, put in PLACES.items():
        # A folder without the file is one of pictures.
        if name in ("a pipe", "a link to itself"):
            yield name, "", put


# Runs.


def safetensors(header: object, values: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def tensor(*shape: int, end: int = 64, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def safetensors_files() -> Iterator[tuple[str, Put]]:
    yield "a header that promises 2**60 bytes", content(struct.pack("<Q", 2**60))
    yield "a header of 64 MiB", content(safetensors(b"{" + b" " * 2**26))
    yield "a million tensors", content(safetensors({f"t{n}": tensor(0, end=0) for n in range(10**5)}, b""))
    yield "a deep header", content(safetensors(b'{"a":' * 50_000))
    yield "petabytes", content(safetensors({"e.weight": tensor(2**50)}))
    yield "an overflow", content(safetensors({"e.weight": tensor(2**32, 2**32)}))
    yield "another end", content(safetensors({"e.weight": tensor(16, end=2**40)}))
    yield "other tensors", content(safetensors({"e.weight": tensor(16)}))
    yield "an unknown type", content(safetensors({"e.weight": tensor(16, dtype="X9")}))
    yield "nothing", content(b"")
    yield "text", content(b"model")
    yield (
        "6 GiB that are not there",
        sparse(safetensors({"e.weight": tensor(3 * 2**29, end=6 * 2**30)}, b""), 6 * 2**30),
    )
    yield from PLACES.items()


def run_folder(folder: Path) -> dict[str, object]:
    """Write a run whose training has not finished; return its config.json."""
    from vae_export.training import checkpoint
    from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
    from vae_export.training.data.dataset import Provenance
    from vae_export.training.model import VAE

    config = ModelConfig(observation_shape=(8,), latent=2, hidden=(4,))
    provenance = Provenance("x", "", "unknown", "sha256:" + "0" * 64, 1, 0, 1)
    folder.mkdir()
    checkpoint.write_info(
        folder, checkpoint.RunInfo(config, TrainConfig(epochs=1), DataConfig("nowhere.npy"), provenance, "2")
    )
    checkpoint.save_weights(folder, VAE(config).state_dict())
    document: dict[str, object] = json.loads((folder / "config.json").read_bytes())
    return document


def configs(document: dict[str, object]) -> Iterator[tuple[str, Put]]:
    for section, changes in {
        "model": {
            "hidden": [[10**12], [4] * 10**5, 5, [[4]], ["4"], [2**16] * 99], "latent": [10**12, -1, 1e30, None, True],
            "encoder_blocks": [10**9, 2**24], "observation_shape": [[2**24] * 16, [10**30], [1] * 999, []],
            "scale": [float("nan"), 10**400, -1, "1", float("inf")], "architecture": ["x" * 10**6, ["mlp"], {}],
        },
        "train": {
            "epochs": [-1, 10**30, 0.5, [1]], "learning_rate": [float("nan"), float("inf"), 10**400, -1, None],
            "seed": [-1, 2**64], "threads": [10**9], "batch_size": [0, 10**12], "unknown" * 10_000: [1],
        },
        "data": {"source": ["", "\0", 5, None, "\ud800", "/dev/zero", "x" * 10**5], "test_fraction": [5, -1]},
        "provenance": {"train": ["x", 1e30, [[]]], "digest": [None, {"a": 1}], "name": [5, "\ud800"]},
    }.items():  # fmt: skip
        for field, values in changes.items():
            for value in values:
                changed = json.loads(json.dumps(document))
                changed[section][field] = value
                yield f"{section}.{field[:20]} = {str(value)[:20]}", content(json.dumps(changed).encode())
        for wrong in (None, [], "x", 5, {}, [[[]]] * 999):
            yield f"{section} = {str(wrong)[:20]}", content(json.dumps({**document, section: wrong}).encode())
    for version in (0, "2" * 10**5, None, [2]):
        yield f"version {str(version)[:20]}", content(json.dumps({**document, "format_version": version}).encode())
    text = json.dumps(document).encode()
    yield "100,000 deep", content(b"[" * 10**5)
    yield "900 deep", content(b'{"format_version": 2, "model": ' + b"[" * 900 + b"]" * 900 + b"}")
    yield "4 MiB", content(text + b" " * 2**22)
    yield "6 GiB that are not there", sparse(text, 6 * 2**30)
    yield "not UTF-8", content(b"\xff\xfe\xfd" + text)
    yield "a list", content(b"[2]")
    yield "numbers of 100,000 digits", content(b'{"format_version": ' + b"9" * 10**5 + b"}")
    yield "nothing", content(b"")
    yield from PLACES.items()


# Weights of torch.save.


class _System:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch written-by-a-pickle",)


def zipped(pickled: bytes, record: bytes = b"\0" * 64, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, value in {"data.pkl": pickled, "byteorder": b"little", "data/0": record, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", value)
    return out.getvalue()


def state(count: int, *shape: int, name: str = "e.weight") -> bytes:
    """The pickle of a state of one tensor whose storage has so many numbers."""
    import torch

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> object:
            stride = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, shape, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    out = io.BytesIO()
    Pickler(out, 2).dump({name: Tensor(), "e.bias": Tensor(), "d.weight": Tensor(), "d.bias": Tensor()})
    return out.getvalue()


def torch_files() -> Iterator[tuple[str, Put]]:
    import torch

    # The numbers of LONG_BINPUT and BINBYTES8 are sizes that the reader in C takes at once.
    memo = b"\x80\x02cnowhere\nThing\nr" + struct.pack("<I", 2**29) + b")R."
    unknown = b"\x80\x02cnowhere\nThing\n)R\x8e"
    yield "code", content(pickle.dumps(_System(), 2))
    yield "code in an archive", content(zipped(pickle.dumps({"e.weight": _System()}, 2)))
    yield "a bomb", content(zipped(state(2**28, 8, 4), b"\0" * 2**28, compression=zipfile.ZIP_DEFLATED))
    yield "a bomb of a pickle", content(zipped(b"]" * 2**25))
    yield "a compressed bomb of a pickle", content(zipped(b"]" * 2**25, compression=zipfile.ZIP_DEFLATED))
    yield "a pickle of a million steps", content(zipped(b"\x80\x02" + b"]0" * (2**19 - 2) + b"."))
    yield "a bomb of memory", content(zipped(memo))
    yield "a bomb of memory, not in an archive", content(memo)
    yield "2**60 bytes", content(zipped(unknown + struct.pack("<Q", 2**60) + b"."))
    yield "2**32 bytes", content(zipped(unknown + struct.pack("<Q", 2**32) + b"."))
    yield "more numbers than there are", content(zipped(state(2**40, 4, 8)))
    yield "numbers beyond the record", content(zipped(state(2**20, 2**10, 2**10)))
    yield "petabytes", content(zipped(state(2**50, 2**25, 2**25)))
    old = io.BytesIO()
    torch.save({"e.weight": torch.zeros(4, 8)}, old, _use_new_zipfile_serialization=False)
    yield "a bomb of a pickle, not in an archive", content(b"\x80\x02" + b"]" * 2**23)
    yield "a text that promises 2 GiB", content(b"\x80\x02X" + struct.pack("<I", 2**31) + b"x")
    yield "an old file cut short", content(old.getvalue()[:-64])
    yield "other tensors", content(old.getvalue())
    yield "an archive of nothing", content(zipped(b""))
    yield "a number", content(zipped(b"\x80\x02K\x05."))
    yield "a pickle in circles", content(zipped(b"\x80\x02}q\0X\x01\0\0\0ah\0s."))
    yield "an archive whose end is hidden", content(zipped(state(2**20, 2**10, 2**10)) + b"\0" * 2**17)
    yield "no archive", content(b"PK\3\4" + b"\0" * 99)
    yield "nothing", content(b"")
    yield "text", content(b"model\n" * 99)
    yield "a pointer", content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    yield "6 GiB that are not there", sparse(zipped(state(16, 4, 4)), 6 * 2**30)
    yield from PLACES.items()


# Graphs.


def doubling(depth: int) -> bytes:
    """A graph of functions of which each calls the one before twice."""
    import onnx
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    functions, inner, domain = [], "Tanh", ""
    for number in range(depth):
        nodes = [helper.make_node(inner, [a], [b], domain=domain) for a, b in (("x", "a"), ("a", "y"))]
        functions.append(helper.make_function("mine", f"F{number}", ["x"], ["y"], nodes, opsets))
        inner, domain = f"F{number}", "mine"
    nodes = [helper.make_node(inner, ["x"], ["z"], domain=domain)]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 6])] for name in "xz"]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), functions=functions, opset_imports=opsets)
    return bytes(model.SerializeToString())


def backwards(count: int, last: str) -> bytes:
    """A graph of nodes of which each reads the one after; the last one in the file reads `last`."""
    import onnx
    from onnx import helper

    names = ["z", *(f"t{number}" for number in range(count - 1)), last]
    nodes = [helper.make_node("Tanh", [taken], [made]) for made, taken in itertools.pairwise(names)]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 6])] for name in "xz"]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


# A case: its name, and what puts its files into a folder and returns the arguments of the command.
Case = tuple[str, Callable[[Path], list[str]]]


def cases(run: Path) -> Iterator[Case]:
    """All cases; `run` is the folder of a run."""

    def of(put: Put, file: str, *arguments: object) -> Callable[[Path], list[str]]:
        def prepare(folder: Path) -> list[str]:
            (folder / file).parent.mkdir(exist_ok=True)
            put(folder / file)
            return [str(argument) for argument in arguments]

        return prepare

    def of_run(put: Put, file: str, *arguments: str) -> Callable[[Path], list[str]]:
        def prepare(folder: Path) -> list[str]:
            (folder / "run").mkdir()
            for path in run.iterdir():
                if path.name != file:
                    (folder / "run" / path.name).write_bytes(path.read_bytes())
            put(folder / "run" / file)
            return list(arguments)

        return prepare

    export = ("vae-export", "export", "--out", "out", "--model", "corpus_model:Tiny")
    small = ("--hidden", 4, "--latent", 2, "--epochs", 1, "--threads", 1)
    for name, put in arrays():
        yield (
            f"train --data: {name}",
            of(put, "x.npy", "vae-export", "train", "--out", "out", "--data", "x.npy", *small),
        )
        yield f"export --example: {name}", of(put, "x.npy", *export, "--example", "x.npy")
        yield f"encode: {name}", of(put, "x.npy", "vae-runtime", "encode", DIGITS, "x.npy", "--out", "out.npy")
    for name, put in PLACES.items():
        for verb in ("score", "reconstruct", "decode"):
            yield (
                f"{verb}: {name}",
                of(
                    put,
                    "x.npy",
                    "vae-runtime",
                    verb,
                    DIGITS,
                    "x.npy",
                    "--out",
                    "out.csv" if verb == "score" else "out.npy",
                ),
            )
        yield (
            f"generate: {name}",
            of(put, "x.npy", "vae-runtime", "generate", DIGITS, "--encode", "x.npy", "--out", "out"),
        )
        yield (
            f"interpolate: {name}",
            of(put, "x.npy", "vae-runtime", "interpolate", DIGITS, "--inputs", "x.npy", "--out", "out.npy"),
        )
        yield f"--latents: {name}", of(put, "x.npy", *export, "--latents", "x.npy")
        yield f"--condition: {name}", of(put, "x.npy", *export, "--example", "x.npy", "--condition", "c=x.npy")
        yield f"adopt: {name}", of(put, "x.onnx", "vae-export", "adopt", "x.onnx", "x.onnx", "--out", "out")
        yield f"sign --key: {name}", of(put, "key", "vae-export", "sign", DIGITS, "--key", "key")
        yield f"verify --key: {name}", of(put, "key", "vae-runtime", "verify", DIGITS, "--key", "key")
        yield f"parity with {name}", of(put, "b", "vae-export", "parity", run, "b")
    for name, suffix, put in pictures():
        yield (
            f"pictures: {name}",
            of(put, f"x/1.{suffix}", "vae-export", "train", "--out", "out", "--data", "x", *small),
        )
    for name, suffix, put in idx_files():
        yield (
            f"IDX: {name}",
            of(put, f"x/train-images-idx3-ubyte{suffix}", "vae-export", "train", "--out", "out", "--data", "x", *small),
        )
    for name, put in {
        "6 GiB that are not there": sparse(b"\x08\x08", 6 * 2**30), "garbage": content(b"x" * 999),
        "many fields": content(b"\x0a\0" * 2**20), "nothing": content(b""),
        "functions that double 21 times": content(doubling(21)),
        "16,000 nodes in reverse order": content(backwards(16_000, "nothing")),
        "100,000 nodes in reverse order": content(backwards(100_000, "x")),
    }.items():  # fmt: skip
        yield f"adopt: {name}", of(put, "x.onnx", "vae-export", "adopt", "x.onnx", "x.onnx", "--out", "out")
    document = json.loads((run / "config.json").read_bytes())
    for number, (name, put) in enumerate(configs(document)):
        verbs = (("evaluate", "run"), ("export", "run", "--out", "out"), ("parity", "run", str(DIGITS)))
        yield f"config.json: {name}", of_run(put, "config.json", "vae-export", *verbs[number % 3])
    for name, put in safetensors_files():
        train = ("vae-export", "train", "--out", "run", *small)
        # A link that leads nowhere is a state that is not there.
        if "link" not in name:
            yield f"state.safetensors: {name}", of(put, "run/state.safetensors", *train)
        yield f"model.safetensors: {name}", of_run(put, "model.safetensors", "vae-export", "evaluate", "run")
        yield (
            f"weights.safetensors: {name}",
            of(put, "w.safetensors", *export, "--example", "good.npy", "--weights", "w.safetensors"),
        )
    for name, put in torch_files():
        for suffix in ("pt", "ckpt"):
            yield (
                f"weights.{suffix}: {name}",
                of(put, f"w.{suffix}", *export, "--example", "good.npy", "--weights", f"w.{suffix}"),
            )


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Take what libraries write below Python, too, on standard error; a command sees one that is no terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def text() -> str:
            sys.stderr.flush()
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield text
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def _present(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "__pycache__"}


def outcome(prepare: Callable[[Path], list[str]]) -> tuple[list[str], float, float]:
    """What is wrong with a refusal, its seconds of the processor, and the MiB that it took beyond what there was."""
    import vae_export.cli
    import vae_runtime.cli.main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        np.save("good.npy", np.zeros((4, 8), np.float32))
        command, *arguments = prepare(folder)
        call = vae_export.cli.main if command == "vae-export" else vae_runtime.cli.main.main
        before = _present(folder)
        # Lets the peak begin anew.
        Path("/proc/self/clear_refs").write_text("5")
        started, memory = time.process_time(), peak()
        with _captured() as text:
            try:
                status = str(call(arguments))
            except SystemExit as error:
                status = str(error.code)
            except BaseException as error:  # what no file may cause
                status = f"{type(error).__name__}: {error}"[:300]
            seconds, mib = time.process_time() - started, peak() - memory
            # A training says where it computes before it reads what an earlier one left.
            words = "".join(line for line in text().splitlines(True) if not line.startswith("training on "))
        written = _present(folder) - before
        os.chdir("/")
    wrong = []
    if status not in ("1", "2"):
        wrong.append(f"status {status}")
    if status == "1" and not (words.startswith("error: ") and words.count("\n") == 1):
        wrong.append(f"expected one line, got {words[:300]!r}")
    if len(words) > MAX_CHARACTERS:
        wrong.append(f"{len(words)} characters")
    if written:
        wrong.append(f"wrote {', '.join(sorted(written))[:200]}")
    return wrong, seconds, mib


def results(every: int, only: str = "") -> dict[str, object]:
    """Run each of so many cases whose name holds a text."""
    wrong, count = [], 0
    slowest, largest = (0.0, ""), (0.0, "")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "corpus_model.py").write_text(MODEL)
        sys.path.insert(0, name)
        run_folder(Path(name) / "run")
        # What the commands import is no matter of the cases.
        warm = {"train --data: nothing", "state.safetensors: nothing", "encode: nothing"}
        for text, prepare in cases(Path(name) / "run"):
            if text in warm:
                outcome(prepare)
        for number, (text, prepare) in enumerate(cases(Path(name) / "run")):
            if number % every or only not in text:
                continue
            if only:
                print(text, file=sys.stderr)
            problems, seconds, mib = outcome(prepare)
            count += 1
            wrong += [f"{text}: {problem}" for problem in problems]
            slowest, largest = max(slowest, (seconds, text)), max(largest, (mib, text))
    return {"cases": count, "wrong": wrong, "slowest": slowest, "largest": largest}


def main() -> None:
    """Run the cases, and print what became of them."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(json.dumps(results(every, *sys.argv[2:3])))


if __name__ == "__main__":
    main()
