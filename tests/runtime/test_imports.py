"""What the runtime imports, in which order, and what it says of itself."""

import ast
import functools
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import vae_runtime

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "runtime" / "vae_runtime"
# Dotted names below the package: "session", "generation.job".
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("_")
)

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "PIL",
    "pyarrow",
    "safetensors",
    "importlib.metadata",
    "numpy.random",
    "vae_export",
    "scipy",
    "ray",
    "fsspec",
    "s3fs",
    "ctypes.util",
    "model_signing",
    "cryptography",
)


@pytest.fixture(scope="module")
def heavy_imports(python):
    """Which heavy modules a statement imports beyond those that numpy does."""

    def find(statement):
        code = (
            f"import sys, numpy; before = set(sys.modules)\n{statement}\n"
            f"new = set(sys.modules) - before\n"
            f"print(*[h for h in {HEAVY!r} if any(n == h or n.startswith(h + '.') for n in new)])"
        )
        done = python("-c", code)
        assert done.stderr == ""
        return done.stdout.split()

    return find


def test_the_import_is_light(heavy_imports):
    assert heavy_imports("import vae_runtime") == []


def test_neither_sampling_nor_verifying_imports_torch(heavy_imports, digits):
    used = heavy_imports(
        f"import vae_runtime; vae_runtime.load({str(digits)!r}).sample(1); vae_runtime.verify({str(digits)!r})"
    )
    assert "torch" not in used
    assert "onnx" not in used
    assert "PIL" not in used
    assert "vae_export" not in used


def test_the_check_of_imports_can_fail(heavy_imports):
    assert "importlib.metadata" in heavy_imports("import importlib.metadata")
    assert "onnxruntime" in heavy_imports("import vae_runtime, onnxruntime")


@functools.cache
def imports(module):
    """The top-level names of the packages that a module imports anywhere in it, other than its own."""
    found = set()
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_only_devices_imports_onnxruntime_and_nothing_imports_torch():
    modules = [*MODULES, "__init__", "__main__"]
    assert [module for module in modules if "onnxruntime" in imports(module)] == ["devices"]
    assert [module for module in modules if "PIL" in imports(module)] == ["image"]
    assert [module for module in modules if "cupy" in imports(module)] == ["device_noise"]
    assert [module for module in modules if "pyarrow" in imports(module)] == ["generation.formats.parquet", "row_files"]
    assert [module for module in modules if "safetensors" in imports(module)] == ["generation.formats.safetensors"]
    assert not [module for module in modules if {"torch", "vae_export", "vae_runtime", "onnx"} & imports(module)]


def test_numpy_is_the_only_requirement():
    absolute = {name for module in MODULES for name in imports(module)}
    optional = {"onnxruntime", "PIL", "fsspec", "huggingface_hub", "model_signing", "pyarrow", "ray", "safetensors"}
    own = {"vae_runtime_studio", "vae_runtime_native"}
    assert absolute - sys.stdlib_module_names == {"numpy", "cupy", *optional, *own}
    (requirement,) = pyproject("runtime/pyproject.toml")["project"]["dependencies"]
    assert requirement.startswith("numpy>=")


def test_all_is_the_truth():
    public = {
        name
        for name in dir(vae_runtime)
        if not name.startswith("_") and not isinstance(getattr(vae_runtime, name), types.ModuleType)
    } - {"Any", "TYPE_CHECKING"}
    assert public | {"__version__"} == set(vae_runtime.__all__)
    assert sorted(vae_runtime.__all__) == sorted(set(vae_runtime.__all__))


def test_every_public_name_has_a_docstring():
    for name in vae_runtime.__all__:
        if name != "__version__":
            assert getattr(vae_runtime, name).__doc__


def pyproject(path):
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def test_both_distributions_have_one_version():
    exporter, runtime = pyproject("pyproject.toml"), pyproject("runtime/pyproject.toml")
    assert runtime["tool"]["hatch"]["version"]["path"] == "vae_runtime/_version.py"
    assert exporter["tool"]["hatch"]["version"]["path"] == "runtime/vae_runtime/_version.py"
    for project in (exporter, runtime):
        assert "version" in project["project"]["dynamic"]
    requirements = [
        *exporter["project"]["dependencies"],
        *(each for extra in exporter["project"]["optional-dependencies"].values() for each in extra),
    ]
    pins = dict(
        re.fullmatch(r"vae-runtime(?:\[(\w+)\])?==(.+)", each).groups()
        for each in requirements
        if "vae-runtime" in each
    )
    assert pins == dict.fromkeys(["image", "cpu", "gpu", "hub", "sign"], vae_runtime.__version__)


def test_the_extras_are_those_that_errors_name():
    extras = pyproject("runtime/pyproject.toml")["project"]["optional-dependencies"]
    assert {name: [re.match(r"[a-z0-9-]+", each)[0] for each in extra] for name, extra in extras.items()} == {
        "cpu": ["onnxruntime"],
        "gpu": ["onnxruntime-gpu"],
        "image": ["pillow"],
        "parquet": ["pyarrow"],
        "safetensors": ["safetensors"],
        "ray": ["ray"],
        "remote": ["fsspec", "s3fs"],
        "hub": ["huggingface-hub"],
        "sign": ["model-signing", "pyopenssl"],
        "native": ["vae-runtime-native"],
        "studio": ["vae-runtime-studio"],
    }
    named = {
        name
        for module in MODULES
        for name in re.findall(r"vae-runtime\[(\w+)\]", (PACKAGE / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    }
    assert named == set(extras)


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
