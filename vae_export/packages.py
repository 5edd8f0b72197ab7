"""Find a VAE's two graphs in what other tools wrote: optimum's folders, or ONNX Runtime's model packages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_runtime.bundle import MANIFEST
from vae_runtime.errors import InputError, error_line
from vae_runtime.input_files import open_plain, read_json
from vae_runtime.manifest import COMPONENTS

_OPTIMUM = {component: f"vae_{component}" for component in COMPONENTS}
_ASSET = re.compile("(sha256:[0-9a-f]{64})((?:/[^/]+)*)")
_MAX_LABEL = 2000
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class GraphFiles:
    """Two graphs that exist already, and what the files beside them say."""

    origin: str
    """The layout that they were found in."""
    graphs: Mapping[str, Path]
    weights: Mapping[str, Path]
    """For each component the folder of its separate weight files."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The model's config.json, as diffusers writes it."""
    name: str = "vae"
    description: str | None = None
    version: Any = None


def find_graphs(source: str | Path | Sequence[str | Path]) -> GraphFiles:
    """Find the encoder and the decoder.

    Args:
        source: the files of the encoder and the decoder; or a folder in optimum's layout, or an ONNX Runtime model
            package.

    Raises:
        InputError: they are not there, or a description of them is damaged or leads out of the folder.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, (list, tuple)) or len(source) != 2:
            raise InputError(f"source: expected a folder, or the files of an encoder and a decoder, got {source!r:.99}")
        paths = {component: Path(path) for component, path in zip(COMPONENTS, source, strict=True)}
        places = [path.parent for path in paths.values()]
        if len(set(places)) == 2 and places[0].parent == places[1].parent:
            # The two folders of a layout such as optimum's.
            places += _above(places[0].parent)
        name = _text(paths["decoder"].parent.name) or "vae"
        return _described(GraphFiles("two files", paths, _parents(paths), _configuration(places), name))
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder with vae_encoder/model.onnx and vae_decoder/model.onnx, or a model package; "
            "give ENCODER.onnx DECODER.onnx"
        )
    name = _text(folder.absolute().name) or "vae"
    if (folder / MANIFEST).is_file():
        return _described(_in_package(folder, name))
    paths = {component: folder / part / "model.onnx" for component, part in _OPTIMUM.items()}
    missing = [str(path.relative_to(folder)) for path in paths.values() if not path.exists()]
    if missing:
        raise InputError(
            f"{folder}: {missing[0]} is missing, and there is no {MANIFEST} of a model package; give the files of both "
            "graphs, ENCODER.onnx DECODER.onnx"
        )
    config = _configuration([*(path.parent for path in paths.values()), *_above(folder)])
    return _described(GraphFiles("optimum's layout", paths, _parents(paths), config, name))


def _above(folder: Path) -> list[Path]:
    """Return where a model's config.json may be, given the folder that holds the two folders of its graphs."""
    return [folder, folder / "vae"]


def _configuration(places: Sequence[Path]) -> dict[str, Any]:
    """Read the first config.json; an empty one where there is none."""
    return next((_read_object(place / "config.json") for place in places if (place / "config.json").is_file()), {})


def _parents(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {component: path.parent for component, path in paths.items()}


def _described(files: GraphFiles) -> GraphFiles:
    """Return the files once each graph is a plain file: a pipe would never end."""
    for path in files.graphs.values():
        try:
            open_plain(path).close()
        except OSError as error:
            raise InputError(f"{path}: expected an ONNX file: {error_line(error)}; give its path") from None
    return files


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: it is no such file.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON: {error_line(error)}; check the folder") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object; check the folder")
    return document


