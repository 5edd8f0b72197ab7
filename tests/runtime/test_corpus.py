"""The corpus of forged and damaged bundles: each gets its verdict, in little time and memory."""

import json
import os
import subprocess
import sys

import pytest

if not os.path.exists("/proc/self/status"):
    pytest.skip("memory is measured by /proc", allow_module_level=True)


def outcome(root, every):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "runtime"), str(root)])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus", str(every)], cwd=root, env=environment, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def require_right(result, cases):
    assert result["wrong"] == []
    assert result["cases"] >= cases
    # A busy machine takes longer than the second that each is allowed.
    assert result["slowest"][0] < 3
    assert result["MiB"] < 300


def test_a_part_of_the_corpus_gets_its_verdicts(root):
    require_right(outcome(root, 6), 60)


@pytest.mark.long
def test_the_whole_corpus_gets_its_verdicts(root):
    require_right(outcome(root, 1), 300)


def test_a_wrong_verdict_is_seen():
    with pytest.raises(AssertionError):
        require_right({"wrong": ["a case"], "cases": 999, "slowest": (0, ""), "MiB": 0}, 300)
