"""The conformance suite: what this package answers, and that a wrong answer of any kind is caught."""

import base64
import copy
import os
import sys

import numpy as np
import pytest

from conformance.__main__ import ask, judge, main, page, read_cases, write_requests
from conformance.hosts import HOSTS, ROOT, Host

CASES = read_cases()
BY_NAME = {case["id"]: case for case in CASES}
KINDS = sorted({case["request"]["ask"] for case in CASES})


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    return write_requests(CASES, tmp_path_factory.mktemp("requests"))


@pytest.fixture(scope="module")
def answers(requests):
    """Answers of the driver of this Python."""
    return ask(HOSTS[0].command(), requests)


def test_this_package_answers_every_case(answers):
    assert judge(CASES, answers) == {}
    assert len(answers) == len(CASES) > 200


def spoiled(answer):
    """The same answer, with one thing wrong."""
    answer = copy.deepcopy(answer)
    if "refused" in answer:
        return {**answer, "refused": "device"}
    first = next(iter(answer["answer"]))
    value = answer["answer"][first]
    if not isinstance(value, dict) or "base64" not in value:
        answer["answer"][first] = not value if isinstance(value, bool) else "another"
        return answer
    numbers = np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).copy()
    numbers[-1] += 1 if value["dtype"] != "float32" else max(0.01, abs(numbers[-1]))
    value["base64"] = base64.b64encode(numbers.tobytes()).decode()
    return answer


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_wrong_answer_is_caught(name, answers):
    wrong = judge([BY_NAME[name]], {name: spoiled(answers[name])})
    tolerance = BY_NAME[name].get("tolerance")
    # A number of the int8 graph may be off by more than this one was moved.
    if not (tolerance and max(tolerance.values()) > 0.01):
        assert list(wrong) == [name]


@pytest.mark.parametrize("kind", ["words", "normal", "prior", "reparameterize"])
def test_one_other_bit_of_noise_is_caught(kind, answers):
    name = next(case["id"] for case in CASES if case["request"]["ask"] == kind and "answer" in case["expect"])
    answer = copy.deepcopy(answers[name])
    tensor = next(iter(answer["answer"].values()))
    content = bytearray(base64.b64decode(tensor["base64"]))
    content[0] ^= 1
    tensor["base64"] = base64.b64encode(content).decode()
    assert "have other bits" in judge(CASES, {**answers, name: answer})[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_answer_and_a_wrong_type_are_caught(kind, answers):
    name = next(case["id"] for case in CASES if case["request"]["ask"] == kind and "answer" in case["expect"])
    assert judge(CASES, {other: answers[other] for other in answers if other != name}) == {name: "no answer"}
    for other in ({"answer": {}}, {"answer": []}, {"refused": "bundle"}, {"answer": {"x": 1}}):
        assert list(judge(CASES, {**answers, name: {"id": name, **other}})) == [name]
    assert judge(CASES, {**answers, "made up": {"id": "made up"}}) == {"made up": "an answer to no case"}


def test_what_is_unsupported_is_named_and_not_counted_as_right(answers):
    name = CASES[0]["id"]
    given = {**answers, name: {"id": name, "unsupported": "no words"}}
    assert judge(CASES, given) == {}
    table = page(CASES, {"One": ({}, {name: "no words"}), "Two": "no compiler"})
    count = sum(case["id"].startswith("words/") for case in CASES)
    assert f"| One | {count - 1} of {count} |" in table
    assert f"- One: {name}: unsupported: no words" in table
    assert "- Two: skipped: no compiler" in table


def test_each_edit_is_why_its_bundle_is_refused(answers):
    forged = [case["request"] for case in CASES if "edit" in case and case["request"]["ask"] == "load"]
    assert len(forged) > 40
    # The same request without its edit is answered.
    for request in forged:
        assert request == BY_NAME[f"load/{request['bundle']}"]["request"]
        assert answers[f"load/{request['bundle']}"]["answer"]["name"] == request["bundle"]


LIAR = """
import sys
sys.path[:0] = [{root!r}]
from vae_runtime import noise
normal = noise.normal
noise.normal = lambda *a, **k: -normal(*a, **k)
from conformance import driver
sys.exit(driver.main())
"""


def test_a_driver_that_answers_wrongly_on_purpose_is_caught(requests, tmp_path):
    script = tmp_path / "liar.py"
    script.write_text(LIAR.format(root=str(ROOT)))
    wrong = judge(CASES, ask([sys.executable, str(script)], requests))
    asked = {BY_NAME[name]["request"]["ask"] for name in wrong}
    assert asked == {"normal", "prior", "reparameterize", "verify", "decode", "encode"}


def test_a_driver_that_fails_or_repeats_itself_is_no_host(requests, tmp_path):
    script = tmp_path / "bad.py"
    script.write_text("import sys; sys.exit('no such thing')")
    with pytest.raises(RuntimeError, match="exit status 1: no such thing"):
        ask([sys.executable, str(script)], requests)
    script.write_text("""print('{"id": "a"}'); print('{"id": "a"}')""")
    with pytest.raises(RuntimeError, match="answers 'a' twice"):
        ask([sys.executable, str(script)], requests)


def test_the_suite_fails_with_a_wrong_host(tmp_path, monkeypatch, capsys):
    script = tmp_path / "liar.py"
    script.write_text(LIAR.format(root=str(ROOT)))
    for host, status in ((HOSTS[0], 0), (Host("Liar", lambda: (sys.executable, str(script))), 1)):
        monkeypatch.setattr("conformance.__main__.HOSTS", (host,))
        monkeypatch.setattr(sys, "argv", ["conformance", "--only", host.name])
        assert main() == status
    assert "Liar: 1" in capsys.readouterr().out


def test_bundles_and_cases_fit_a_megabyte():
    files = [path for path in (ROOT / "conformance").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 2**20


def test_a_driver_that_is_older_than_its_sources_is_named(tmp_path, monkeypatch):
    (command,) = (host.command for host in HOSTS if host.name == "C on x86-64")
    driver, source = tmp_path / "out" / "c" / "gcc" / "driver", tmp_path / "runtime" / "c" / "vae_runtime.c"
    for number, path in enumerate((source, driver)):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + number, 1000 + number))
    monkeypatch.setattr("conformance.hosts.ROOT", tmp_path)
    assert "make test-c" not in command()
    os.utime(source, (2000, 2000))
    assert command() == "`make test-c` builds its driver"
