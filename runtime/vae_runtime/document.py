"""Read, check and write manifest.json as a whole. All problems are reported at once, each with its place.

The outer document is ONNX Runtime's model package manifest; everything of ours lives under `additional_metadata.vae`
of the package and of each variant.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from typing import Any

from ._version import __version__
from .errors import BundleError, one_line
from .fields import (
    FREE,
    MAX_PROBLEMS,
    TEXT,
    Choice,
    List,
    Map,
    Problem,
    Problems,
    Struct,
    Text,
    TooManyProblems,
    Type,
    join,
    shown,
)
from .manifest import COMPONENTS, FILE, FORMAT_VERSION, NAME, PATH, READER, VARIANT_NAME, VERSION, Manifest, Variant
from .records import Field, fields_of
from .rules import contradictions

# The keys of `executor_info` whose payload names a graph: for ONNX Runtime, torch.jit.load and torch.export.load.
EXECUTORS = ("ort", "torchscript", "torch_export")

# The limits of what is nested, told at once, and offered as variants; far above those of any real manifest.
_MAX_DEPTH, _MAX_PROBLEMS, _MAX_VARIANTS = 64, 20, 64

PACKAGE_VERSION = Text(
    r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,7}",
    'a version of 1 to 8 integers, such as "1.2.0"',
    name="package_version",
    description="The version of what is packed: integers of at most nine digits, compared one by one.",
)

_OLDER = r"1\.(0|[1-9][0-9]*)"
_NEWER = r"([3-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*)"


class ExecutorInfo(Type):
    """The payload of each executor; the first of our executors counts."""

    def __init__(self) -> None:
        self.name = "executor_info"
        self.description = "The first of these three keys counts; a variant with none of them is another program's."
        self.payloads = Map(FREE, min=1)
        self.ours = Struct([Field("model_file", FILE)], name="graph_file")

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The executor and its members; None for another program's variant."""
        payloads = self.payloads.read(value, place, problems)
        executor = next((key for key in EXECUTORS if key in payloads), None)
        if executor is None:
            return None
        return executor, self.ours.read(payloads[executor], join(place, executor), problems)


class Variants(Type):
    """The variants of a component by name; other programs' are left out."""

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The members of each variant."""
        if not isinstance(value, dict) or not value:
            problems.note(place, "an object with at least one variant", value)
            return {}
        if len(value) > _MAX_VARIANTS:
            problems.append(Problem(place, f"at most {_MAX_VARIANTS} variants", str(len(value))))
            return {}
        variants = {}
        for name, item in value.items():
            VARIANT_NAME.read(name, join(place, name), problems)
            members = VARIANT.read(item, join(place, name), problems)
            if members and members["executor_info"]:
                variants[name] = members
        return variants


def _names(each: Field) -> list[str]:
    """The key of a field, and the keys of its members, or of its items' members, after a dot."""
    holder = each.type.item if isinstance(each.type, List) else each.type
    below = [f"{each.key}.{member.key}" for member in holder.fields] if isinstance(holder, Struct) else []
    return [each.key, *below]


_VAE = fields_of(Manifest)
# Every field of this format version, as `must_understand` names it.
KNOWN_FIELDS = frozenset(["must_understand", *(name for each in _VAE for name in _names(each))])

_OURS = Struct(fields_of(Variant))
VARIANT = Struct(
    [
        Field("variant_directory", PATH),
        Field("ep", TEXT, required=False),
        Field("device", TEXT, required=False),
        Field("executor_info", ExecutorInfo()),
        Field("additional_metadata", Struct([Field("vae", _OURS)])),
    ],
    closed=True,
    name="variant",
)
_COMPONENT = Struct(
    [
        Field("component_name", TEXT, required=False),
        Field("variants", Variants()),
        Field("additional_metadata", FREE, required=False),
    ],
    closed=True,
    name="component",
)


