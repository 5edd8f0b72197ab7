"""Make the bill of materials of a bundle: a CycloneDX ML-BOM out of its manifest and SHA256SUMS."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ._version import __version__
from .bundle import Bundle, open_bundle
from .manifest import Manifest, TensorSpec
from .places import SUMS

# License identifiers of SPDX: another text is a license's name.
_SPDX = (
    *("0BSD", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-4.0"),
    *("CC0-1.0", "CDLA-Permissive-2.0", "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later"),
    *("ISC", "LGPL-2.1-only", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MPL-2.0", "ODbL-1.0", "PDDL-1.0"),
    *("Unlicense", "Zlib"),
)
_IDENTIFIERS = {identifier.lower(): identifier for identifier in _SPDX}
_MODEL, _DATA = "model", "data"


def bill_of_materials(bundle: str | os.PathLike[str], *, digest: str | None = None) -> dict[str, Any]:
    """Describe a bundle as a CycloneDX 1.6 ML-BOM: its files, data, license and measured figures.

    The same bundle gives the same document, which has no time of its own.

    Args:
        bundle: the bundle's folder, .zip file or URL; the hash of every file is checked.
        digest: as in `load`.

    Returns:
        The document, for `json.dump`.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: an argument has the wrong form.
    """
    opened = open_bundle(bundle, digest)
    opened.require_sound()
    data = _data(opened.manifest)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, opened.digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "vae-runtime", "version": __version__}]},
            "component": _model(opened, data is not None),
        },
        "components": [*([data] if data else []), *_files(opened)],
        "dependencies": [{"ref": _MODEL, "dependsOn": [_DATA]}, {"ref": _DATA}] if data else [{"ref": _MODEL}],
    }


def _model(bundle: Bundle, has_data: bool) -> dict[str, Any]:
    manifest = bundle.manifest
    properties = {
        "digest": bundle.digest,
        "format": manifest.format_version,
        "noise": manifest.noise,
        "likelihood": manifest.likelihood.kind,
        "packed_from": manifest.packed_from,
        **{f"producer:{name}": value for name, value in manifest.producer.items() if isinstance(value, str)},
    }
    return _without_none(
        {
            "type": "machine-learning-model",
            "bom-ref": _MODEL,
            "name": manifest.name,
            "version": manifest.package_version,
            "description": manifest.description or None,
            "licenses": _licenses(manifest.license),
            "modelCard": _card(manifest, has_data),
            "properties": [
                {"name": f"vae-runtime:{name}", "value": value} for name, value in properties.items() if value
            ],
        }
    )


def _card(manifest: Manifest, has_data: bool) -> dict[str, Any]:
    components = manifest.components
    model = manifest.training.get("model")
    parameters = {
        "approach": {"type": "unsupervised"},
        "task": "generation",
        "architectureFamily": "variational autoencoder",
        "modelArchitecture": _text(model, "architecture"),
        "datasets": [{"ref": _DATA}] if has_data else None,
        "inputs": [_format(name, each) for name in components for each in manifest.inputs(name)],
        "outputs": [_format(name, each) for name in components for each in manifest.outputs(name)],
    }
    return {
        "modelParameters": _without_none(parameters),
        "quantitativeAnalysis": {"performanceMetrics": list(_figures(manifest))},
    }


def _format(component: str, tensor: TensorSpec) -> dict[str, str]:
    sizes = ", ".join(["batch", *map(str, tensor.shape)])
    return {"format": f"{component} {tensor.name}: {tensor.dtype} [{sizes}]"}


def _figures(manifest: Manifest) -> Iterator[dict[str, str]]:
    """The figures measured before export, then those of each variant against PyTorch and against fp32."""
    for name, value in manifest.metrics.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield {"type": name, "value": repr(value)}
    for variant in manifest.variants:
        where = f"{variant.component}/{variant.name}"
        for output, error in variant.error.items():
            yield {"type": f"max difference of {output} from PyTorch", "value": repr(error), "slice": where}
        figures = {} if variant.quality is None else {
            "PSNR in dB": variant.quality.psnr, "change of the ELBO in nats": variant.quality.elbo_change,
        }  # fmt: skip
        for name, figure in figures.items():
            if figure is not None:
                yield {"type": name, "value": repr(figure), "slice": where}


def _data(manifest: Manifest) -> dict[str, Any] | None:
    """Return the data that the model was trained on, as a component; None where the manifest names none."""
    data = manifest.training.get("data")
    name = _text(data, "name")
    if name is None:
        return None
    digest = (_text(data, "digest") or "").removeprefix("sha256:")
    return _without_none(
        {
            "type": "data",
            "bom-ref": _DATA,
            "name": name,
            "description": _text(data, "description"),
            "hashes": [{"alg": "SHA-256", "content": digest}] if re.fullmatch("[0-9a-f]{64}", digest) else None,
            "licenses": _licenses(_text(data, "license")),
        }
    )


def _files(bundle: Bundle) -> Iterator[dict[str, Any]]:
    for name, content in {SUMS: bundle.digest.removeprefix("sha256:"), **bundle.sums}.items():
        hashes = [{"alg": "SHA-256", "content": content}]
        yield {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}


def _licenses(text: str | None) -> list[dict[str, Any]] | None:
    if not text:
        return None
    identifier = _IDENTIFIERS.get(text.strip().lower().replace(" ", "-"))
    return [{"license": {"id": identifier} if identifier else {"name": text}}]


def _text(value: object, name: str) -> str | None:
    """Return a text of a free part of the manifest, which may hold anything."""
    text = value.get(name) if isinstance(value, Mapping) else None
    return text if isinstance(text, str) and text else None


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
