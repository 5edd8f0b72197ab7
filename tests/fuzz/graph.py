"""ONNX graphs: each is refused with a BundleError, or has listed operators alone, as a second reader finds them."""

from collections.abc import Iterator

from tests.corpus.cases import branch, graphs, model, node
from tests.fuzz import require_short
from vae_runtime.errors import BundleError
from vae_runtime.graph_check import check_graph
from vae_runtime.graph_rules import OPERATORS
from vae_runtime.onnx_file import operators_of


def seeds() -> Iterator[bytes]:
    """The decoder of a bundle that ships, with a node and a branch more, and the forged ones of the corpus."""
    yield from (model(), model(node("Exp")), model(branch(node("Exp"))))
    yield from (content for _, content in graphs() if len(content) < 2**17)


def words() -> set[bytes]:
    """Names of operators and attributes."""
    names = {
        b"axis",
        b"value",
        b"then_branch",
        b"else_branch",
        b"pads",
        b"location",
        b"length",
        b"offset",
        b"com.microsoft",
    }
    return names.union(*OPERATORS.values())


def check(content: bytes) -> None:
    """Check a graph."""
    try:
        check_graph(content, "model.onnx", {}, 72)
    except BundleError as error:
        require_short(error)
        return
    for domain, _, name in operators_of(content, "model.onnx"):
        assert name.encode() in OPERATORS[domain.encode()]
