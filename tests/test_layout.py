"""The layout of both packages, held against the code: who imports whom, who does what, and how large it may be."""

import ast
import functools
import re
from pathlib import Path

import pytest

import vae_export
import vae_runtime
from vae_runtime.likelihood import KINDS

ROOT = Path(__file__).parents[1]
PACKAGES = {"vae_runtime": ROOT / "runtime" / "vae_runtime", "vae_export": ROOT / "vae_export"}


def name_of(path, package):
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path, package): path for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))
}


tree = functools.cache(ast.parse)


def imported(name, source, modules):
    """The modules of this project that the source of a module imports, inside of functions too."""
    found = set()
    package = name if name in modules and modules[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            whole = ".".join(part for part in (base, node.module or "") if part)
            targets = [f"{whole}.{alias.name}" if f"{whole}.{alias.name}" in modules else whole for alias in node.names]
        else:
            continue
        found.update(target for target in targets if target.split(".")[0] in PACKAGES)
    return found


def circle(arrows):
    """One circle of imports as a list of modules; an empty list where there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for other in sorted(arrows.get(module, ())):
            ring = visit(other)
            if ring:
                return ring
        path.pop()
        done.add(module)
        return []

    for module in sorted(arrows):
        ring = visit(module)
        if ring:
            return ring
    return []


@functools.cache
def arrows():
    """The modules that each module imports."""
    return {name: imported(name, path.read_text(encoding="utf-8"), SOURCES) for name, path in SOURCES.items()}


# The packages' own faces hand on names for users.
FACES = {"vae_runtime", "vae_export"}


def test_imports_form_no_circle():
    assert circle({name: found for name, found in arrows().items() if name not in FACES}) == []


def test_a_circle_is_found():
    modules = dict.fromkeys(("vae_runtime.a", "vae_runtime.b", "vae_runtime.c"), Path("x.py"))
    assert imported("vae_runtime.a", "def f():\n    from .b import g", modules) == {"vae_runtime.b"}
    assert imported("vae_runtime.a", "from . import b", modules) == {"vae_runtime.b"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("vae_runtime")])
def test_the_runtime_never_imports_the_exporter(name):
    assert not [other for other in arrows()[name] if other.startswith("vae_export")]


def trees():
    return {name: tree(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def test_no_module_has_the_name_of_a_public_function():
    public = {
        name
        for package in (vae_runtime, vae_export)
        for name in package.__all__
        if not isinstance(getattr(package, name), type)
    }
    assert {"generate", "verify", "export", "train"} <= public
    parts = {part for name in SOURCES for part in name.split(".")[1:]}
    assert public & parts == set()


def test_a_package_below_the_top_is_a_docstring():
    inits = [name for name, path in SOURCES.items() if path.name == "__init__.py" and name not in FACES]
    assert inits
    for name in inits:
        assert [type(node) for node in trees()[name].body] == [ast.Expr], name


def test_nothing_imports_a_packages_init():
    inits = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    assert {name: found & inits for name, found in arrows().items() if found & inits and name not in FACES} == {}


def private_uses(source):
    """The underscore names that a module takes from other modules."""
    own = {name.rpartition(".")[2] for name in SOURCES}
    found, modules = [], set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"]
            modules |= {alias.asname or alias.name for alias in node.names if alias.name in own}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES}
    for node in ast.walk(tree(source)):
        if (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and ast.unparse(node.value) in modules
        ):
            found.append(f"{ast.unparse(node.value)}.{node.attr}")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_name_crosses_modules(name):
    assert private_uses(SOURCES[name].read_text(encoding="utf-8")) == []


def test_a_private_name_is_found():
    assert private_uses("from .session import _bind") == ["_bind"]
    assert private_uses("from . import session\nsession._bind()") == ["session._bind"]
    assert private_uses("from . import session as s\ns._bind()") == ["s._bind"]
    assert private_uses("import vae_runtime.session\nvae_runtime.session._bind()") == ["vae_runtime.session._bind"]
    assert private_uses("from ._version import __version__") == []


def kinds_compared(module):
    """The kinds of likelihood that a module's code branches on: compared with, or keys of a table."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            operands += [item for operand in operands for item in ast.walk(operand)]
        elif isinstance(node, ast.Dict):
            operands = [key for key in node.keys if key]
        elif isinstance(node, ast.MatchValue):
            operands = [node.value]
        else:
            continue
        found |= {operand.value for operand in operands if isinstance(operand, ast.Constant)} & set(KINDS)
    return found


# A gaussian there is a kind of prior to fit, not a likelihood.
OTHER_GAUSSIANS = {"vae_export.understand.prior"}


def test_only_likelihood_names_a_kind():
    naming = {name for name, module in trees().items() if kinds_compared(module)} - OTHER_GAUSSIANS
    assert {name for name in naming if name.rpartition(".")[2] != "likelihood"} == set()


def test_a_named_kind_is_found():
    assert kinds_compared(tree("if kind == 'laplace': pass")) == {"laplace"}
    assert kinds_compared(tree("kind in ('gaussian', 'laplace')")) == {"gaussian", "laplace"}
    assert kinds_compared(tree("kind in frozenset({'laplace'})")) == {"laplace"}
    assert kinds_compared(tree("table = {'bernoulli': 1}")) == {"bernoulli"}
    assert kinds_compared(tree("export(likelihood='bernoulli')")) == set()


def calls(module):
    """The names that a module's code calls: `open` of `open(…)`, `read_bytes` of `path.read_bytes()`."""
    functions = [node.func for node in ast.walk(module) if isinstance(node, ast.Call)]
    return {getattr(function, "attr", getattr(function, "id", None)) for function in functions}


def test_only_networks_runs_a_session():
    users = {"vae_runtime.session.Session", "vae_runtime.session.Call", "vae_runtime.networks.open_session"}
    importers = {
        name
        for name, module in trees().items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"vae_runtime.{(node.module or '').rpartition('.')[2]}.{alias.name}" in users
    }
    # The benchmark measures against a plain session; the exporter runs graphs before there is a bundle.
    assert importers == {"vae_runtime.networks", "vae_runtime.bench", "vae_export.graphs.graph"}


# Each module of the runtime that opens files, and why it may.
OPENERS = {
    "vae_runtime.places": "the files of a bundle",
    "vae_runtime.files": "files that are written whole",
    "vae_runtime.arrays": "arrays of the user's",
    "vae_runtime.input_files": "files that the caller names",
    "vae_runtime.noise": "the noise table of the package",
    "vae_runtime.session": "a graph's file that ONNX Runtime has optimized, and one that it maps",
    "vae_runtime.bench": "the processor's name",
    "vae_runtime.fleet": "the records of an installation",
    "vae_runtime.cli.main": "standard streams that the caller has closed",
    "vae_runtime.cli.results": "members of an .npz file that is written",
}


def test_only_places_opens_the_files_of_a_bundle():
    """Generation opens the files of jobs and of samples folders, and asks a bundle for its own."""
    reading = {"open", "read_bytes", "read_text", "memmap", "open_memmap"}
    openers = {
        name
        for name, module in trees().items()
        if name.startswith("vae_runtime.") and reading & calls(module) and not name.startswith("vae_runtime.generation")
    }
    assert openers == OPENERS.keys()


def test_only_the_folder_knows_names_of_files_of_samples():
    names = {"job.json", "index.json"}
    knowing = {
        name
        for name, module in trees().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert knowing == {"vae_runtime.generation.folder"}


ROW = r"^\| `(vae_\w+(?:\.\w+)+)` \| (.+) \|$"


def test_the_architecture_page_shows_the_modules():
    """Each public module stands once, below those of its table that import it, with its docstring's first paragraph."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = dict(re.findall(ROW, text, re.MULTILINE))
    modules = {
        name: " ".join(ast.get_docstring(trees()[name]).split("\n\n")[0].split()).replace("|", r"\|")
        for name, path in SOURCES.items()
        if path.name != "__init__.py" and not path.name.startswith("_")
    }
    assert shown == modules
    for part in text.split("\n#"):
        table = [name for name, _ in re.findall(ROW, part, re.MULTILINE)]
        for index, name in enumerate(table):
            assert not arrows()[name] & set(table[:index]), name


MAX_FILE, MAX_CLASS, MAX_FUNCTION = 500, 300, 60


def lengths(source):
    """Lines of classes, and lines of code of functions without their docstrings, by name and line."""
    classes, functions = {}, {}
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.ClassDef):
            classes[f"{node.name}:{node.lineno}"] = node.end_lineno - node.lineno + 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
            functions[f"{node.name}:{node.lineno}"] = node.end_lineno - node.lineno + 1 - docstring
    return classes, functions


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_too_long(name):
    source = SOURCES[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE
    classes, functions = lengths(source)
    assert {each: n for each, n in classes.items() if n > MAX_CLASS} == {}
    assert {each: n for each, n in functions.items() if n > MAX_FUNCTION} == {}


def test_lengths_are_counted():
    source = 'def f():\n    """Doc.\n\n    More."""\n    return 1\n\n\nclass A:\n    def f(self):\n        return 1\n'
    assert lengths(source) == ({"A:8": 3}, {"f:1": 2, "f:9": 2})


def test_errors_state_what_was_expected_first():
    old = re.compile(r"\b(?:is|are) expected\b")
    assert old.search("x: a number is expected, got 'a'")
    assert {name for name, path in SOURCES.items() if old.search(path.read_text(encoding="utf-8"))} == set()
