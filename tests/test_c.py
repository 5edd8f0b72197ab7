"""The runtime in C: what it shares with Python's, its documents, and its answers to the cases of conformance/.

`make test-c` has the rest: its own tests, sanitizers, fuzzing and other processors.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import vae_runtime
from conformance.__main__ import ask, judge, read_cases, write_requests
from conformance.hosts import library_of
from vae_runtime import graph_rules, noise
from vae_runtime._version import __version__

ROOT = Path(__file__).parents[1]
C = ROOT / "runtime" / "c"
SOURCE = (C / "vae_runtime.c").read_text(encoding="utf-8")
HEADER = (C / "vae_runtime.h").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "runtime/c/README.md", "docs/embedding.md")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
LIBRARIES = ("-lm", "-ldl", "-lpthread")
# What a fragment of a document finds around it.
AROUND = """
#include <stdio.h>
#include <vae_runtime.h>
static float x[16 * 784], y[16 * 784], z[16 * 64], mean[16 * 64], std[16 * 64];
int main(void) {
    vae *v;
    if (vae_open("models/mnist", NULL, &v) != VAE_OK) return fprintf(stderr, "%%s\\n", vae_last_error()), 1;
    %s
    vae_close(v);
    return vae_last_error()[0] != 0;
}
"""

NOISY = """
#include <stdio.h>
#include <vae_runtime.h>
int main(void) {
    vae *v;
    static float x[24], z[24], y[4][24];
    vae_draw drawn = {.seed = 5, .start = 2, .sampled = 1};
    vae_array given = {.floats = x, .count = 24, .rank = 2, .sizes = {1, 12}};
    vae_array latent = {.name = "z", .floats = z, .count = 24, .rank = 2, .sizes = {2, 6}};
    vae_shape shape = {"z", 2, {2, 6}}, row;
    if (vae_open("noisy", NULL, &v) || vae_noise_uniform(3, 0, 2, 12, 0, x) || vae_noise_uniform(3, 0, 2, 12, 0, z) ||
        vae_reconstruct(v, 2, &given, NULL, y[0], 24) || vae_reconstruct(v, 2, &given, &drawn, y[1], 24) ||
        vae_decode(v, 2, &latent, 1, NULL, y[2], 24) || vae_decode(v, 2, &latent, 1, &drawn, y[3], 24) ||
        vae_decoded_shape(v, &shape, 1, &row) || row.sizes[1] != 12 || vae_encoded_shape(v, &row, "z", &shape) ||
        shape.sizes[1] != 6)
        return fprintf(stderr, "%s\\n", vae_last_error()), 1;
    for (size_t i = 0; i < 4 * 24; i++) printf("%.9g ", y[i / 24][i % 24]);
    vae_close(v);
    return 0;
}
"""


def blocks(language):
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for number, match in enumerate(re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)):
            found.append(pytest.param(match[1], id=f"{document}:{number}"))
    return found


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, encoding="utf-8", timeout=300, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def compiler():
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(scope="module")
def onnxruntime():
    library = library_of()
    if library is None:
        pytest.skip("this ONNX Runtime's wheel has no shared library; 1.19 and newer have")
    return library


@pytest.fixture(scope="module")
def built(tmp_path_factory, compiler):
    """A folder with the library, and the table that its source includes."""
    folder = tmp_path_factory.mktemp("c")
    table, _ = noise.table()
    (folder / "vnoise1_table.h").write_text(",".join(map(str, table.tolist())))
    run(compiler, *FLAGS, "-O1", "-fPIC", "-shared", f"-I{folder}", f"-I{C}", C / "vae_runtime.c", "-o",
        folder / "libvae_runtime.so", *LIBRARIES)  # fmt: skip
    return folder


@pytest.fixture
def folder(tmp_path, built, onnxruntime):
    """A folder for a program of a reader's, where the system finds both libraries and the models that ship."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "libonnxruntime.so.1").symlink_to(onnxruntime)
    return tmp_path


def started(program, folder, built):
    return run(program, cwd=folder, env={**os.environ, "LD_LIBRARY_PATH": f"{folder}:{built}"})


@pytest.mark.long
def test_every_case_is_answered(tmp_path, built, compiler, onnxruntime):
    driver = tmp_path / "driver"
    run(compiler, *FLAGS, "-O1", f"-I{built}", f"-I{C}", ROOT / "conformance" / "driver.c", "-o", driver, *LIBRARIES)
    cases = read_cases()
    assert judge(cases, ask([str(driver), onnxruntime], write_requests(cases, tmp_path))) == {}


