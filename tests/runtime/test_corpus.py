"""The corpus of forged and damaged bundles: each gets its verdict, in little time and memory."""

import os

import pytest

if not os.path.exists("/proc/self/status"):
    pytest.skip("memory is measured by /proc", allow_module_level=True)


def require_right(result, cases):
    assert result["wrong"] == []
    assert result["cases"] >= cases
    # A busy machine takes longer than the second that each is allowed.
    assert result["slowest"][0] < 3
    assert result["MiB"] < 300


def test_a_part_of_the_corpus_gets_its_verdicts(corpus):
    require_right(corpus("tests.corpus", 6, 500), 60)


@pytest.mark.long
def test_the_whole_corpus_gets_its_verdicts(corpus):
    require_right(corpus("tests.corpus", 1, 500), 300)


def test_a_wrong_verdict_is_seen():
    with pytest.raises(AssertionError):
        require_right({"wrong": ["a case"], "cases": 999, "slowest": (0, ""), "MiB": 0}, 300)
