"""The driver of vae-runtime for Python: `conformance/driver.py [--native] REQUESTS`; README.md has the protocol."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vae_runtime
from vae_runtime import noise
from vae_runtime.posterior import Encoding, Posterior

Tensor = dict[str, Any]


def packed(array: NDArray[Any]) -> Tensor:
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(content).decode()}


def _array(tensor: Tensor) -> NDArray[Any]:
    dtype = np.dtype(tensor["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(tensor["base64"]), dtype).reshape(tensor["shape"]).astype(tensor["dtype"])


def _load(request: Mapping[str, Any]) -> vae_runtime.VAE:
    return vae_runtime.load(request["path"], device="cpu", variant=request.get("variant"))


def _drawn(request: Mapping[str, Any]) -> tuple[int, int]:
    return int(request["seed"]), int(request["start"])


def _noise(request: Mapping[str, Any]) -> dict[str, Tensor]:
    draw: Callable[..., NDArray[Any]] = getattr(noise, request["ask"])
    more = {"truncation": request["truncation"]} if request["ask"] == "normal" else {}
    return {"values": packed(draw(*_drawn(request), request["n"], request["shape"], stream=request["stream"], **more))}


def _prior(request: Mapping[str, Any]) -> dict[str, Tensor]:
    vae = _load(request)
    seed, start = _drawn(request)
    z = vae.prior(
        request["n"], seed=seed, start=start, temperature=request["temperature"], truncation=request["truncation"]
    )
    named = z if isinstance(z, dict) else {vae.latents[0].name: z}
    return {name: packed(array) for name, array in named.items()}


def _reparameterize(request: Mapping[str, Any]) -> dict[str, Tensor]:
    mean, std = _array(request["mean"]), _array(request["std"])
    posterior = Posterior(mean, std, np.zeros_like(mean), latent=request["latent"])
    seed, start = _drawn(request)
    return {"values": packed(posterior.sample(seed=seed, start=start, temperature=request["temperature"]))}


def _conditions(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else _array(value) for name, value in request["conditions"].items()}


def _noise_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The seed of the noise that a graph takes, where a request has one."""
    return dict(zip(("seed", "start"), _drawn(request), strict=True)) if "seed" in request else {}


def _decode(request: Mapping[str, Any]) -> dict[str, Tensor]:
    vae = _load(request)
    latents = {name: _array(tensor) for name, tensor in request["latents"].items()}
    z: Any = latents if len(vae.latents) > 1 else next(iter(latents.values()))
    return {"values": packed(vae.decode(z, conditions=_conditions(request), **_noise_of(request)))}


def _decode_stream(request: Mapping[str, Any]) -> dict[str, Tensor]:
    vae = _load(request)
    (z,) = (_array(tensor) for tensor in request["latents"].values())
    # Time is the last axis of the latents that are asked for.
    chunks = np.split(z, np.cumsum(request["chunks"])[:-1], -1)
    answers = vae.decode_stream(chunks, conditions=_conditions(request))
    return {str(number): packed(answer) for number, answer in enumerate(answers)}


def _part(part: Any) -> dict[str, Tensor]:
    if isinstance(part, Posterior):
        return {"mean": packed(part.mean), "std": packed(part.std), "logvar": packed(part.logvar)}
    assert isinstance(part, Encoding)
    return {"values": packed(part.mode())}


def _encode(request: Mapping[str, Any]) -> dict[str, Tensor]:
    vae = _load(request)
    q = vae.encode(_array(request["x"]), conditions=_conditions(request), **_noise_of(request))
    if not isinstance(q, Mapping):
        return _part(q)
    return {f"{name}/{key}": tensor for name, part in q.items() for key, tensor in _part(part).items()}


def _verify(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"passed": vae_runtime.verify(request["path"], device="cpu").passed}


def _described(request: Mapping[str, Any]) -> dict[str, Any]:
    vae = _load(request)
    variants = [f"{each.component}/{each.name}" for each in vae.manifest.variants if each.executor == "ort"]
    return {
        "name": vae.manifest.name,
        "latents": {latent.name: list(latent.shape) for latent in vae.latents},
        "observation": list(vae.observation_shape),
        "variants": sorted(variants),
    }


_ASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "words": _noise, "uniform": _noise, "normal": _noise, "prior": _prior, "reparameterize": _reparameterize,
    "decode": _decode, "decode_stream": _decode_stream, "encode": _encode, "verify": _verify, "load": _described,
}  # fmt: skip
_KINDS = {vae_runtime.BundleError: "bundle", vae_runtime.InputError: "input", vae_runtime.DeviceError: "device"}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    ask = _ASKS.get(request["ask"])
    if ask is None:
        return {"unsupported": f"unknown request {request['ask']}"}
    try:
        return {"answer": ask(request)}
    except tuple(_KINDS) as error:
        return {"refused": next(kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "why": str(error)}


def main() -> int:
    """Answer the requests of a file."""
    if "--native" in sys.argv and noise.native_core() is None:
        print("the native core: expected it, got none; build it again", file=sys.stderr)
        return 1
    with open(sys.argv[-1], encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            print(json.dumps({"id": request["id"], **answer(request)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
