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


def called(node):
    """The last name of what a call calls: `open` of `open(…)`, `read_bytes` of `path.read_bytes()`."""
    return getattr(node.func, "attr", getattr(node.func, "id", None))


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
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "Later") and node.args:
            # A module that is named by a text, "vae_runtime.vae" or ".vae"; `fields.Later` is a type of another module.
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            targets = [text if text in modules else f"{package}.{text.removeprefix('.')}"]
            targets = [target for target in targets if target in modules]
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
    assert imported("vae_runtime.a", "importlib.import_module('vae_runtime.b')", modules) == {"vae_runtime.b"}
    assert imported("vae_runtime.a", "import_module('.b', 'vae_runtime')", modules) == {"vae_runtime.b"}
    assert imported("vae_runtime.a", "field(Later('b', 'TYPE'))", modules) == {"vae_runtime.b"}
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


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def private_names(source):
    """The underscore names that a module's code defines: functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(getattr(node, "attr", getattr(node, "id", "")))
    return frozenset(filter(is_private, names))


# Attributes of PyTorch's and ctgan's objects, whose names are also those of attributes here.
FOREIGN = {"_buffers", "_dtype", "_parameters", "_schema"}


def private_uses(source, others):
    """The underscore names that a module takes from other modules; `others` holds the names that these define."""
    own = {name.rpartition(".")[2] for name in SOURCES}
    foreign = others - private_names(source) - FOREIGN
    found, modules = [], set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if is_private(alias.name)]
            modules |= {alias.asname or alias.name for alias in node.names if alias.name in own}
            if node.level or (node.module or "").split(".")[0] in PACKAGES:
                found += [part for part in (node.module or "").split(".") if is_private(part) and part != "_version"]
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES}
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner, name = ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Call) and called(node) == "getattr" and isinstance(node.args[1], ast.Constant):
            owner, name = ast.unparse(node.args[0]), node.args[1].value
        else:
            continue
        if name in foreign or (owner in modules and is_private(name)):
            found.append(f"{owner}.{name}")
    return found


@functools.cache
def all_private_names():
    return frozenset().union(*(private_names(path.read_text(encoding="utf-8")) for path in SOURCES.values()))


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_name_crosses_modules(name):
    assert private_uses(SOURCES[name].read_text(encoding="utf-8"), all_private_names()) == []


def test_a_private_name_is_found():
    def uses(source):
        return private_uses(source, frozenset({"_networks"}))

    assert uses("from .session import _bind") == ["_bind"]
    assert uses("from . import session\nsession._bind()") == ["session._bind"]
    assert uses("from . import session as s\ns._bind()") == ["s._bind"]
    assert uses("import vae_runtime.session\nvae_runtime.session._bind()") == ["vae_runtime.session._bind"]
    assert uses("from . import session\ngetattr(session, '_bind')") == ["session._bind"]
    assert uses("from ._secret import name") == ["_secret"]
    assert uses("vae._networks") == ["vae._networks"]
    assert uses("getattr(vae, '_networks')") == ["vae._networks"]
    assert uses("self._networks = 1\nself._networks") == []
    assert uses("torch._dynamo.reset()") == []
    assert uses("from ._version import __version__") == []


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


def code_texts(module):
    """The texts in a module's code, those in f-strings too; docstrings are left out."""
    documentation = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


# Each other module with a text that is the name of a kind, and why it may.
NAMING = {
    "vae_export.training.config": "the kind that a training has by default",
    "vae_export.understand.families.pythae": "the kinds that the library's models declare",
    "vae_export.understand.families.scvi": "a word of the library's own for its models",
    "vae_export.understand.prior": "a kind of prior to fit, not a likelihood",
}


def test_only_likelihood_names_a_kind():
    others = {name: module for name, module in trees().items() if name.rpartition(".")[2] != "likelihood"}
    assert {name for name, module in others.items() if kinds_compared(module)} == {"vae_export.understand.prior"}
    assert {name for name, module in others.items() if set(KINDS) & set(code_texts(module))} == NAMING.keys()
    # The class of a kind is another name of it.
    classes = {type(kind).__name__ for kind in KINDS.values()}
    assert {
        name
        for name, module in others.items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.rpartition(".")[2] == "likelihood"
        if classes & {alias.name for alias in node.names}
    } == set()


