"""The distributions as users get them: what the wheels hold, and the runtime alone in an environment of its own."""

import email
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime.noise import TABLE_SHA256

ROOT = Path(__file__).parents[1]
# What onnxruntime itself needs; the two are all that numpy and onnxruntime bring.
ALLOWED = {"vae-runtime", "numpy", "onnxruntime", "drawings"} | {"flatbuffers", "packaging", "protobuf"}


def called(*command, **options):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, command)), capture_output=True, encoding="utf-8", env=environment, check=False, **options
    )


def built(project, out):
    done = called(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=project)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    return {name: built(ROOT / folder, out / name) for name, folder in (("vae_export", ""), ("vae_runtime", "runtime"))}


@pytest.mark.parametrize("name", ["vae_export", "vae_runtime"])
def test_a_wheel_holds_the_package_and_nothing_else(wheels, name):
    version = vae_runtime.__version__
    assert wheels[name].name == f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = set(wheel.namelist())
    about = {n for n in names if n.startswith(f"{name}-{version}.dist-info/")}
    assert {Path(n).name for n in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}
    source = ROOT / name if name == "vae_export" else ROOT / "runtime" / name
    files = {
        p.relative_to(source.parent).as_posix() for p in source.rglob("*") if p.suffix in (".py", ".typed", ".bin")
    }
    assert names - about == files
    assert f"{name}/py.typed" in files


def test_the_runtimes_wheel_holds_the_noise_table(wheels):
    import hashlib

    with zipfile.ZipFile(wheels["vae_runtime"]) as wheel:
        (table,) = (name for name in wheel.namelist() if name.endswith(".bin"))
        assert hashlib.sha256(wheel.read(table)).hexdigest() == TABLE_SHA256


def test_what_the_wheels_ask_for(wheels):
    def metadata(name):
        with zipfile.ZipFile(wheels[name]) as wheel:
            (path,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            (license,) = (n for n in wheel.namelist() if n.endswith("LICENSE"))
            assert wheel.read(license) == (ROOT / "LICENSE").read_bytes()
            return email.message_from_bytes(wheel.read(path))

    version = vae_runtime.__version__
    runtime, exporter = metadata("vae_runtime"), metadata("vae_export")
    for project in (runtime, exporter):
        assert (project["Version"], project["License-Expression"]) == (version, "Apache-2.0")
        assert project["Requires-Python"] == ">=3.11"
    plain = [need for need in runtime.get_all("Requires-Dist") if "extra ==" not in need]
    assert [need.partition(">")[0] for need in plain] == ["numpy"]
    assert {"cpu", "gpu", "image"} <= set(runtime.get_all("Provides-Extra"))
    needs = exporter.get_all("Requires-Dist")
    assert f"vae-runtime[image]=={version}" in needs
    assert f"vae-runtime[cpu]=={version}; extra == 'cpu'" in needs
    assert not [need for need in needs if need.startswith("onnxruntime")]


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory):
    """The interpreter of an environment with the runtime's wheel, its extra `cpu` and a package that ships a bundle."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "venv" / "bin" / "python"
    assert called(sys.executable, "-m", "venv", "--without-pip", folder / "venv").returncode == 0
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    constrained = (*install, "-c", ROOT / "constraints.txt")
    reached = called(*constrained, "--dry-run", "--no-deps", "numpy", "onnxruntime")
    if reached.returncode:
        pytest.skip(f"pip reaches no index: {reached.stderr.strip().splitlines()[-1]}")

    package = folder / "drawings"
    (package / "drawings" / "models").mkdir(parents=True)
    (package / "drawings" / "__init__.py").touch()
    shutil.copytree(ROOT / "models" / "digits", package / "drawings" / "models" / "digits")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "drawings"\nversion = "1"\ndependencies = ["vae-runtime"]\n'
    )
    done = called(*constrained, f"{wheels['vae_runtime']}[cpu]", built(package, folder / "out"))
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.long
def test_only_numpy_and_onnxruntime_come_along(environment):
    done = called(sys.executable, "-m", "pip", "--python", environment, "list", "--format", "json")
    names = {item["name"].lower() for item in json.loads(done.stdout)}
    assert {"vae-runtime", "numpy", "onnxruntime"} <= names
    assert names <= ALLOWED


WITHOUT_TORCH = """
import importlib.util, sys
for name in ("torch", "onnx", "PIL", "vae_export"):
    assert importlib.util.find_spec(name) is None, name