class Document(Struct):
    """The outer object, whose components are required unless the bundle is packed or exported without an encoder."""

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The members by key."""
        members = super().read(value, place, problems)
        if isinstance(value, dict) and isinstance(value.get("components"), dict):
            for component in _missing_components(value):
                problems.missing(join("components", component))
        return members


_MUST_UNDERSTAND = List(Choice(*sorted(KNOWN_FIELDS)), "a list of field names")
_PACKAGE = Struct([*_VAE, Field("must_understand", _MUST_UNDERSTAND, required=False)], name="vae")
DOCUMENT = Document(
    [
        Field(
            "schema_version", Text(r"1\.(0|[1-9][0-9]*)", 'ONNX Runtime\'s package schema "1.x"', name="schema_version")
        ),
        Field("package_name", NAME),
        Field("package_version", PACKAGE_VERSION, required=False),
        Field("description", TEXT, required=False),
        Field("layout", Choice("portable")),
        Field("components", Struct([Field(name, _COMPONENT, required=False) for name in COMPONENTS])),
        Field("additional_metadata", Struct([Field("vae", _PACKAGE)])),
    ],
    closed=True,
)


def parse(content: str | bytes, place: str = "manifest.json") -> Manifest:
    """Read a manifest.

    Args:
        content: the JSON text, or its UTF-8 bytes.
        place: what to call it in errors, usually its path.

    Raises:
        BundleError: the text is not JSON, has another format version, or has problems. The message lists every
            problem on a line of its own.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if _is_deep(text):
            raise RecursionError
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
        # 1e999 and half of a surrogate pair can be read, and neither be written again nor printed.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise BundleError(f"{place}: expected JSON in UTF-8: {reason}; copy the bundle again") from None
    manifest, found = _read(document)
    if manifest is None or found:
        raise BundleError(_refusal(document, found, place))
    return manifest


def problems(document: Any) -> list[Problem]:
    """List every problem of a document decoded as `parse` does; an empty list if `parse` would accept it."""
    return _read(document)[1]


def dump(manifest: Manifest) -> str:
    """Write a manifest as JSON text, in a fixed order, ending in a newline; `parse` reads an equal object back."""
    document: dict[str, Any] = {
        "schema_version": "1.0",
        "package_name": manifest.package_name,
        **({"package_version": manifest.package_version} if manifest.package_version else {}),
        **({"description": manifest.description} if manifest.description else {}),
        "layout": "portable",
        "components": {
            component: {"variants": {name: _written(variant) for name, variant in variants.items()}}
            for component, variants in manifest.components.items()
        },
        "additional_metadata": {"vae": Struct(_VAE).write(manifest)},
    }
    # A reader that does not know these fields would take an absent component, or a fixed batch, for damage.
    needed = ["batch_of_one"] if manifest.batch_of_one else []
    if len(manifest.components) < len(COMPONENTS):
        needed.append("packed_from" if manifest.packed_from else "refused")
    if needed:
        document["additional_metadata"]["vae"]["must_understand"] = needed
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _written(variant: Variant) -> dict[str, Any]:
    selectors = {"ep": variant.ep, "device": variant.device}
    return {
        "variant_directory": variant.folder,
        **{name: value for name, value in selectors.items() if value is not None},
        "executor_info": {variant.executor: {"model_file": variant.file}},
        "additional_metadata": {"vae": _OURS.write(variant)},
    }


def _is_deep(text: str) -> bool:
    """Return whether objects and lists are nested more than 64 deep."""
    # Brackets in strings count at first, since finding the strings takes longer. A string without an end counts as one:
    # looking for its end from each quote in it would take the square of its length.
    return _depth(text) > _MAX_DEPTH and _depth(re.sub(r'(?s)"(?:[^"\\]|\\.)*"?', "", text)) > _MAX_DEPTH


def _depth(text: str) -> int:
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    return max(itertools.accumulate(steps), default=0)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = ""
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise ValueError(f"the key {one_line(repr(twice[:80]))} stands twice in one object")
    return members


def _refusal(document: Any, found: list[Problem], place: str) -> str:
    if found == [_version_problem(document)]:
        vae = document["additional_metadata"]["vae"]
        if re.fullmatch(_OLDER, vae["format_version"]):
            return (
                f"{place}: {found[0]}; this bundle is older than this vae-runtime: export it again with this version, "
                "or install the vae-runtime that it was made with"
            )
        return f"{place}: {found[0]}; this bundle is newer than this vae-runtime: {_install(document)}"
    remedy = "export the bundle again"
    if all(problem.newer for problem in found):
        remedy += f", or install a vae-runtime that knows more: {_install(document)}"
    if len(found) == 1:
        return f"{place}: {found[0]}; {remedy}"
    lines = "".join(f"\n  {problem}" for problem in found[:_MAX_PROBLEMS])
    if len(found) > _MAX_PROBLEMS:
        lines += f"\n  and {len(found) - _MAX_PROBLEMS} more"
    many = f"at least {MAX_PROBLEMS}" if len(found) == MAX_PROBLEMS else len(found)
    return f"{place}: {many} problems; {remedy}:{lines}"