def test_a_named_kind_is_found():
    assert kinds_compared(tree("if kind == 'laplace': pass")) == {"laplace"}
    assert kinds_compared(tree("kind in ('gaussian', 'laplace')")) == {"gaussian", "laplace"}
    assert kinds_compared(tree("kind in frozenset({'laplace'})")) == {"laplace"}
    assert kinds_compared(tree("table = {'bernoulli': 1}")) == {"bernoulli"}
    assert kinds_compared(tree("export(likelihood='bernoulli')")) == set()
    assert code_texts(tree("CONTINUOUS = {'laplace'}\nkind in CONTINUOUS")) == ["laplace"]
    assert code_texts(tree("'A laplace.'\n\ndef f():\n    'laplace'\n    return f'{x}laplace'")) == ["laplace"]


# Each module that imports `session`, and why it may.
SESSIONS = {
    "vae_runtime.networks": "loads graphs, and runs them in chunks",
    "vae_runtime.computation": "runs graphs",
    "vae_runtime.packing": "lets ONNX Runtime optimize graphs for a device",
    "vae_export.graphs.graph": "runs graphs before there is a bundle",
}


def test_few_modules_run_a_session():
    assert {name for name, others in arrows().items() if "vae_runtime.session" in others} == SESSIONS.keys()
    users = {
        "InferenceSession": set(),
        "Session": set(),
        "Call": set(),
        "import_onnxruntime": set(),
        "open_session": set(),
    }
    for name, module in trees().items():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
            else:
                names = {node.attr} if isinstance(node, ast.Attribute) else set()
            for known in names & users.keys():
                users[known].add(name)
    assert users == {
        # `devices` makes sessions of other providers, and looks for a parameter of the class.
        "InferenceSession": {"vae_runtime.devices", "vae_runtime.session"},
        "Session": {"vae_runtime.computation", "vae_runtime.networks", "vae_export.graphs.graph"},
        "Call": {"vae_runtime.computation"},
        "import_onnxruntime": {"vae_runtime.session"},
        # The benchmark measures against a plain session.
        "open_session": {"vae_runtime.bench"},
    }


# Each module that opens files, and why it may.
OPENERS = {
    "vae_runtime.places": "the files of a bundle",
    "vae_runtime.files": "files that are written whole",
    "vae_runtime.arrays": "arrays of the user's",
    "vae_runtime.input_files": "files that the caller names",
    "vae_runtime.noise": "the noise table of the package",
    "vae_runtime.session": "a graph's file that ONNX Runtime has optimized, and one that it maps",
    "vae_runtime.prepared": "a graph that this machine has just prepared",
    "vae_runtime.bench": "the processor's name",
    "vae_runtime.fleet": "the records of an installation",
    "vae_runtime.row_files": "rows of the user's, a part at a time",
    "vae_runtime.score_tables": "members of an .npz file that is written",
    "vae_runtime.scoring": "parts of scores that an interrupted call has left",
    "vae_runtime.packing": "members of an .npz file that is written",
    "vae_runtime.cli.main": "standard streams that the caller has closed",
    "vae_runtime.cli.results": "members of an .npz file that is written",
    "vae_runtime.generation.formats.npy": "shards",
    "vae_runtime.generation.formats.parquet": "shards",
    "vae_runtime.generation.formats.safetensors": "shards",
    "vae_runtime.generation.local": "the processors that this process may use",
    "vae_runtime.generation.machine": "the processor's name",
    "vae_runtime.generation.sources": "arrays of the user's, which a job maps into memory",
    "vae_runtime.generation.store": "the files of a samples folder",
    "vae_runtime.native": "the library of another package",
    "vae_export.demo": "the learning curve of a run",
    "vae_export.graphs.existing": "a graph of the user's",
    "vae_export.graphs.graph": "graphs that are exported",
    "vae_export.graphs.measurement": "graphs that are exported",
    "vae_export.labels": "files of a bundle that is written",
    "vae_export.loading": "weights of the user's",
    "vae_export.pushing": "a file that the Hub has, and a signature that was just made",
    "vae_export.signing": "a signature that was just made",
    "vae_export.training.data.conversion": "rows that are converted",
    "vae_export.training.data.pictures": "pictures of the user's",
    "vae_export.training.data.sources.parquet": "tables of the user's",
    "vae_export.training.data.sources.webdataset": "arrays in tar files of the user's",
    "vae_export.training.resume": "the state of a run",
}
READING = {"open", "read_bytes", "read_text", "memmap", "open_memmap", "fromfile", "genfromtxt", "loadtxt", "mmap"}
READING |= {"ZipFile", "safe_open", "load_file", "ParquetFile"}