import vae_runtime
assert vae_runtime.verify(sys.argv[1]).passed
assert "torch" not in sys.modules
print(vae_runtime.__file__)
"""


@pytest.mark.long
def test_the_runtime_verifies_and_samples_without_pytorch(environment, tmp_path):
    digits = ROOT / "models" / "digits"
    done = called(environment, "-I", "-W", "error", "-c", WITHOUT_TORCH, digits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(environment.parents[1]) in done.stdout

    command = environment.with_name("vae-runtime")
    assert called(command, "verify", digits).returncode == 0
    done = called(command, "sample", digits, "-n", 3, "--seed", 5, "--out", tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "x.npy"), vae_runtime.load(digits).sample(3, seed=5))

    done = called(command, "sample", digits, "--out", tmp_path / "x.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error: a PNG needs Pillow, which is not installed: pip install 'vae-runtime[image]'")
    assert os.listdir(tmp_path) == ["x.npy"]


def test_the_environment_of_the_tests_would_not_pass():
    done = called(sys.executable, "-I", "-c", WITHOUT_TORCH, ROOT / "models" / "digits")
    assert done.returncode == 1
    assert "AssertionError: torch" in done.stderr


@pytest.mark.long
def test_a_bundle_inside_an_installed_package_is_opened_from_where_it_is(environment, tmp_path):
    code = (
        "from importlib.resources import files; import vae_runtime;"
        "vae = vae_runtime.load(files('drawings') / 'models' / 'digits');"
        "print(vae.digest, vae.bundle.path)"
    )
    done = called(environment, "-I", "-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    digest, place = done.stdout.split()
    assert digest == vae_runtime.load(ROOT / "models" / "digits").digest
    assert "site-packages/drawings/models/digits" in place


@pytest.fixture
def studio(tmp_path):
    """The project `studio` with a page of one line, since Node builds the real one."""
    project = tmp_path / "studio"
    shutil.copytree(ROOT / "studio", project, ignore=shutil.ignore_patterns("page", "__pycache__", "src", "test"))
    version = Path("runtime", "vae_runtime", "_version.py")
    (tmp_path / version).parent.mkdir(parents=True)
    shutil.copy(ROOT / version, tmp_path / version)
    page = project / "vae_runtime_studio" / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>x</title>", encoding="utf-8")
    return project


def test_the_studios_wheel_carries_the_page_and_has_the_one_version(studio, tmp_path):
    version = vae_runtime.__version__
    wheel = built(studio, tmp_path / "out")
    assert wheel.name == f"vae_runtime_studio-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {
        f"vae_runtime_studio/{name}" for name in ("__init__.py", "serving.py", "py.typed", "page/index.html")
    }
    extras = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert extras["studio"] == [f"vae-runtime-studio=={version}"]


def test_the_page_is_built_without_the_exporter(tmp_path):
    """Whoever wants to look at a bundle installs no PyTorch."""

    def commands(target):
        return called("make", "-n", "-C", ROOT, f"VENV={tmp_path}/none", target).stdout

    assert "hatchling build" in commands("studio")
    assert ".[cpu" not in commands("studio")
    assert ".[cpu" in commands("check")


def test_a_wheel_of_the_studio_without_the_page_is_refused(studio, tmp_path):
    shutil.rmtree(studio / "vae_runtime_studio" / "page")
    done = called(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "out", cwd=studio)
    assert done.returncode != 0
    assert "vae_runtime_studio/page: expected the page, got nothing; run `make studio`" in done.stderr
