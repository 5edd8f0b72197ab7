"""Ask every host of this machine all cases, and write docs/conformance.md: `python -m conformance`."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .hosts import HOSTS, ROOT

HERE = Path(__file__).parent
_SECONDS = 1200
_PAGE = """# Conformance

What each host answers to the cases of `conformance/`, which are the same for all: noise, prior latents and posterior
samples bit for bit, outputs of graphs within the tolerance of the variant, and what must be refused.
`make conformance` writes this page.

"""


def read_cases() -> list[dict[str, Any]]:
    """The cases, each with `id`, `request` and `expect`, and some with `tolerance` and `edit`."""
    cases: list[dict[str, Any]] = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
    return cases


def write_requests(cases: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the requests for a driver, with copies of the bundles that cases alter; return the file's path."""
    lines = []
    for number, case in enumerate(cases):
        request = {"id": case["id"], **case["request"]}
        if "bundle" in request:
            path = HERE / "bundles" / request["bundle"]
            if "edit" in case:
                path = altered(path, case["edit"], folder / str(number))
            request["path"] = str(path)
        lines.append(json.dumps(request) + "\n")
    requests = folder / "requests.jsonl"
    requests.write_text("".join(lines), encoding="utf-8")
    return requests


def altered(bundle: Path, edit: Mapping[str, Any], copy: Path) -> Path:
    """Write an altered copy of a bundle, a folder or a .zip file, and return its path."""
    shutil.copytree(bundle, copy)
    for name, content in edit.get("files", {}).items():
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(_bytes(content))
    for keys, value in edit.get("manifest", ()):
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        target = manifest
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value
        (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    files = {path.relative_to(copy).as_posix(): path for path in sorted(copy.rglob("*")) if path.is_file()}
    if edit.get("sums", True):
        del files["SHA256SUMS"]
        sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in files.items())
        (copy / "SHA256SUMS").write_text(sums, encoding="utf-8")
        files["SHA256SUMS"] = copy / "SHA256SUMS"
    if not edit.get("zip"):
        return copy
    archive = copy.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for name, path in files.items():
            packed.write(path, name)
    return archive


def _bytes(content: str | Mapping[str, Any]) -> bytes:
    if isinstance(content, str):
        return content.encode()
    text: str = content.get("repeat", "")
    return text.encode() * content["times"] if text else base64.b64decode(content["base64"])


def ask(command: Sequence[str], requests: Path) -> dict[str, dict[str, Any]]:
    """Run a driver, and return its answers by id.

    Raises:
        RuntimeError: the driver fails, or prints what is no answer.
    """
    done = subprocess.run(
        [*command, str(requests)], capture_output=True, encoding="utf-8", timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {done.stderr[-2000:]}")
    answers: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        if answer["id"] in answers:
            raise RuntimeError(f"{command[0]}: answers {answer['id']!r} twice")
        answers[answer["id"]] = answer
    return answers


def judge(cases: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is wrong with the answers: a line for each case that is answered wrongly, by its id."""
    wrong = {name: "an answer to no case" for name in answers if name not in {case["id"] for case in cases}}
    for case in cases:
        answer = answers.get(case["id"])
        if answer is None:
            wrong[case["id"]] = "no answer"
        elif "unsupported" not in answer and (line := _difference(case, answer)):
            wrong[case["id"]] = line
    return wrong


def _difference(case: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    expect = case["expect"]
    if "refused" in expect or "answer" not in answer:
        expected, got = (each.get("refused", "an answer") for each in (expect, answer))
        return "" if expected == got else f"expected {expected}, got {got}: {answer.get('why', '')}".rstrip(": ")
    expected, got = expect["answer"], answer["answer"]
    if not isinstance(got, dict) or set(expected) != set(got):
        return f"expected {sorted(expected)}, got {sorted(got)}"
    for key, value in expected.items():
        if isinstance(value, dict) and "base64" in value:
            line = _tensor_difference(value, got[key], case.get("tolerance", {}).get(key))
        else:
            line = "" if value == got[key] else f"expected {value}, got {got[key]}"
        if line:
            return f"{key}: {line}"
    return ""


def _tensor_difference(expected: Mapping[str, Any], got: Any, tolerance: float | None) -> str:
    for key in ("dtype", "shape"):
        if got.get(key) != expected[key]:
            return f"expected {key} {expected[key]}, got {got.get(key)}"
    own, other = (np.frombuffer(base64.b64decode(each["base64"]), each["dtype"]) for each in (expected, got))
    if own.shape != other.shape:
        return f"expected {own.size} numbers, got {other.size}"
    if own.dtype.kind == "i" and tolerance is not None:
        share = float(np.mean(own != other))
        return "" if share <= tolerance else f"{share:.1%} of the numbers differ"
    if tolerance is None:
        same = own.tobytes() == other.tobytes()
        return "" if same else f"{int(np.sum(own != other))} of {own.size} numbers have other bits"
    distance = float(np.max(np.abs(own.astype(np.float64) - other)))
    return "" if distance <= tolerance else f"off by {distance:.2e}, tolerance {tolerance:.2e}"


def kind_of(name: str) -> str:
    """The row of the table that a case belongs to."""
    return name.partition("/")[0]


def page(cases: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """The table of all hosts as Markdown: cases right, of all, by kind; and what is wrong, unsupported or skipped."""
    kinds = Counter(kind_of(case["id"]) for case in cases)
    lines = ["| host | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    notes = []
    for host, result in results.items():
        if isinstance(result, str):
            lines.append(f"| {host} |" + " – |" * len(kinds))
            notes.append(f"- {host}: skipped: {result}")
            continue
        wrong, unsupported = result
        bad = Counter(kind_of(name) for name in (*wrong, *unsupported))
        lines.append(
            f"| {host} | " + " | ".join(f"{count - bad[kind]} of {count}" for kind, count in kinds.items()) + " |"
        )
        notes += [f"- {host}: {name}: {line}" for name, line in wrong.items()]
        notes += [f"- {host}: {name}: unsupported: {line}" for name, line in unsupported.items()]
    return _PAGE + "\n".join([*lines, "", *notes]).rstrip() + "\n"


def main() -> int:
    """Ask all hosts, or those of which the name has `--only` in it."""
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument(
        "--only", default="", help="hosts whose name has this in it; docs/conformance.md is left as it is"
    )
    options = parser.parse_args()
    cases = read_cases()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        requests = write_requests(cases, Path(folder))
        for host in HOSTS:
            if options.only not in host.name:
                continue
            command = host.command()
            if isinstance(command, str):
                results[host.name] = command
                print(f"{host.name}: skipped: {command}")
                continue
            answers = ask(command, requests)
            wrong = judge(cases, answers)
            unsupported = {name: each["unsupported"] for name, each in answers.items() if "unsupported" in each}
            results[host.name] = wrong, unsupported
            print(f"{host.name}: {len(cases) - len(wrong) - len(unsupported)} of {len(cases)} right")
            for name, line in wrong.items():
                print(f"  {name}: {line}")
    if not options.only:
        (ROOT / "docs" / "conformance.md").write_text(page(cases, results), encoding="utf-8")
    return int(any(not isinstance(result, str) and result[0] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