def reads_files(module):
    """The calls of a module's code that read files by their paths."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    return {called(node) for node in calls} & READING | {
        ast.unparse(node.func)
        for node in calls
        if called(node) == "load" and ast.unparse(node.func) in ("np.load", "onnx.load")
    }


def test_only_places_opens_the_files_of_a_bundle():
    assert {name for name, module in trees().items() if reads_files(module)} == OPENERS.keys()


def test_a_module_that_reads_files_is_found():
    assert reads_files(tree("open(path)")) == {"open"}
    assert reads_files(tree("(folder / 'manifest.json').read_bytes()")) == {"read_bytes"}
    assert reads_files(tree("np.load(path)")) == {"np.load"}
    assert reads_files(tree("zipfile.ZipFile(path)")) == {"ZipFile"}
    assert reads_files(tree("vae_runtime.load(path)")) == set()


def names_of_samples(module):
    """The texts of a module's code with the name of a file of samples: job.json, index.json, shard-00000000.npy."""
    names = re.compile(r"\b(?:job|index)\\?\.json|(?<!-)\bshard-(?!size)")
    return [text for text in code_texts(module) if names.search(text)]


def test_only_the_folder_knows_names_of_files_of_samples():
    assert {name for name, module in trees().items() if names_of_samples(module)} == {"vae_runtime.generation.folder"}


def test_a_name_of_a_file_of_samples_is_found():
    assert names_of_samples(tree("store.read('job.json')"))
    assert names_of_samples(tree("f'{folder}/index.json'"))
    assert names_of_samples(tree("f'shard-{number:08}.npy'"))
    assert not names_of_samples(tree("'job.json'\nadd('--shard-size', type=integer('shard-size'))"))


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


# Wordings that this project does not use, in code, tests or pages: CONTRIBUTING.md, "Words".
OLD_WORDS = (
    r"\b(?:is|are) expected, got\b",
    r"\bOf [a-z]",
    r"\bto be had\b",
    r"\bspeaks? against\b",
    r"\bfor ever\b",
    r"\b(?:least|most)_[a-z]",
    r"\blicence\b",
)
# The old name of a key, which is read and refused by name.
OLD_KEY = {
    "CHANGELOG.md",
    "docs/bundle-format.md",
    "tests/export/test_checkpoint.py",
    "tests/runtime/test_manifest.py",
    "vae_export/training/checkpoint.py",
}


def old_words(text):
    return [words for words in OLD_WORDS if re.search(words, text)]


def test_old_words_do_not_return():
    folders = ("runtime", "vae_export", "benchmarks", "conformance", "studio", "models", "docs", "tests")
    files = [*ROOT.glob("*.md")]
    for folder in folders:
        files += [
            path
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".md", ".ts", ".mjs", ".c", ".h")
            and not {"node_modules", "dist", "page", "build", "target"} & set(path.relative_to(ROOT).parts)
        ]
    found = {
        path.relative_to(ROOT).as_posix(): words
        for path in files
        if (words := old_words(path.read_text(encoding="utf-8"))) and path != Path(__file__)
    }
    assert {name for name, words in found.items() if words == [r"\blicence\b"]} == OLD_KEY
    assert {name: words for name, words in found.items() if name not in OLD_KEY} == {}


def test_old_words_are_found():
    assert old_words("x: a number is expected, got 'a'")
    assert old_words("Of a packed bundle one may have been left out.")
    assert old_words("ONNX Runtime is not to be had")
    assert old_words("least_psnr")
    assert not old_words("x: expected a number, got 'a'; Office, least, most, license, forever")


def test_errors_state_what_was_expected_first():
    old = re.compile(r"\b(?:is|are) expected\b")
    assert old.search("x: a number is expected, got 'a'")
    assert {name for name, path in SOURCES.items() if old.search(path.read_text(encoding="utf-8"))} == set()