SWAPPED = ["additional_metadata", "vae", "latents", 0, "posterior"]


@pytest.mark.long
def test_outputs_whose_roles_are_swapped_fail(tmp_path, built, compiler, onnxruntime):
    driver = tmp_path / "driver"
    run(compiler, *FLAGS, "-O1", f"-I{built}", f"-I{C}", ROOT / "conformance" / "driver.c", "-o", driver, *LIBRARIES)
    request = {"ask": "verify", "bundle": "plain"}
    edit = {"manifest": [[[*SWAPPED, "std"], "logvar"], [[*SWAPPED, "logvar"], "std"]]}
    cases = [{"id": "swapped", "request": request, "edit": edit}, {"id": "right", "request": request}]
    answers = ask([str(driver), onnxruntime], write_requests(cases, tmp_path))
    assert answers["swapped"]["answer"] == {"passed": False}
    assert answers["right"]["answer"] == {"passed": True}


@pytest.mark.long
def test_a_driver_with_another_table_is_caught(tmp_path, compiler, onnxruntime):
    table = noise.table()[0].copy()
    table[200:] += 1
    (tmp_path / "vnoise1_table.h").write_text(",".join(map(str, table.tolist())))
    driver = tmp_path / "driver"
    run(compiler, *FLAGS, "-O0", f"-I{tmp_path}", f"-I{C}", ROOT / "conformance" / "driver.c", "-o", driver, *LIBRARIES)
    cases = [case for case in read_cases() if case["request"]["ask"] in ("words", "normal", "prior")]
    wrong = judge(cases, ask([str(driver), onnxruntime], write_requests(cases, tmp_path)))
    assert {name.partition("/")[0] for name in wrong} == {"normal", "prior"}


@pytest.mark.long
@pytest.mark.parametrize("code", blocks("c"))
def test_the_c_of_the_documents_runs(code, folder, built, compiler):
    source = folder / "app.c"
    source.write_text(code if "int main" in code else AROUND % code, encoding="utf-8")
    run(compiler, *FLAGS, source, f"-I{C}", f"-L{built}", "-lvae_runtime", "-o", folder / "app")
    started(folder / "app", folder, built)


@pytest.mark.long
@pytest.mark.parametrize("code", blocks("cpp"))
def test_the_cpp_of_the_documents_runs(code, folder, built):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (folder / "app.cpp").write_text(code, encoding="utf-8")
    run(
        "c++",
        "-std=c++17",
        *FLAGS[1:],
        folder / "app.cpp",
        f"-I{C}",
        f"-L{built}",
        "-lvae_runtime",
        "-o",
        folder / "app",
    )
    assert started(folder / "app", folder, built) == "digits-conditional: 640 numbers\n"


@pytest.mark.long
@pytest.mark.parametrize("code", blocks("rust"))
def test_the_rust_of_the_documents_runs(code, folder, built):
    rustc = shutil.which("rustc") or shutil.which("rustc", path=str(Path.home() / ".cargo" / "bin"))
    if rustc is None:
        pytest.skip("no Rust compiler")
    (folder / "app.rs").write_text(code, encoding="utf-8")
    run(rustc, "--edition=2021", "-Dwarnings", "-L", built, "-o", folder / "app", folder / "app.rs")
    expected = vae_runtime.load(ROOT / "models" / "mnist").sample(16, seed=7)
    count, _, largest = started(folder / "app", folder, built).partition(" numbers, the largest ")
    assert int(count) == expected.size
    assert np.isclose(float(largest), expected.max(), atol=1e-5)


@pytest.mark.long
def test_the_example_writes_what_python_samples(folder, built, compiler):
    run(compiler, *FLAGS, C / "examples" / "sample.c", f"-I{C}", f"-L{built}", "-lvae_runtime", "-o", folder / "app")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{built}"}
    command = [folder / "app", "models/digits"]
    content = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    x = np.frombuffer(content.stdout, "<f4").reshape(16, 1, 8, 8)
    assert np.abs(x - vae_runtime.load(ROOT / "models" / "digits").sample(16, seed=7)).max() < 1e-5


