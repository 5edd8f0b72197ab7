"""The native core, the extra `native`: the same bits as in Python, or Python alone."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_runtime import __version__, noise
from vae_runtime.errors import VaeError
from vae_runtime.generation import conversion
from vae_runtime.native import Core

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]
WORDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, with what its library is made of."""
    if shutil.which("cc") is None:
        pytest.skip("expected a C compiler, got no cc")
    place = tmp_path_factory.mktemp("native")
    for folder, files in (
        ("native", ("vae_runtime_native/__init__.py", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")),
        ("c", ("vae_runtime.c", "vae_runtime.h", "ort_api.h")),
        ("vae_runtime", ("vnoise1_table.bin",)),
    ):
        for file in files:
            target = place / "runtime" / folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "runtime" / folder / file, target)
    return place / "runtime" / "native"


@pytest.fixture(scope="module")
def installed(project, tmp_path_factory):
    """A folder with the package as its wheel installs it."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob(f"vae_runtime_native-{__version__}-py3-none-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


@pytest.fixture(scope="module")
def core(installed):
    return Core(str(installed / "vae_runtime_native" / "libvae_runtime.so"))


def drawn(core, name, seed, start, n, elements, stream, *truncation):
    out = np.full((n, elements), 7, np.uint32 if name == "words" else np.float32)
    core.draw(name, seed % 2**64, start, stream, out, *truncation)
    return out


@settings(deadline=None)
@given(
    st.integers(-(2**63), 2**64 - 1),
    st.one_of(st.integers(0, 2**64 - 1), st.integers(2**64 - 40, 2**64 - 1)),
    st.integers(1, 70),
    st.integers(1, 300),
    WORDS,
    st.one_of(st.just(0.0), st.floats(0.01, 7.0)),
)
def test_the_native_core_draws_the_same_bits(core, seed, start, n, elements, stream, truncation):
    shape, bound = (elements,), truncation or None
    for name, expected in (
        ("words", noise.words(seed, start, n, shape, stream)),
        ("uniform", noise.uniform(seed, start, n, shape, stream)),
        ("normal", noise.normal(seed, start, n, shape, stream, bound)),
    ):
        further = (truncation,) if name == "normal" else ()
        assert drawn(core, name, seed, start, n, elements, stream, *further).tobytes() == expected.tobytes()


def test_it_draws_every_tail(core):
    """A million words reach each of the table's four levels; the words of Python say which."""
    words = noise.words(3, 0, 1, (2**20,))
    assert int((words & 0x7FFFFFFF).min()) < 2**13
    assert drawn(core, "normal", 3, 0, 1, 2**20, 0, 0.0).tobytes() == noise.normal(3, 0, 1, (2**20,)).tobytes()


@pytest.mark.parametrize(("seed", "place", "tail"), [(1, 15246, 33551635), (911, 51822, 524287), (1332, 49560, 524244)])
def test_it_interpolates_up_to_the_end_of_a_level(core, seed, place, tail):
    """Words at the end of levels 1 and 2, whose next number of the table is one of the level before."""
    shape = (place + 1,)
    assert noise.words(seed, 0, 1, shape)[0, place] & 0x7FFFFFFF == tail
    assert drawn(core, "normal", seed, 0, 1, *shape, 0, 0.0)[0, place] == noise.normal(seed, 0, 1, shape)[0, place]


def test_what_the_library_refuses_is_not_taken_for_numbers(core):
    with pytest.raises(AssertionError, match="refused normal"):
        drawn(core, "normal", 1, 0, 1, 2, 0, 1e-3)


@settings(deadline=None)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False) | st.floats(-2, 2)),
    st.integers(0, 200),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.3, 7.7), (-1e6, 1e-6), (-3e38, 3e38)]),
    st.sampled_from([None, np.nan, np.inf, -np.inf]),
)
def test_the_native_core_converts_to_the_same_bytes(core, numbers, further, bounds, wrong):
    grid = np.linspace(bounds[0], bounds[1], further + 1)
    x = np.concatenate([np.float32(numbers), grid, grid[:-1] + np.diff(grid) / 2]).astype(np.float32)[None]
    if wrong is not None:
        x[0, further] = wrong
    outs = [np.full(x.shape, 7, np.uint8) for _ in range(2)]
    for out, found in zip(outs, (None, core), strict=True):
        with patch.object(conversion, "native_core", lambda found=found: found):
            if wrong is None:
                conversion.to_uint8(x.copy(), bounds, out, 0, "it gives")
                continue
            with pytest.raises(VaeError, match=rf"it gives {wrong} at \[{further}\]"):
                conversion.to_uint8(x.copy(), bounds, out, 0, "it gives")
    assert wrong is not None or np.array_equal(*outs)


