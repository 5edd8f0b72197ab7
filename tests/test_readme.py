"""README.md and the other documents do what they say: their Python and shell blocks are executed, in order."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import vae_runtime

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for path in (*sorted(ROOT.glob("*.md")), ROOT / "runtime" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```" in path.read_text(encoding="utf-8")
]
PYTHON, SHELL = ("python",), ("sh", "bash", "console")
# What sets up a machine is not run; its targets and requirements are held against the repository instead.
SET_UP = ("make", "pip", "git")
MOST_SKIPPED = 3


class Block(NamedTuple):
    place: str
    language: str
    file: str | None
    code: str
    reason: str | None


def blocks_of(text, place):
    pattern = (
        r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)(?: file=(?P<file>[\w.]+))?\n(?P<code>.*?)^```$"
    )
    found = [
        Block(f"{place}:{text.count(chr(10), 0, match.end())}", *match.group("language", "file", "code", "reason"))
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]
    assert 2 * len(found) == len(re.findall("^ *```", text, re.MULTILINE)), f"{place}: a fence that is not understood"
    return found


def executed(text, place, folder):
    """Run the blocks of a document in a folder; gives how many ran, and how many were skipped and why."""
    ran, skipped = 0, []
    for block in blocks_of(text, place):
        if block.language not in PYTHON + SHELL:
            continue
        if block.file:
            # A file of the reader's, for the blocks that follow.
            assert not block.reason, f"{block.place}: a file is written, not run"
            assert not (folder / block.file).exists(), f"{block.place}: {block.file} is there already"
            (folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.reason:
            skipped.append(block.reason)
        elif block.language in PYTHON:
            run(block, [sys.executable, "-W", "error", "-c", block.code], folder)
            ran += 1
        else:
            lines = [line.removeprefix("$ ") for line in block.code.splitlines()]
            for line in lines:
                check_set_up(line, block.place)
            rest = [line for line in lines if not line.startswith(SET_UP)]
            run(block, ["bash", "-euo", "pipefail", "-c", "\n".join(rest)], folder)
            ran += 1
    assert len(skipped) <= MOST_SKIPPED, skipped
    return ran, skipped


def run(block, command, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, f"{block.place}\n{block.code}\n{done.stdout}\n{done.stderr}"


def check_set_up(line, place):
    if not line.startswith(SET_UP):
        return
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in words:
            assert "=" in word or word in targets, f"{place}: {line}: no such target"
    elif program == "pip":
        assert words[0] == "install", f"{place}: {line}: pip install is expected"
        requirements = [word for word in words[1:] if not word.startswith("-")]
        assert requirements
        for requirement in requirements:
            check_requirement(requirement, f"{place}: {line}")
            assert "[" not in requirement or f"'{requirement}'" in line, f"{place}: {line}: zsh needs quotes here"
    else:
        assert words[0] == "clone", f"{place}: {line}: git clone is expected"


def check_requirement(requirement, place):
    what, extras = re.fullmatch(r"([^\[\]]+)(?:\[([\w,]+)\])?", requirement).groups()
    folders = {"vae-export": ".", "vae-runtime": "runtime"}
    if not what.startswith("."):
        assert what in folders, f"{place}: {what} is no package of this repository"
    pyproject = ROOT / folders.get(what, what) / "pyproject.toml"
    assert pyproject.is_file(), f"{place}: no package there"
    known = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("optional-dependencies", {})
    for extra in (extras or "").split(",") if extras else []:
        assert extra in known, f"{place}: no extra {extra}"


@pytest.fixture
def folder(tmp_path):
    """An empty folder from which the models that ship are reached as from the repository."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_blocks_of_a_document_do_what_they_say(document, folder):
    ran, skipped = executed((ROOT / document).read_text(encoding="utf-8"), document, folder)
    if document == "README.md":
        assert ran >= 6
        assert {"samples", "samples.png", "small.zip", "run", "bundle"} <= set(os.listdir(folder))
    if document == "docs/bring-your-own.md":
        assert ran >= 9
        assert skipped == ["it needs a large model"]
        assert {"mine.py", "mine.safetensors", "x.npy", "samples.png"} <= set(os.listdir(folder))
        for bundle in ("mine", "mine2"):
            assert vae_runtime.verify(folder / "out" / bundle).passed


def test_targets_named_in_the_text_exist():
    for word in re.findall(r"`(make [^`]+)`", (ROOT / "README.md").read_text(encoding="utf-8")):
        check_set_up(word, "README.md")


def test_links_lead_somewhere():
    pages = [
        *ROOT.glob("*.md"),
        ROOT / "runtime" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "models").glob("*/README.md"),
    ]
    assert len(pages) > 20
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


# The runner itself.


def fence(language, code, comment=""):
    return f"Text.\n\n{comment}```{language}\n{code}\n```\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (fence("python", "import vae_runtime\nvae_runtime.lode"), "has no attribute 'lode'"),
        (fence("python", "import warnings\nwarnings.warn('old')"), "UserWarning: old"),
        (fence("sh", "vae-runtime sample models/digits --out x.gif\ntrue"), "a file name ending in .png or .npy"),
        (fence("console", "$ false"), "false"),
        (fence("sh", "make demon"), "no such target"),
        (fence("sh", "pip install './runtime[tpu]'"), "no extra tpu"),
        (fence("sh", "pip install './runtime[cpu]' './wings'"), "no package there"),
        (fence("sh", "pip install ./runtime[cpu]"), "zsh needs quotes here"),
        (fence("sh", "pip install 'vae-runtime-2'"), "is no package of this repository"),
        (fence("sh", "false", "<!-- not run: why -->\n") * 4, "why"),
        ("```python\nnever closed\n", "a fence that is not understood"),
        (fence("python file=../x.py", "x = 1"), "a fence that is not understood"),
        (fence("python file=x.py", "x = ") + fence("python", "import x"), "SyntaxError: invalid syntax"),
        (fence("python", "import x") + fence("python file=x.py", "x = 1"), "No module named 'x'"),
        (fence("python file=x.py", "x = 1") * 2, "x.py is there already"),
        (fence("python file=x.py", "x = 1", "<!-- not run: why -->\n"), "a file is written, not run"),
    ],
)
def test_a_broken_block_fails(text, words, folder):
    with pytest.raises(AssertionError, match=re.escape(words)):
        executed(text, "x.md", folder)


def test_a_block_with_a_files_name_is_that_file(folder):
    text = "```python file=mine.py\nanswer = 42\n```\n" + fence("python", "import mine\nassert mine.answer == 42")
    assert executed(text, "x.md", folder) == (1, [])
    (folder / "mine.py").unlink()
    with pytest.raises(AssertionError, match=r"assert mine.answer == 41"):
        executed(text.replace("== 42", "== 41"), "x.md", folder)


def test_a_sound_block_runs_where_it_should(folder):
    text = fence("python", "open('made', 'w').close()") + fence("sh", "make test  # and wait\ntest -f made")
    text += fence("console", "$ test -f made") + fence("json", "}") + fence("sh", "false", "<!-- not run: why -->\n")
    assert executed(text, "x.md", folder) == (3, ["why"])
