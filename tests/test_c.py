"""The runtime in C: what it shares with Python's, its documents, and its answers to the cases of conformance/.

`make test-c` has the rest: its own tests, sanitizers, fuzzing and other processors.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
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