ASK = """
from vae_runtime import noise
values = [noise.normal(5, 0, 3, (7,)).tobytes().hex() for _ in range(2)]
print(values[1], noise.native_core() is not None, sep="\\n")
"""


def asked(python, site, **variables):
    done = python("-c", ASK, env={"PYTHONPATH": f"{ROOT / 'runtime'}:{site}", "VAE_RUNTIME_NATIVE": "1", **variables})
    assert done.returncode == 0, done.stderr
    values, used = done.stdout.splitlines()
    assert values == noise.normal(5, 0, 3, (7,)).tobytes().hex()
    return used == "True", done.stderr.splitlines()


def test_it_serves_where_it_is_installed(python, installed):
    assert asked(python, installed) == (True, [])
    assert asked(python, installed, VAE_RUNTIME_NATIVE="0") == (False, [])


def _other_version(package):
    init = package / "__init__.py"
    init.write_text(init.read_text("utf-8").replace(f'"{__version__}"', '"0.0.1"'), "utf-8")


def _other_table(package):
    init = package / "__init__.py"
    init.write_text(init.read_text("utf-8").replace(noise.TABLE_SHA256, "0" * 64), "utf-8")


def _cut(package):
    library = package / "libvae_runtime.so"
    library.write_bytes(library.read_bytes()[:5000])


def _damaged(package):
    (package / "__init__.py").write_text("__version__ = (", "utf-8")


def _missing(package):
    (package / "libvae_runtime.so").unlink()


def _without_a_function(package):
    library = package / "libvae_runtime.so"
    content = library.read_bytes().replace(b"\0vae_to_uint8\0", b"\0vae_to_uint9\0")
    library.write_bytes(content)
    (package / "libvae_runtime.sha256").write_text(hashlib.sha256(content).hexdigest(), "ascii")


def _other_bits(package):
    """A number of the table, altered in the library."""
    library = package / "libvae_runtime.so"
    table = (ROOT / "runtime" / "vae_runtime" / "vnoise1_table.bin").read_bytes()[: 4 * 32768]
    content = library.read_bytes()
    assert content.count(table) == 1
    content = content.replace(table, bytes(len(table)))
    library.write_bytes(content)
    (package / "libvae_runtime.sha256").write_text(hashlib.sha256(content).hexdigest(), "ascii")


@pytest.mark.parametrize(
    "change", [_other_version, _other_table, _damaged, _cut, _missing, _without_a_function, _other_bits]
)
def test_one_that_does_not_fit_is_warned_of_once_and_not_used(python, installed, tmp_path, change):
    # Without what Python compiled: it would serve in place of a source of the same size changed in the same second.
    bare = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installed / "vae_runtime_native", tmp_path / "vae_runtime_native", ignore=bare)
    change(tmp_path / "vae_runtime_native")
    used, warned = asked(python, tmp_path)
    assert not used
    assert len(warned) == 1
    assert warned[0].startswith("vae-runtime-native: ")
    assert warned[0].endswith("; noise is drawn in Python; install vae-runtime[native] again")


def test_a_build_with_another_table_is_refused(project, tmp_path):
    copy = tmp_path / "runtime"
    shutil.copytree(project.parent, copy)
    table = copy / "vae_runtime" / "vnoise1_table.bin"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=copy / "native", capture_output=True, encoding="utf-8", check=False)
    assert done.returncode != 0
    assert "vnoise1_table.bin: expected the table of vnoise-1, got another" in done.stderr
