"""What the check of a graph knows of the types of outputs, against the schemas of ONNX and of ONNX Runtime."""

import onnx.defs
import pytest
from makers import FLOAT, INT
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from vae_runtime.graph_rules import OPERATORS, Limits, float_results

FLOATS = {f"tensor({kind})" for kind in ("float", "float16", "double", "bfloat16")}
INTEGERS = {f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)}
# An attribute, or nothing, decides.
BY_ATTRIBUTES = {
    "Cast",
    "Constant",
    "ConstantOfShape",
    "EyeLike",
    "BlackmanWindow",
    "HammingWindow",
    "HannWindow",
    "If",
}
# ONNX Runtime knows the operator without a schema that Python sees.
WITHOUT = {"SimplifiedLayerNormalization"}


def schemas(domain):
    """The schemas of each operator that is allowed, of all versions that are."""
    known = {}
    if domain == "ai.onnx":
        every = [schema for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain]
    else:
        every = [schema for schema in get_all_operator_schema() if schema.domain == domain]
    for schema in sorted(every, key=lambda schema: schema.since_version):
        known.setdefault(schema.name, []).append(schema)
    for operator in sorted(name.decode() for name in OPERATORS[domain.encode()]):
        versions = known.get(operator, [])
        if domain == "ai.onnx":
            old = [schema for schema in versions if schema.since_version <= Limits.OPSETS[0]]
            versions = old[-1:] + versions[len(old) :]
        yield operator, versions


def type_of(tensor):
    return tensor.type_str if hasattr(tensor, "type_str") else tensor.typeStr


def outputs(schema):
    """For each output: how it is typed, as "float", "integer" or the number of an input."""
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    inputs = [type_of(each) for each in schema.inputs]
    for output in schema.outputs:
        kind = type_of(output)
        types = allowed.get(kind, {kind}) & (FLOATS | INTEGERS | {"tensor(bool)"})
        if types <= FLOATS:
            yield "float"
        elif not types & FLOATS:
            yield "integer"
        else:
            yield inputs.index(kind) if kind in inputs else None


ALL = [
    pytest.param(operator, versions, id=f"{domain}.{operator}")
    for domain in ("ai.onnx", "com.microsoft")
    for operator, versions in schemas(domain)
    if operator not in BY_ATTRIBUTES | WITHOUT | {"QGemm"}
]
# Whose outputs are floats in every version of every domain.
FLOATS_ALONE = {case.values[0] for case in ALL} - {
    case.values[0] for case in ALL for schema in case.values[1] if {*outputs(schema)} != {"float"}
}


def wrong(operator, versions, known=float_results):
    """The version and number of each output whose type is known as another than the schema says."""
    for schema in versions:
        kinds = list(outputs(schema))
        names = [str(number).encode() for number in range(len(kinds))]
        for number, kind in enumerate(kinds):
            for is_float in (True, False):
                inputs = [is_float] * len(schema.inputs)
                got = names[number] in known(operator.encode(), {}, inputs, names)
                if kind == "float":
                    right = got or (not is_float and operator not in FLOATS_ALONE)
                else:
                    right = got == (is_float and kind != "integer")
                # The mask of an old Dropout is as good as never read.
                if not right and (operator, number) != ("Dropout", 1):
                    yield schema.since_version, number


@pytest.mark.parametrize(("operator", "versions"), ALL)
def test_types_of_outputs_are_those_of_the_schemas(operator, versions):
    assert versions
    assert list(wrong(operator, versions)) == []


def test_a_wrong_type_is_seen():
    versions = {operator: found for domain in ("ai.onnx", "com.microsoft") for operator, found in schemas(domain)}
    assert (11, 1) in wrong("TopK", versions["TopK"], lambda operator, _, floats, results: results)
    assert (14, 2) in wrong("LSTM", versions["LSTM"], lambda operator, _, floats, results: results[:2])


def test_types_that_attributes_and_zero_points_name():
    def known(operator, *inputs, **attributes):
        values = {name.encode(): (2, [value]) for name, value in attributes.items()}
        return bool(float_results(operator.encode(), values, inputs, [b"y"]))

    assert known("Cast", False, to=FLOAT)
    assert not known("Cast", True, to=INT)
    assert known("EyeLike", True)
    assert not known("EyeLike", False)
    assert not known("EyeLike", True, dtype=INT)
    assert known("HannWindow", False)
    assert not known("HannWindow", False, output_datatype=INT)
    assert known("QGemm", *[False] * 8)
    assert not known("QGemm", *[False] * 9)