def _install(document: Any) -> str:
    reader = document["additional_metadata"]["vae"].get("reader")
    # A reader that is installed already would be no next step.
    newer = READER.matches(reader) and _is_newer(reader)
    return f"pip install '{reader}'" if newer else "pip install --upgrade vae-runtime"


def _is_newer(reader: str) -> bool:
    """Return whether a requirement needs a later version than this one."""
    return _numbers(reader.rpartition("=")[2]) > _numbers(__version__)


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version, to compare; 0.1 and 0.1.0 are the same."""
    numbers = [int(number) for number in re.findall("[0-9]+", version)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _read(document: Any) -> tuple[Manifest | None, list[Problem]]:
    problem = _version_problem(document)
    if problem:
        # Nothing else can be judged in a document of another version.
        return None, [problem]
    found = Problems()
    with contextlib.suppress(TooManyProblems):
        outer = DOCUMENT.read(document, "", found)
    if found:
        return None, found
    vae = {key: value for key, value in outer["additional_metadata"]["vae"].items() if key != "must_understand"}
    components: dict[str, Any] = {
        component: {name: _variant(component, name, each) for name, each in members["variants"].items()}
        for component, members in outer["components"].items()
    }
    names = {key: outer.get(key) for key in ("package_name", "package_version")}
    manifest = Manifest(**names, **components, **vae)
    found.extend(contradictions(manifest))
    if not found and manifest.reader and _is_newer(manifest.reader):
        expected = f"a requirement that vae-runtime {__version__} meets"
        found.note("additional_metadata.vae.reader", expected, manifest.reader, newer=True)
    return manifest, found


def _variant(component: str, name: str, members: dict[str, Any]) -> Variant:
    executor, payload = members["executor_info"]
    return Variant(
        component=component,
        name=name,
        folder=members["variant_directory"],
        file=payload["model_file"],
        executor=executor,
        ep=members.get("ep"),
        device=members.get("device"),
        **members["additional_metadata"]["vae"],
    )


def _missing_components(document: dict[str, Any]) -> list[str]:
    """The components that are required and missing: both are, but a packed bundle needs one alone.

    The decoder suffices where `refused` says that the export had no encoder.
    """
    missing = [component for component in COMPONENTS if component not in document["components"]]
    metadata = document.get("additional_metadata")
    vae = metadata.get("vae") if isinstance(metadata, dict) else None
    if isinstance(vae, dict) and "packed_from" in vae:
        return ["decoder"] if len(missing) == len(COMPONENTS) else []
    refused = vae.get("refused") if isinstance(vae, dict) else None
    for each in refused if isinstance(refused, list) else []:
        if isinstance(each, dict) and (each.get("component"), each.get("variant")) == ("encoder", "fp32"):
            return [component for component in missing if component != "encoder"]
    return missing


def _version_problem(document: Any) -> Problem | None:
    """The problem of a format version that this version cannot read, if the document plainly names one."""
    try:
        vae = document["additional_metadata"]["vae"]
        version = vae["format_version"]
    except (KeyError, TypeError, IndexError):
        return None
    place = "additional_metadata.vae"
    if not isinstance(version, str):
        return None
    if not VERSION.matches(version):
        plain = re.fullmatch(_OLDER, version) or re.fullmatch(_NEWER, version)
        return Problem(f"{place}.format_version", VERSION.expected, shown(version)) if plain else None
    needs = vae.get("must_understand")
    if isinstance(needs, list):
        unknown = [need for need in needs if isinstance(need, str) and need not in KNOWN_FIELDS]
        if unknown:
            expected = f"a list of fields of format {FORMAT_VERSION}"
            return Problem(f"{place}.must_understand", expected, ", ".join(map(shown, unknown[:_MAX_PROBLEMS])))
    return None
