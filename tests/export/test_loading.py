"""`vae-export export --model`: a model of one's own from a module, with weights and example from files."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

import vae_runtime

MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, latent=3):
        super().__init__()
        self.body, self.head = nn.Linear(8, 2 * latent), nn.Linear(latent + 2, 8)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z, label):
        return self.head(torch.cat([z, nn.functional.one_hot(label, 2).float()], 1))

def needs(argument):
    return Mine()

def broken():
    raise RuntimeError("no such file here")

number = 3
plain = nn.Linear(2, 2)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module, its weights in both formats, an example and labels; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_test.py").write_text(MINE)
    torch.manual_seed(4)
    state = {
        "body.weight": torch.randn(6, 8),
        "body.bias": torch.randn(6),
        "head.weight": torch.randn(8, 5),
        "head.bias": torch.randn(8),
    }
    safetensors.torch.save_file(state, "mine.safetensors")
    torch.save(state, "mine.pt")
    torch.save({"state_dict": state, "epoch": 3}, "lightning.ckpt")
    np.save("x.npy", np.random.default_rng(0).random((4, 8), np.float32))
    np.save("label.npy", np.array([0, 1, 1, 0]))
    return state


GOOD = {
    "--model": "mine_of_test:Mine",
    "--weights": "mine.safetensors",
    "--example": "x.npy",
    "--condition": "label=label.npy",
    "--class-names": "left,right",
    "--posterior": "logvar",
    "--formats": "onnx",
    "--out": "bundle",
}


def arguments(**changed):
    chosen = {**GOOD, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    return [word for name, value in chosen.items() if value is not None for word in (name, value)]


def test_a_model_is_exported_from_the_shell(place, tmp_path, command):
    done = command("export", *arguments(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "encode: Mine.encode" in done.stderr
    assert "sha256:" in done.stdout
    vae = vae_runtime.load(tmp_path / "bundle")
    z = np.ones((1, 3), np.float32)
    expected = place["head.weight"] @ torch.tensor([1.0, 1, 1, 0, 1]) + place["head.bias"]
    np.testing.assert_allclose(vae.decode(z, conditions={"label": "right"})[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("weights", ["mine.pt", "lightning.ckpt"])
@pytest.mark.usefixtures("place")
def test_files_of_torch_save_are_read_without_running_code(weights, run_here):
    assert run_here("export", *arguments(weights=weights)) == (0, "")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.fixture
def run_here(capsys):
    """The command in this process: its exit status and what it says on stderr if that is not 0."""
    from vae_export.cli import main

    def run(*words):
        try:
            status = main(list(map(str, words)))
        except SystemExit as left:
            status = left.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert "code ran" not in said.out
        return status, said.err if status else ""

    return run


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "mine_of_test"}, 1, "package.module:name is expected"),
        ({"model": "no_such_module:Mine"}, 1, "no_such_module cannot be imported"),
        ({"model": "mine_of_test:Yours"}, 1, "mine_of_test has no Yours"),
        ({"model": "mine_of_test:number"}, 1, "a class or a function is expected, got int"),
        ({"model": "mine_of_test:needs"}, 1, "a function without arguments"),
        ({"model": "mine_of_test:broken"}, 1, "RuntimeError: no such file here"),
        ({"model": "mine_of_test:plain"}, 1, "these weights are not the model's"),
        ({"model": None}, 2, "either a run's folder or --model is expected"),
        ({"weights": "no.safetensors"}, 1, "no.safetensors: no such file"),
        ({"weights": "x.npy"}, 1, "x.npy: .safetensors or torch.save"),
        ({"weights": "evil.pt"}, 1, "evil.pt: .safetensors or torch.save"),
        ({"weights": "list.pt"}, 1, "tensors by name are expected"),
        ({"weights": "short.safetensors"}, 1, "short.safetensors: "),
        ({"example": None}, 2, "--example is expected too"),
        ({"example": "no.npy"}, 1, "no.npy: no such file"),
        ({"example": "mine.pt"}, 1, "an .npy file of numbers is expected"),
        ({"example": "text.npy"}, 1, "numbers are expected, got dtype"),
        ({"example": "empty.npy"}, 1, "at least one row"),
        ({"example": "wide.npy"}, 1, "encode: fails on the example, [4, 9]"),
        ({"condition": "label"}, 2, "NAME=C.npy"),
        ({"condition": "label=x.npy"}, 1, "class_names"),
        ({"condition": "digit=label.npy"}, 1, "decode: takes label too; the conditions have digit"),
        ({"condition": "label=three.npy"}, 1, "4 rows, as the example has, are expected, got 3"),
        ({"class_names": "left"}, 1, "a name for each of the classes 0 … 1"),
        ({"posterior": "logarithm"}, 2, "invalid choice"),
        ({"prior": "mixture:0"}, 1, "prior: normal, none, sphere, diagonal, gaussian or mixture:K is expected"),
        ({"name": "two\nlines"}, 1, "printable text is expected"),
        ({"formats": "onnx,coreml"}, 2, "onnx, torchscript, pt2"),
        ({"out": "x.npy"}, 1, "exists already"),
        ({"data": "digits"}, 2, "--data: only with a run"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_input_is_one_error_and_writes_nothing(changed, status, words, run_here, tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes()[:100])
    np.save("text.npy", np.array(["a", "b"]))
    np.save("empty.npy", np.zeros((0, 8), np.float32))
    np.save("wide.npy", np.zeros((4, 9), np.float32))
    np.save("three.npy", np.zeros(3, np.int64))
    before = sorted(tmp_path.iterdir())
    found, said = run_here("export", *arguments(**changed))
    assert (found, words in said) == (status, True), said
    if status == 1:
        assert said.count("error: ") == 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_a_run_says_its_own_and_takes_no_model_arguments(tiny_run, tmp_path, run_here):
    for extra in (["--likelihood", "gaussian"], ["--example", "x.npy"], ["--condition", "a=b.npy"]):
        status, said = run_here("export", tiny_run, "--out", tmp_path / "bundle", *extra)
        assert status == 2
        assert "only with --model" in said
