"""Hostile files for the commands' arguments: each is refused in one line, with nothing written, in little memory."""

import dataclasses
import json
import os
import shutil
import sys
import zipfile

import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

from tests.corpus import inputs
from vae_export.cli import main
from vae_export.loading import load_model
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.dataset import load
from vae_export.training.evaluation import evaluate, read_evaluation
from vae_runtime.errors import InputError

if not os.path.exists("/proc/self/clear_refs"):
    pytest.skip("memory is measured by /proc", allow_module_level=True)


def require_right(result, cases):
    assert result["wrong"] == []
    assert result["cases"] >= cases
    # A busy machine takes longer than the second that each is allowed.
    assert result["slowest"][0] < 3, result["slowest"]
    assert result["largest"][0] < 300, result["largest"]


def test_a_part_of_the_hostile_files_is_refused(monkeypatch, tmp_path):
    # In this process, which has imported the libraries; all of them have a process of their own.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # That of pytest is another file than the one below Python, where the words are looked for.
    with open(2, "w", encoding="utf-8", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        require_right(inputs.results(64), 5)


@pytest.mark.long
def test_all_hostile_files_are_refused(corpus):
    require_right(corpus("tests.corpus.inputs", 1, 300), 350)


@pytest.mark.parametrize("wrong", [{"wrong": ["x"]}, {"cases": 1}, {"slowest": [9, ""]}, {"largest": [301, ""]}])
def test_a_wrong_refusal_is_seen(wrong):
    right = {"wrong": [], "cases": 99, "slowest": [0, ""], "largest": [0, ""]}
    require_right(right, 99)
    with pytest.raises(AssertionError):
        require_right({**right, **wrong}, 99)


def test_postscript_by_the_name_of_a_picture_reaches_no_interpreter(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    opened = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: opened.append(1) or Image.new("RGB", (8, 8)).im)
    with pytest.raises(InputError, match=r"x\.png: expected an image as PNG, JPEG, .*, got another format; replace"):
        load(DataConfig(str(tmp_path)))
    assert not opened
    # Pillow by itself would.
    with Image.open(tmp_path / "x.png") as image:
        image.load()
    assert opened


def test_numbers_beyond_any_float_are_refused_as_others():
    for value in (10**400, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^train\.learning_rate: expected a number above 0, got"):
            TrainConfig(learning_rate=value)
    with pytest.raises(InputError, match=r"^model\.observation_shape: expected layers of at most"):
        ModelConfig(observation_shape=(2**24, 2**24))
    assert ModelConfig(observation_shape=(2**14, 2**14), hidden=(2**16,) * 64).hidden


def test_a_tensor_that_ends_beyond_its_record_is_refused(tmp_path, monkeypatch):
    """Read into memory, PyTorch would take what lies behind it."""
    sys_path = tmp_path / "modules"
    sys_path.mkdir()
    (sys_path / "beyond_model.py").write_text("import torch\n\n\ndef make():\n    return torch.nn.Linear(512, 512)\n")
    monkeypatch.syspath_prepend(str(sys_path))
    model = torch.nn.Linear(512, 512)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    loaded = load_model("beyond_model:make", tmp_path / "w.pt")
    assert torch.equal(loaded.weight, model.weight)
    whole = (tmp_path / "w.pt").read_bytes()
    small = torch.nn.Linear(4, 4)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    # The pickle of the large one, and the records of the small one.
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as large,
        zipfile.ZipFile(tmp_path / "small.pt") as other,
        zipfile.ZipFile(tmp_path / "forged.pt", "w") as forged,
    ):
        for name in large.namelist():
            short = name.partition("/")[2]
            source = other if short.startswith("data/") else large
            forged.writestr(f"forged/{short}", source.read(f"{'small' if source is other else 'w'}/{short}"))
    assert len((tmp_path / "forged.pt").read_bytes()) < len(whole)
    with pytest.raises(InputError, match=r"forged\.pt: expected \.safetensors or torch\.save"):
        load_model("beyond_model:make", tmp_path / "forged.pt")


def test_a_resume_state_that_lacks_something_is_one_line(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run")
    save_file({"x": torch.zeros(1)}, tmp_path / "run" / "state.safetensors", {"identity": "{}", "records": "[]"})
    (tmp_path / "run" / "config.json").unlink()
    assert main(["train", "--out", str(tmp_path / "run"), "--epochs", "1"]) == 1
    (words,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("training on ")]
    assert "state.safetensors: expected a complete resume state" in words


EVALUATIONS = {
    "deep": (b"[" * 10**5, "expected values nested at most 64 deep"),
    "a list": (b"[]", "figures: expected an object, got \\[\\]"),
    "an integer of 400 digits": (b'{"elbo"', "figures.elbo: expected float, got 1000000"),
    "a name of 100,000 characters": (b'{"%s": 1}' % (b"x" * 10**5), "figures.x{99}: no such field"),
    "half a character": (rb'{"data": "\ud800"}', "surrogates not allowed"),
    "2 MiB": (b" " * 2**21, "expected at most 1048576 bytes, got more"),
}


@pytest.mark.parametrize(("content", "words"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_damaged_figures_of_a_run_are_refused_in_short(tiny_run, tmp_path, content, words):
    shutil.copytree(tiny_run, tmp_path / "run")
    whole = dataclasses.asdict(evaluate(tmp_path / "run", importance_samples=1, progress=False))
    assert read_evaluation(tmp_path / "run") is not None
    if content.startswith(b'{"elbo"'):
        content = json.dumps({**whole, "elbo": 10**400}).encode()
    (tmp_path / "run" / "evaluation.json").write_bytes(content)
    with pytest.raises(
        InputError, match=f"evaluation.json: expected the output of `vae-export evaluate`: .*{words}"
    ) as e:
        read_evaluation(tmp_path / "run")
    assert len(str(e.value)) < 900


READS_FOLDERS = """
import pathlib
import torch


class Model(torch.nn.Linear):
    @classmethod
    def from_pretrained(cls, folder, **options):
        for path in pathlib.Path(folder).rglob("*"):
            path.is_dir() or path.read_bytes()
        return cls(2, 2)
"""


def test_a_folder_for_a_library_holds_plain_files_alone(tmp_path, monkeypatch):
    (tmp_path / "reads_folders.py").write_text(READS_FOLDERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = tmp_path / "weights" / "vae"
    inner.mkdir(parents=True)
    (tmp_path / "weights" / "config.json").write_text("{}")
    (inner / "link.json").symlink_to("../config.json")
    assert load_model("reads_folders:Model", tmp_path / "weights").weight.shape == (2, 2)
    os.mkfifo(inner / "pipe.json")
    with pytest.raises(InputError, match=r"vae/pipe\.json: expected a plain file, got a pipe; put the file there"):
        load_model("reads_folders:Model", tmp_path / "weights")
    (inner / "pipe.json").unlink()
    (inner / "gone.json").symlink_to("nothing")
    with pytest.raises(InputError, match=r"vae/gone\.json: No such file or directory; put the file there"):
        load_model("reads_folders:Model", tmp_path / "weights")
