"""Texts from a bundle, as they are printed: escaped and short, whatever field they stand in."""

import json

import pytest

import vae_runtime
from vae_runtime.cli.main import main
from vae_runtime.errors import lines_of, one_line

FORGED = "a\x1b[2J\nerror: forged\u202e\x85"


def strings(value, path=()):
    """The place of every string in a document."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(inner, (*path, key))


def put(document, path, value):
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


def require_harmless(captured):
    for line in (captured.out + captured.err).splitlines():
        assert line.isprintable()
        assert not line.startswith("error: forged")
        assert len(line) <= 2000
    assert len(captured.out + captured.err) < 100_000


@pytest.mark.long
@pytest.mark.parametrize("text", [FORGED, "long " * 2000], ids=["forged", "long"])
def test_no_text_of_a_manifest_forges_a_line_or_floods(text, bundle_copy, edit_manifest, capfd):
    original = (bundle_copy / "manifest.json").read_text(encoding="utf-8")
    accepted = []
    for path in strings(json.loads(original)):
        (bundle_copy / "manifest.json").write_text(original, encoding="utf-8")
        edit_manifest(bundle_copy, lambda document, path=path: put(document, path, text))
        if main(["info", str(bundle_copy)]) == 0:
            accepted.append(path)
        require_harmless(capfd.readouterr())
    assert len(accepted) > 8
    (bundle_copy / "manifest.json").write_text(original, encoding="utf-8")
    edit_manifest(bundle_copy, lambda document: [put(document, path, text) for path in accepted])
    for verb in (["info"], ["verify"], ["bench", "--batch", "1", "--rounds", "1", "--variant", "fp32"]):
        assert main([verb[0], str(bundle_copy), *verb[1:]]) == 0
        require_harmless(capfd.readouterr())
    text = repr(vae_runtime.load(bundle_copy))
    assert text.isprintable()
    assert len(text) <= 2000


def test_many_metrics_are_cut(bundle_copy, edit_manifest, capfd):
    metrics = {f"m{number}": number for number in range(30_000)}
    edit_manifest(bundle_copy, lambda document: document["additional_metadata"]["vae"].update(metrics=metrics))
    assert main(["info", str(bundle_copy)]) == 0
    captured = capfd.readouterr()
    require_harmless(captured)
    assert "  m63 " in captured.out
    assert "\n  and 29936 more\n" in captured.out


def test_one_line_is_short_and_printable():
    assert one_line(FORGED) == r"a\x1b[2J\nerror: forged\u202e\x85"
    assert one_line("x" * 2000) == "x" * 2000
    assert one_line("a" * 9000 + "b" * 9000) == "a" * 1000 + " … " + "b" * 997
    assert len(one_line("\x1b" * 2000)) == 2000
    assert lines_of("a\n\x1b").splitlines() == ["a", r"\x1b"]
    assert lines_of("x\n" * 150).splitlines()[99:] == ["x", "  and 50 lines more"]


@pytest.mark.parametrize("text", ["error: forged", "x" * 2001, "a\x1b[2J"])
def test_a_harmful_line_is_seen(text, capfd):
    print(text)
    with pytest.raises(AssertionError):
        require_harmless(capfd.readouterr())