def _in_package(folder: Path, name: str) -> GraphFiles:
    """Find the graphs in a model package of ONNX Runtime, whose specification is model_package/README.md of its source.

    A component is the one whose name ends in encoder or decoder. Its first variant for the CPU, or for no execution
    provider in particular, is taken.
    """
    package = _Package(folder, _read_object(folder / MANIFEST))
    graphs, weights = {}, {}
    for component in COMPONENTS:
        graphs[component], weights[component] = package.graph(component)
    label = package.manifest.get
    return GraphFiles(
        "a model package of ONNX Runtime",
        graphs,
        weights,
        name=_text(label("package_name")) or name,
        description=_text(label("description")),
        version=label("package_version"),
    )


def _text(value: Any) -> str | None:
    """Return a text as a label, in one line and not longer than any reader wants; None where it is no such text."""
    text = " ".join(value.split())[:_MAX_LABEL] if isinstance(value, str) else ""
    return text if text and text.isprintable() else None


def _members(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a JSON object, got {value!r:.40}; check the package")
    return value


class _Package:
    """A model package: where its descriptions and paths lead."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest, self.place = folder, manifest, folder / MANIFEST
        major = str(manifest.get("schema_version", "")).partition(".")[0]
        if major != "1":
            raise InputError(
                f"{self.place}: expected a model package of schema 1.x, got {manifest.get('schema_version')!r:.40}"
            )
        if "vae" in _members(manifest.get("additional_metadata", {}), f"{self.place}: additional_metadata"):
            raise InputError(f"{folder}: is a bundle already; vae-runtime loads it as it is")
        self.components = _members(manifest.get("components"), f"{self.place}: components")

    def graph(self, component: str) -> tuple[Path, Path]:
        """Return the file of a component's graph, and the folder of its weights."""
        named = [name for name in self.components if name.lower().endswith(component)]
        if len(named) != 1:
            names = ", ".join(map(repr, self.components))[:200]
            raise InputError(
                f"{self.place}: expected one component whose name ends in {component}, got {names}; give the files of "
                "both graphs, ENCODER.onnx DECODER.onnx"
            )
        body, base = self._component(named[0])
        place = f"{self.place}: {named[0]}"
        for name, variant in _members(body.get("variants"), f"{place}.variants").items():
            variant = _members(variant, f"{place}.{name}")
            if variant.get("ep") not in (None, "CPUExecutionProvider"):
                continue
            own = self._path(base, variant.get("variant_directory", name), place)
            info = _members(variant.get("executor_info", {}), f"{place}.{name}.executor_info").get("ort")
            if info is None:
                continue
            if isinstance(info, str):
                info = _read_object(self._path(own, info, place))
            file = _members(info, f"{place}.{name}").get("model_file")
            options = _members(info.get("session_options", {}), f"{place}.{name}.session_options")
            path = self._path(own, file, place)
            weights = options.get(_WEIGHTS_FOLDER)
            return path, path.parent if weights is None else self._path(own, weights, place)
        raise InputError(
            f"{place}: expected a variant for the CPU with executor_info of ort, got none; give the files of both "
            "graphs, ENCODER.onnx DECODER.onnx"
        )

    def _component(self, name: str) -> tuple[dict[str, Any], Path]:
        """Return a component's description, and the folder that its paths are relative to."""
        value = self.components[name]
        if not isinstance(value, str):
            return _members(value, f"{self.place}: {name}"), self.folder
        path = self._path(self.folder, value, f"{self.place}: {name}")
        path = path / "component.json" if path.is_dir() else path
        return _read_object(path), path.parent

    def _path(self, base: Path, text: Any, place: str) -> Path:
        """Return where a path of the package leads, which must be inside it."""
        if not isinstance(text, str) or not text or "\0" in text:
            raise InputError(f"{place}: expected a path in the package, got {text!r:.99}")
        asset = _ASSET.fullmatch(text)
        if asset:
            folder = f"shared_assets/{asset[1].replace(':', '-')}"
            overrides = _members(self.manifest.get("shared_assets", {}), f"{self.place}: shared_assets")
            base, text = self.folder, f"{overrides.get(asset[1], folder)}{asset[2]}"
        path: Path = base / text
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{place}: expected a path in the package, got {text!r:.99}, which leads out of it")
        return path
