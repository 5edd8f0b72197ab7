"""How the modules of both packages lie: who may import whom, held against the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"vae_runtime": ROOT / "runtime" / "vae_runtime", "vae_export": ROOT / "vae_export"}


def name_of(path, package):
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path, package): path for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))
}


def imported(name, source, modules):
    """The modules of this project that the source of a module imports, inside of functions too."""
    found = set()
    package = name if name in modules and modules[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
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


ARROWS = {name: imported(name, path.read_text(encoding="utf-8"), SOURCES) for name, path in SOURCES.items()}
# The packages' own faces hand on names for users.
FACES = {"vae_runtime", "vae_export"}


def test_imports_form_no_circle():
    assert circle({name: found for name, found in ARROWS.items() if name not in FACES}) == []


def test_a_circle_is_found():
    modules = dict.fromkeys(("vae_runtime.a", "vae_runtime.b", "vae_runtime.c"), Path("x.py"))
    assert imported("vae_runtime.a", "def f():\n    from .b import g", modules) == {"vae_runtime.b"}
    assert imported("vae_runtime.a", "from . import b", modules) == {"vae_runtime.b"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("vae_runtime")])
def test_the_runtime_never_imports_the_exporter(name):
    assert not [other for other in ARROWS[name] if other.startswith("vae_export")]
