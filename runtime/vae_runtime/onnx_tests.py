"""The golden vectors of a graph as ONNX's own test data: the folders test_data_set_N beside a model.onnx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .bundle import Bundle
from .errors import BundleError, one_line
from .golden import golden_inputs
from .manifest import Manifest
from .onnx_file import names_of
from .protobuf import bytes_field, integer_field

# The numbers of element types in ONNX.
_TYPES = {"float32": 1, "int64": 7}


def test_data(bundle: Bundle, manifest: Manifest, golden: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    """Return the files input_I.pb, output_I.pb and data.json of each graph by their paths; I counts as the graph does.

    Args:
        bundle: the bundle that has the graphs.
        manifest: names the graphs.
        golden: of the bundle, by name.

    Raises:
        BundleError: a graph is damaged, or not the one that the manifest describes.
    """
    files: dict[str, bytes] = {}
    for variant in manifest.variants:
        component, place = variant.component, bundle.place(variant.path)
        inputs = golden_inputs(bundle, component, golden)
        outputs = {each.name: golden[f"{component}/{variant.name}/{each.name}"] for each in manifest.outputs(component)}
        orders = names_of(bundle.read(variant.path), place)
        # A graph of one row has a set for each row.
        size = 1 if component in manifest.batch_of_one else manifest.golden.n
        for kind, arrays, names in zip(("input", "output"), (inputs, outputs), orders, strict=True):
            if set(names) != set(arrays):
                expected, got = ", ".join(arrays), one_line(", ".join(names))
                raise BundleError(f"{place}: expected the {kind}s {expected}, got {got:.200}; copy the bundle again")
            for first in range(0, manifest.golden.n, size):
                folder = f"{variant.folder}/test_data_set_{first // size}"
                for number, name in enumerate(names):
                    files[f"{folder}/{kind}_{number}.pb"] = _tensor(name, arrays[name][first : first + size])
        # ONNX's loader takes the tolerances from there.
        limits = {"atol": max(variant.tolerance.values()), "rtol": 0.0}
        files[f"{variant.folder}/data.json"] = json.dumps(limits).encode()
    return files


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    """Return a TensorProto: its dims, data_type, name and raw_data, whose numbers are little-endian."""
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    dims = b"".join(integer_field(1, size) for size in array.shape)
    kind = integer_field(2, _TYPES[array.dtype.name])
    return dims + kind + bytes_field(8, name.encode()) + bytes_field(9, raw)
