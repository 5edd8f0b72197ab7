"""The targets of `make fuzz` without their fuzzer: each check passes for its seeds, and sees a reader that fails."""

import importlib
import random
import re

import pytest

# The reader that each target checks.
READERS = {
    "archive": "Archive",
    "golden": "unpack_npz",
    "graph": "check_graph",
    "manifest": "parse",
    "sums": "read_sums",
}


@pytest.fixture(params=READERS)
def target(request):
    return importlib.import_module(f"tests.fuzz.{request.param}")


def test_make_fuzz_runs_every_target(root):
    files = {path.stem for path in (root / "tests" / "fuzz").glob("[a-z]*.py")}
    (listed,) = re.findall(r"for target in ([a-z ]+);", (root / "Makefile").read_text(encoding="utf-8"))
    assert files == set(listed.split()) == READERS.keys()


def test_seeds_and_their_mutations_pass(target):
    random_numbers = random.Random(0)
    for seed in list(target.seeds())[:12]:
        target.check(seed)
        for _ in range(20):
            changed = bytearray(seed or b"\0")
            for _ in range(random_numbers.choice((1, 1, 3))):
                changed[random_numbers.randrange(len(changed))] = random_numbers.randrange(256)
            target.check(bytes(changed[: random_numbers.choice((len(changed), len(changed) // 2))]))


def test_a_reader_that_lets_its_parser_through_is_seen(target, monkeypatch):
    def fail(*arguments, **options):
        raise KeyError

    seed = next(iter(target.seeds()))
    monkeypatch.setattr(target, READERS[target.__name__.rpartition(".")[2]], fail)
    with pytest.raises(KeyError):
        target.check(seed)


@pytest.mark.parametrize("name", ["manifest", "sums"])
def test_a_reader_that_changes_what_it_reads_is_seen(name, monkeypatch):
    target = importlib.import_module(f"tests.fuzz.{name}")
    first, second, *_ = target.seeds()
    # Each reads the other's content.
    read = getattr(target, READERS[name])
    monkeypatch.setattr(
        target, READERS[name], lambda content, *rest: read(second if content == first else first, *rest)
    )
    with pytest.raises(AssertionError):
        target.check(first)


@pytest.mark.parametrize("name", READERS)
def test_a_flood_is_seen(name, monkeypatch):
    target = importlib.import_module(f"tests.fuzz.{name}")

    def flood(*arguments, **options):
        raise target.BundleError("x" * 30_000)

    monkeypatch.setattr(target, READERS[name], flood)
    with pytest.raises(AssertionError, match="a message of 30000 characters"):
        target.check(b"")
