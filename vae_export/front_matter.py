"""Write the YAML at the top of a model card, in the words of the Hugging Face Hub."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vae_runtime.manifest import Manifest

# Identifiers of licenses that the Hub knows; any other license stands there as "other", with its name.
_KNOWN = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsl-1.0 cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 creativeml-openrail-m ecl-2.0 epl-2.0
    eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 mit mpl-2.0 ms-pl ncsa odbl
    odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
"""
_LICENSES = frozenset(_KNOWN.split())
_FIGURES = {
    "nll": "negative log-likelihood in nats, a bound",
    "elbo": "ELBO in nats",
    "mse": "mean squared error of reconstructions",
    "mae": "mean absolute error of reconstructions",
}


def front_matter(manifest: Manifest) -> list[str]:
    """Return the lines of the front matter, one for each key, and an empty one.

    Values are JSON, which is YAML too: `license`, `library_name`, `pipeline_tag` where one fits, `tags`, and the
    figures of a run as `model-index`.
    """
    content: dict[str, Any] = _license(manifest.license)
    content["library_name"] = "vae-runtime"
    if _makes_pictures(manifest):
        content["pipeline_tag"] = "unconditional-image-generation"
    content["tags"] = ["vae", "variational-autoencoder", "onnx", "vae-runtime"]
    figures = _figures(manifest)
    if figures:
        data = str(manifest.metrics.get("data") or "unknown")
        result = {
            "task": {"type": content.get("pipeline_tag", "other")},
            "dataset": {"name": data, "type": data, "split": "test"},
            "metrics": figures,
        }
        content["model-index"] = [{"name": manifest.name, "results": [result]}]
    return ["---", *(f"{key}: {_yaml(value)}" for key, value in content.items()), "---", ""]


def _license(license: str | None) -> dict[str, Any]:
    if license is None:
        return {}
    known = license.strip().lower().replace(" ", "-")
    return {"license": known} if known in _LICENSES else {"license": "other", "license_name": license}


def _makes_pictures(manifest: Manifest) -> bool:
    """Return whether the bundle draws pictures without being given anything."""
    free = not any("decoder" in condition.components for condition in manifest.conditions)
    drawn = all(latent.prior.kind != "none" for latent in manifest.latents)
    return free and drawn and manifest.observation.axes[-2:] == ("height", "width")


def _figures(manifest: Manifest) -> list[dict[str, Any]]:
    surrogate = "surrogate " if manifest.metrics.get("surrogate") else ""
    return [
        {"type": key, "value": value, "name": (surrogate if "in nats" in text else "") + text}
        for key, text in _FIGURES.items()
        if isinstance(value := manifest.metrics.get(key), (int, float)) and math.isfinite(value)
    ]


def _yaml(value: Any) -> str:
    # YAML's reader refuses characters that cannot be printed, and takes their escapes.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(
        r"[^ -~\u00a0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]", lambda c: f"\\u{ord(c[0]):04x}", text
    )
