"""The JSON Schema of manifest.json, made of the types of its fields: `python -m vae_runtime.schema` prints it."""

from __future__ import annotations

import json
from typing import Any

from .columns import Scalar
from .document import DOCUMENT, EXECUTORS, VARIANT, ExecutorInfo, Variants
from .fields import MAX_NUMBER, Choice, Either, Flag, Integer, Later, List, Map, Nullable, Number, Struct, Text, Type
from .manifest import COMPONENTS, VARIANT_NAME
from .records import Field


def json_schema() -> dict[str, Any]:
    """The schema, as JSON holds it; the rules between fields are beyond it."""
    definitions = _Definitions()
    document = definitions.schema(DOCUMENT)
    packed = {"if": {"required": ["encoder"]}, "else": {"required": ["decoder"]}}
    without = {
        "required": ["component", "variant"],
        "properties": {"component": {"const": "encoder"}, "variant": {"const": "fp32"}},
    }
    decoder_alone = {"required": ["refused"], "properties": {"refused": {"contains": without}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:vae-export:bundle-format:2",
        "title": "manifest.json of a VAE bundle, format 2",
        "description": 'Made by `make schema`. bundle-format.md is the specification; its section "Cross-field rules" '
        "lists what this schema cannot express.",
        **document,
        "if": _where({"required": ["packed_from"]}),
        "then": _components(packed),
        "else": {
            "if": _where(decoder_alone),
            "then": _components({"required": ["decoder"]}),
            "else": _components({"required": list(COMPONENTS)}),
        },
        "$defs": definitions.named,
    }


def _where(vae: dict[str, Any]) -> dict[str, Any]:
    """The condition that our metadata satisfy a schema."""
    members = {"type": "object", "required": ["vae"], "properties": {"vae": {"type": "object"} | vae}}
    return {"required": ["additional_metadata"], "properties": {"additional_metadata": members}}


def _components(schema: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {"components": schema}}


class _Definitions:
    """Schemas of types; those of named types stand in `named`, and are referred to."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def reference(self, type: Type) -> dict[str, Any]:
        if isinstance(type, Later):
            return self.reference(type.type)
        if type.name is None:
            return self.schema(type)
        if type.name not in self.named:
            self.named[type.name] = {}
            self.named[type.name].update(self.schema(type))
        return {"$ref": f"#/$defs/{type.name}"}

    def schema(self, type: Type) -> dict[str, Any]:
        described = {"description": type.description} if type.description else {}
        return described | self.assertions(type)

    def assertions(self, type: Type) -> dict[str, Any]:
        match type:
            case Text():
                return {"type": "string"} | _text(type)
            case Choice():
                return {"enum": list(type.choices)} if len(type.choices) > 1 else {"const": type.choices[0]}
            case Flag():
                return {"type": "boolean"}
            case Integer():
                return {"type": "integer", "minimum": type.min, "maximum": type.max}
            case Number():
                return _number(type)
            case Nullable():
                inner = self.schema(type.item)
                return inner | {"type": [inner["type"], "null"]}
            case List():
                return self.of_list(type)
            case Either():
                items = {"minItems": type.items.min, "items": self.reference(type.item)}
                return {"if": {"type": "array"}, "then": items, "else": self.reference(type.item)}
            case Map():
                minimum = {"minProperties": type.min} if type.min else {}
                each = {"additionalProperties": self.reference(type.item)} if type.item else {}
                return {"type": "object"} | minimum | each
            case Struct():
                return self.of_struct(type)
            case Scalar():
                return {"type": ["string", "number", "boolean", "null"], "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
            case ExecutorInfo():
                return self.of_executor_info(type)
            case Variants():
                names, each = _text(VARIANT_NAME), self.reference(VARIANT)
                return {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": each}
        raise NotImplementedError(type)

    def of_list(self, type: List) -> dict[str, Any]:
        bounds = {"minItems": type.min or None, "maxItems": type.max, "uniqueItems": type.distinct or None}
        present = {keyword: bound for keyword, bound in bounds.items() if bound is not None}
        return {"type": "array"} | present | {"items": self.reference(type.item)}

    def of_struct(self, type: Struct) -> dict[str, Any]:
        shared = [each for each in type.fields if not each.kinds]
        closed = {"additionalProperties": False} if type.closed else {}
        schema = {"type": "object"} | closed | self.members(shared)
        for each in type.fields:
            if each.kinds:
                schema["properties"][each.key] = {"description": f"Only of the kind {' or '.join(each.kinds)}."}
        return schema | self.by_kind(type)

    def members(self, fields: list[Field], kind: str | None = None) -> dict[str, Any]:
        """The assertions on some fields; a field that another one replaces is told apart by which of them is there."""
        instead = {each.unless: each for each in fields if each.unless}
        plain = [each for each in fields if each.key not in instead and not each.unless]
        required = [each.key for each in plain if each.needed(kind)]
        schema: dict[str, Any] = {"required": required} if required else {}
        if plain:
            schema["properties"] = {each.key: self.reference(each.type) for each in plain}
        for each in fields:
            if each.key in instead:
                replaced = instead[each.key]
                then = {"properties": {each.key: self.reference(each.type)}, "not": {"required": [replaced.key]}}
                other = {"required": [replaced.key], "properties": {replaced.key: self.reference(replaced.type)}}
                schema |= {"if": {"required": [each.key]}, "then": then, "else": other}
        return schema

    def by_kind(self, type: Struct) -> dict[str, Any]:
        """The members that each kind has by itself; kinds of the same members stand together."""
        groups: dict[str, list[str]] = {}
        for kind in type.kinds:
            own = [each for each in type.fields if each.kinds and each.needed(kind) is not None]
            if own:
                groups.setdefault(json.dumps(self.members(own, kind)), []).append(kind)
        schema: dict[str, Any] = {}
        for members, kinds in reversed(groups.items()):
            known = {"const": kinds[0]} if len(kinds) == 1 else {"enum": kinds}
            condition = {"required": ["kind"], "properties": {"kind": known}}
            schema = {"if": condition, "then": json.loads(members)} | ({"else": schema} if schema else {})
        return schema

    def of_executor_info(self, type: ExecutorInfo) -> dict[str, Any]:
        # That a payload is an object is said of all payloads.
        self.named["graph_file"] = self.members(list(type.ours.fields))
        schema: dict[str, Any] = {}
        for executor in reversed(EXECUTORS):
            then = {"properties": {executor: {"$ref": "#/$defs/graph_file"}}}
            schema = {"if": {"required": [executor]}, "then": then, "else": schema} if schema else then
        return self.assertions(type.payloads) | schema


def _text(type: Text) -> dict[str, Any]:
    # "$" alone would match before a newline that ends the string.
    pattern = {"pattern": f"^{type.pattern}$(?!\\n)"} if type.pattern else {}
    return pattern | ({"not": {"const": type.but}} if type.but else {})


def _number(type: Number) -> dict[str, Any]:
    minimum = {"exclusiveMinimum": type.above} if type.above is not None else {}
    if not minimum:
        minimum = {"minimum": -MAX_NUMBER if type.min is None else type.min}
    return (
        {"type": "number"}
        | minimum
        | {"maximum": MAX_NUMBER}
        | ({} if type.but is None else {"not": {"const": type.but}})
    )


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