@pytest.mark.long
def test_the_c_of_streams_writes_what_python_decodes(folder, built, compiler):
    text = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")
    of = {name: re.search(rf"^```{name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1] for name in ("python", "c")}
    run(sys.executable, "-W", "error", "-c", f"{of['python']}\nvae.decode(z).tofile('x')", cwd=folder)
    (folder / "app.c").write_text(of["c"], encoding="utf-8")
    run(compiler, *FLAGS, folder / "app.c", f"-I{C}", f"-L{built}", "-lvae_runtime", "-o", folder / "app")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{built}"}
    done = subprocess.run([folder / "app"], cwd=folder, env=environment, capture_output=True, check=True)
    sound, expected = np.frombuffer(done.stdout, "<f4"), np.fromfile(folder / "x", "<f4")
    np.testing.assert_allclose(sound, expected, atol=1e-5)
    assert np.abs(sound - np.roll(expected, 1)).max() > 1e-3


@pytest.mark.long
def test_noise_of_both_components_has_the_sizes_of_what_is_given(tmp_path, folder, built, compiler):
    """An encoder and a decoder that take noise, over an axis that is dynamic."""
    bundle = tmp_path / "noisy"
    shutil.copytree(ROOT / "conformance" / "bundles" / "dynamic", bundle)
    document = json.loads((bundle / "manifest.json").read_text())
    vae_node = document["additional_metadata"]["vae"]
    vae_node.pop("tiles", None)
    latents = vae_node["latents"]
    latents[0]["posterior"]["noise"] = "eps"
    latents.append({**latents[0], "name": "w", "posterior": {"kind": "none"}})
    (bundle / "manifest.json").write_text(json.dumps(document))
    for component, added, like, node in (
        ("encoder", "eps", "mu", onnx.helper.make_node("Add", ["raw", "eps"], ["mu"])),
        ("decoder", "w", "z", onnx.helper.make_node("Add", ["z", "w"], ["raw"])),
    ):
        (path,) = bundle.glob(f"{component}/*/model.onnx")
        model = onnx.load(path)
        graph = model.graph
        (value,) = (each for each in [*graph.input, *graph.output] if each.name == like)
        graph.input.add().CopyFrom(value)
        graph.input[-1].name = added
        for each in graph.node:
            each.input[:] = ["raw" if name == like else name for name in each.input]
            each.output[:] = ["raw" if name == like else name for name in each.output]
        graph.node.insert(len(graph.node) if component == "encoder" else 0, node)
        onnx.save(model, path)
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(bundle)}\n" for path in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))

    source = folder / "app.c"
    source.write_text(NOISY, encoding="utf-8")
    run(compiler, *FLAGS, source, f"-I{C}", f"-L{built}", "-lvae_runtime", "-o", folder / "app")
    found = np.array(started(folder / "app", folder, built).split(), np.float32).reshape(4, 2, 1, 12)
    vae = vae_runtime.load(bundle)
    x, z = noise.uniform(3, 0, 2, (1, 12), stream=0), noise.uniform(3, 0, 2, (2, 6), stream=0)
    expected = [vae.reconstruct(x), vae.reconstruct(x, seed=5, start=2), vae.decode({"z": z}),
                vae.decode({"z": z}, seed=5, start=2)]  # fmt: skip
    assert np.abs(found - np.stack(expected)).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    assert np.abs(expected[2] - expected[3]).max() > 1e-2


def test_both_versions_are_one():
    assert re.search('VAE_VERSION "(.*)"', HEADER)[1] == __version__
    assert f"VERSION {__version__} " in (C / "CMakeLists.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("domain", "name"), [(b"ai.onnx", "STANDARD"), (b"com.microsoft", "MICROSOFT")])
def test_both_allow_the_same_operators(domain, name):
    code = re.search(rf"{name}_OPERATORS\[\] =(.*?);", SOURCE, re.DOTALL)[1]
    assert set(re.findall(r"\w+", code)) == {word.decode() for word in graph_rules.OPERATORS[domain]}


def test_the_table_of_cmake_is_the_noise_of_python(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("no CMake")
    table = ROOT / "runtime" / "vae_runtime" / "vnoise1_table.bin"
    make = ("cmake", f"-DOUT={tmp_path / 'table.h'}")
    run(*make, f"-DTABLE={table}", "-P", C / "table.cmake")
    numbers = [int(word, 16) for word in re.findall("0x[0-9a-f]+", (tmp_path / "table.h").read_text())]
    assert numbers == noise.table()[0].tolist()
    (tmp_path / "other.bin").write_bytes(table.read_bytes()[::-1])
    done = subprocess.run(
        [*make, f"-DTABLE={tmp_path / 'other.bin'}", "-P", C / "table.cmake"], capture_output=True, check=False
    )
    assert done.returncode
    assert b"expected the table of vnoise-1" in done.stderr


def test_the_source_takes_memory_in_one_place():
    assert len(re.findall(r"\b(malloc|calloc|realloc)\(", SOURCE)) == 1
