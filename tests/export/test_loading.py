"""`vae-export export --model`: a model of one's own from a module, with weights and example from files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import vae_runtime
from vae_export.loading import load_model
from vae_runtime.arrays import read_npy
from vae_runtime.errors import InputError

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
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model_state_dict": wrapped, "optimizer_state_dict": {}}, "parallel.pt")
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


@pytest.mark.long
def test_a_model_is_exported_from_the_shell(place, tmp_path, command):
    done = command("export", *arguments(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "encode: Mine.encode" in done.stderr
    assert "sha256:" in done.stdout
    vae = vae_runtime.load(tmp_path / "bundle")
    z = np.ones((1, 3), np.float32)
    expected = place["head.weight"] @ torch.tensor([1.0, 1, 1, 0, 1]) + place["head.bias"]
    np.testing.assert_allclose(vae.decode(z, conditions={"label": "right"})[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        "mine.pt",
        pytest.param("lightning.ckpt", marks=pytest.mark.long),
        pytest.param("parallel.pt", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("place")
def test_files_of_torch_save_are_read_without_running_code(weights, run_here):
    assert run_here("export", *arguments(weights=weights)) == (0, "")


@pytest.mark.parametrize("weights", ["mine.safetensors", "mine.pt", "lightning.ckpt", "parallel.pt"])
def test_every_kind_of_file_gives_the_model_its_weights(weights, place):
    loaded = load_model("mine_of_test:Mine", Path(weights)).state_dict()
    assert loaded.keys() == place.keys()
    assert all(torch.equal(loaded[name], place[name]) for name in place)


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
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert "code ran" not in output.out
        return status, output.err if status else ""

    return run


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "mine_of_test"}, 1, "expected package.module:name"),
        ({"model": "no_such_module:Mine"}, 1, "no_such_module cannot be imported"),
        ({"model": "no_such_module:Mine"}, 1, "; give a module that Python imports in this folder"),
        ({"model": "mine_of_test:Yours"}, 1, "mine_of_test has no Yours"),
        ({"model": "mine_of_test:number"}, 1, "expected a class or a function, got int"),
        ({"model": "mine_of_test:needs"}, 1, "a function without arguments"),
        ({"model": "mine_of_test:broken"}, 1, "RuntimeError: no such file here"),
        ({"model": "mine_of_test:plain"}, 1, "these weights are not the model's"),
        ({"model": "mine_of_test:plain"}, 1, "; give those of this model"),
        ({"model": None}, 2, "expected either a run's folder or --model, got neither; give one"),
        ({"weights": "no.safetensors"}, 1, "no.safetensors: no such file"),
        ({"weights": "x.npy"}, 1, "x.npy: expected .safetensors or torch.save"),
        ({"weights": "x.npy"}, 1, "; save model.state_dict() alone"),
        ({"weights": "short.safetensors"}, 1, "; give a file that one of them wrote"),
        ({"weights": "evil.pt"}, 1, "evil.pt: expected .safetensors or torch.save"),
        ({"weights": "list.pt"}, 1, "expected tensors by name"),
        ({"weights": "short.safetensors"}, 1, "short.safetensors: "),
        ({"example": None}, 2, "--example is missing"),
        ({"example": "no.npy"}, 1, "no.npy: no such file"),
        ({"example": "mine.pt"}, 1, "expected an .npy file of numbers"),
        ({"example": "text.npy"}, 1, "expected numbers, got dtype"),
        ({"example": "empty.npy"}, 1, "at least one row"),
        ({"example": "wide.npy"}, 1, "encode: fails on the example, [4, 9]"),
        ({"condition": "label"}, 2, "NAME=C.npy"),
        ({"condition": "label=x.npy"}, 1, "--class-names: "),
        ({"condition": "digit=label.npy"}, 1, "decode: also takes label; the conditions have digit"),
        ({"condition": "label=three.npy"}, 1, "expected 4 rows, as the example has, got 3"),
        ({"class_names": "left"}, 1, "a name for each of the classes 0 … 1"),
        ({"posterior": "logarithm"}, 2, "invalid choice"),
        ({"prior": "mixture:0"}, 2, "prior: expected normal, none, sphere, diagonal, gaussian or mixture:K"),
        ({"name": "two\nlines"}, 2, "expected printable text"),
        ({"formats": "onnx,coreml"}, 2, "onnx, torchscript, pt2"),
        ({"out": "x.npy"}, 1, "already exists"),
        ({"out": "x.zip"}, 2, "x.zip: expected a folder, got the name of a .zip file; export to x, then `vae-runtime"),
        ({"data": "digits"}, 2, "--data: allowed only with a run"),
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
    found, printed = run_here("export", *arguments(**changed))
    assert (found, words in printed) == (status, True), printed
    if status == 1:
        assert printed.count("error: ") == 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_a_run_says_its_own_and_takes_no_model_arguments(tiny_run, tmp_path, run_here):
    for extra in (["--likelihood", "gaussian"], ["--example", "x.npy"], ["--condition", "a=b.npy"]):
        status, printed = run_here("export", tiny_run, "--out", tmp_path / "bundle", *extra)
        assert status == 2
        assert "only with --model" in printed


# What a shell, a download and a stranger's module can bring.

ODD = """
import sys
from mine_of_test import Mine

def tells():
    raise RuntimeError("two\\nlines \\x1b[31m")

def recurses():
    return recurses()

def nothing():
    return None

class Space:
    Inner = Mine

class Holder:
    def __init__(self):
        self.module = Mine()

made = Mine()
"""


@pytest.fixture
def odd(place, tmp_path):
    """Beside the rest of `place`, a module of functions that go wrong, and weights and arrays that do."""
    (tmp_path / "odd_of_test.py").write_text(ODD)
    (tmp_path / "faulty_of_test.py").write_text("def f(:\n")
    (tmp_path / "raising_of_test.py").write_text("raise ValueError('at import')\n")
    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    torch.save({"model": place, "optimizer": {"lr": 1}}, "training.pt")
    torch.save(dict(list(place.items())[:2]), "part.pt")
    torch.save({**place, "body.weight": torch.zeros(2, 2)}, "shape.pt")
    torch.save(place["body.bias"], "tensor.pt")
    torch.save({**place, "body.bias": torch.full((6,), torch.nan)}, "nan.pt")
    content = (tmp_path / "mine.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "page.pt").write_text("<html>404</html>")
    for name in ("none.pt", "none.safetensors", "none.npy"):
        (tmp_path / name).touch()
    for name in ("folder.pt", "folder.safetensors", "folder.npy"):
        (tmp_path / name).mkdir()
    x = np.load("x.npy")
    np.savez("x.npz", x=x)
    np.save("object.npy", np.array([Evil()], object), allow_pickle=True)
    np.save("complex.npy", x.astype(complex))
    np.save("nan.npy", x * np.nan)
    np.save("whole.npy", (x * 255).astype(np.uint8))
    np.save("number.npy", np.float32(1))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    with open("huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 8)})
    return place


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "odd_of_test:tells"}, 1, r"odd_of_test:tells() fails: RuntimeError: two\nlines \x1b[31m;"),
        ({"model": "odd_of_test:recurses"}, 1, "fails: RecursionError"),
        ({"model": "odd_of_test:nothing"}, 1, "expected a torch.nn.Module, got NoneType"),
        ({"model": "odd_of_test:Mine.encode"}, 1, "missing 2 required positional arguments"),
        ({"model": "faulty_of_test:Mine"}, 1, "faulty_of_test cannot be imported: SyntaxError"),
        ({"model": "raising_of_test:Mine"}, 1, "raising_of_test cannot be imported: ValueError: at import"),
        ({"model": "../mine_of_test:Mine"}, 1, "cannot be imported"),
        ({"model": "mine_of_test.Mine"}, 1, "expected package.module:name"),
        ({"model": ":Mine"}, 1, "expected package.module:name"),
        ({"model": "mine_of_test:"}, 1, "expected package.module:name"),
        ({"model": "torch.nn:Identity"}, 1, "mine.safetensors: these weights are not the model's"),
        ({"weights": "whole.pt"}, 1, "got other objects, which are not unpickled"),
        ({"weights": "training.pt"}, 1, "training.pt: expected tensors by name"),
        ({"weights": "part.pt"}, 1, "part.pt: these weights are not the model's"),
        ({"weights": "part.pt"}, 1, "for Mine: Missing key(s)"),
        ({"weights": "shape.pt"}, 1, "shape.pt: these weights are not the model's"),
        ({"weights": "tensor.pt"}, 1, "tensor.pt: expected tensors by name"),
        ({"weights": "nan.pt"}, 1, "expected finite numbers, got nan; check the weights"),
        ({"weights": "cut.pt"}, 1, "cut.pt: expected .safetensors or torch.save"),
        ({"weights": "page.pt"}, 1, "page.pt: expected .safetensors or torch.save"),
        ({"weights": "none.pt"}, 1, "none.pt: expected .safetensors or torch.save"),
        ({"weights": "none.safetensors"}, 1, "none.safetensors: expected .safetensors or torch.save"),
        ({"weights": "folder.pt"}, 1, "folder.pt: expected .safetensors or torch.save"),
        ({"weights": "folder.safetensors"}, 1, "folder.safetensors: expected .safetensors or torch.save"),
        ({"example": "x.npz"}, 1, "x.npz: expected an .npy file of numbers"),
        ({"example": "object.npy"}, 1, "object.npy: expected an .npy file of numbers"),
        ({"example": "complex.npy"}, 1, "complex.npy: expected numbers, got dtype complex128"),
        ({"example": "nan.npy"}, 1, "example: expected finite numbers"),
        ({"example": "whole.npy"}, 1, "encode: fails on the example, [4, 8]"),
        ({"example": "number.npy"}, 1, "example: expected at least one row"),
        ({"example": "cut.npy"}, 1, "cut.npy: expected an .npy file of numbers"),
        ({"example": "none.npy"}, 1, "none.npy: expected an .npy file of numbers"),
        ({"example": "huge.npy"}, 1, "huge.npy: expected an .npy file of numbers"),
        ({"example": "folder.npy"}, 1, "folder.npy: expected an .npy file of numbers"),
        ({"observations": "no.npy"}, 1, "no.npy: no such file"),
        ({"observations": "whole.npy"}, 1, "observations: expected float32 [n, 8], as the example has, got uint8"),
        ({"condition": "=label.npy"}, 2, "NAME=C.npy"),
        ({"condition": "a b=label.npy"}, 1, "--condition: expected names of letters, digits and '_'"),
        ({"condition": "label=no.npy"}, 1, "no.npy: no such file"),
        ({"condition": None, "class_names": None}, 1, "decode: also takes label; pass --condition label=…"),
        ({"condition": None}, 1, "exactly one integer condition of shape [n], got none; give --condition"),
        ({"condition": "label="}, 2, "--condition: expected NAME=C.npy with each name once, got 'label='"),
        ({"class_names": "left,left"}, 1, "expected different names"),
        ({"encode": "look"}, 1, "expected a method look from --encode look"),
        ({"axes": "height,width"}, 1, "--axes: expected 1 name for an observation [8]"),
        ({"latent_axes": "a,b"}, 1, "--latent-axes: expected 1 name for the latent [3]"),
        ({"dynamic": "width"}, 1, "dynamic: expected one of the axes ['feature'], got 'width'"),
        ({"likelihood": "cauchy"}, 2, "invalid choice"),
        ({"scale": "much"}, 2, "invalid float value"),
        ({"scale": "0.1"}, 1, "scale: "),
        ({"scale": "-1"}, 2, "error: --scale: expected a positive number, got -1.0"),
        ({"codebook": "0"}, 2, "error: --codebook: expected 1 … 2147483648, got 0"),
        ({"latent_scale": "0"}, 2, "error: --latent-scale: expected finite numbers other than 0, got 0.0"),
        ({"prior": "mixture:3"}, 1, "needs at least 12 observations, got 4; pass more with --observations"),
        ({"license": "\x1b[31m"}, 2, "expected printable text"),
        (
            {"version": "1.2-rc1"},
            2,
            "error: --version: expected a version of 1 to 8 integers, such as \"1.2.0\", got '1.2-rc1'",
        ),
    ],
)
@pytest.mark.usefixtures("odd")
def test_what_others_bring_is_one_error_and_writes_nothing(changed, status, words, run_here, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found, printed = run_here("export", *arguments(**changed))
    assert (found, words in printed) == (status, True), printed
    if status == 1:
        assert printed.count("error: ") == 1
    assert "\x1b" not in printed
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.usefixtures("odd")
def test_a_module_or_a_wrapper_of_one_may_be_named_too():
    for name in ("mine_of_test:Mine", "odd_of_test:Space.Inner", "odd_of_test:made"):
        assert type(load_model(name, None)).__name__ == "Mine"
    assert type(load_model("odd_of_test:Holder", None).module).__name__ == "Mine"


def test_the_working_directory_is_looked_through(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="elsewhere_of_test cannot be imported"):
        load_model("elsewhere_of_test:Mine", None)
    (tmp_path / "elsewhere_of_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert type(load_model("elsewhere_of_test:Mine", None)).__name__ == "Mine"


@pytest.mark.parametrize("weights", ["mine.safetensors", "mine.pt", "lightning.ckpt"])
def test_the_weights_of_the_file_are_the_models(weights, place, tmp_path):
    def equal(model):
        return [torch.equal(tensor, place[name]) for name, tensor in model.state_dict().items()]

    assert equal(load_model("mine_of_test:Mine", tmp_path / weights)) == [True] * 4
    assert equal(load_model("mine_of_test:Mine", None)) == [False] * 4


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "|u1", "<i8", "|b1"])
def test_arrays_are_read_as_they_are(dtype, tmp_path):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for order in ("C", "F"):
        np.save(tmp_path / "x.npy", np.asarray(array, order=order))
        found = read_npy(tmp_path / "x.npy")
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@pytest.mark.long
@pytest.mark.usefixtures("odd")
def test_a_failure_in_a_process_of_its_own_leaves_no_traceback(command, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for changed, status in (({"weights": "cut.pt"}, 1), ({"model": "odd_of_test:tells"}, 1), ({"scale": "much"}, 2)):
        done = command("export", *arguments(**changed), cwd=tmp_path)
        assert done.returncode == status
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


WORSE = """
import sys
import torch
from torch import nn
from mine_of_test import Mine

def leaves():
    sys.exit(0)

class Keys(Mine):
    def load_state_dict(self, state):
        raise KeyError("odd key")

def lazy():
    model = Mine()
    model.body = nn.LazyLinear(6)
    return model

def meta():
    with torch.device("meta"):
        return Mine()
"""


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "worse_of_test:leaves"},
        {"model": "worse_of_test:Keys"},
        {"model": "worse_of_test:lazy", "weights": None},
        {"model": "worse_of_test:meta", "weights": None},
        {"weights": "numbers.pt"},
        {"weights": "old28.pt"},
        {"weights": "old49.pt"},
        {"likelihood": "gaussian", "scale": "nan"},
        {"likelihood": "gaussian", "scale": "inf"},
        {"latent_scale": "nan"},
        {"latent_shift": "inf"},
    ],
    ids=lambda changed: " ".join(filter(None, changed.values())),
)
def test_worse_is_one_error_too(changed, place, run_here, tmp_path):
    (tmp_path / "worse_of_test.py").write_text(WORSE)
    torch.save({1: torch.zeros(1)}, "numbers.pt")
    torch.save(place, "old.pt", _use_new_zipfile_serialization=False)
    for length in (28, 49):
        (tmp_path / f"old{length}.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:length])
    found, printed = run_here("export", *arguments(**changed))
    assert not (tmp_path / "bundle").exists()
    assert found in (1, 2)
    assert printed.count("error: ") == 1


@pytest.mark.parametrize("changed", [{"likelihood": "gaussian", "scale": "0"}, {"latent_scale": "0"}])
@pytest.mark.usefixtures("place")
def test_a_number_that_cannot_be_is_told_by_its_argument(changed, run_here):
    status, printed = run_here("export", *arguments(**changed))
    assert status in (1, 2)
    assert "manifest.json" not in printed


@pytest.mark.parametrize("changed", [{"codebook": "-1"}, {"axes": ""}, {"encode": ""}], ids=str)
@pytest.mark.usefixtures("place")
def test_an_argument_without_a_meaning_is_refused(changed, run_here):
    assert run_here("export", *arguments(**changed))[0] in (1, 2)


@pytest.mark.usefixtures("place")
def test_a_range_without_an_end_is_refused(run_here, tmp_path):
    status, printed = run_here("export", *arguments(likelihood="gaussian"), "--range", "0", "inf")
    assert status in (1, 2)
    assert "range" in printed
    assert not (tmp_path / "bundle").exists()


BRANCHING = """
import mine_of_test

class Branching(mine_of_test.Mine):
    def encode(self, x):
        return super().encode(x / 10 if x.abs().max() > 1000 else x)
"""


@pytest.mark.long
@pytest.mark.usefixtures("place")
def test_a_refusal_is_all_that_is_said_of_a_branch(tmp_path, command):
    (tmp_path / "branching_of_test.py").write_text(BRANCHING)
    done = command("export", *arguments(model="branching_of_test:Branching"), cwd=tmp_path)
    assert done.returncode == 1
    *understood, refusal = done.stderr.splitlines()
    assert refusal.startswith(
        "error: encoder: a Python branch or loop depends on the values of a tensor at branching_of"
    )
    assert len(understood) < 10


# What frameworks write beside the weights, and around them.

FRAMEWORK = """
import json
import pathlib
import safetensors.torch
from mine_of_test import Mine

class Holder(Mine):
    @classmethod
    def from_pretrained(cls, folder, local_files_only):
        model = cls(**json.loads((pathlib.Path(folder) / "config.json").read_text()))
        model.load_state_dict(safetensors.torch.load_file(pathlib.Path(folder) / "model.safetensors"))
        return model
"""


class Settings:
    """Anything that a training script may save beside its weights; reading it must not run code."""

    def __reduce__(self):
        return (print, ("code ran",))


def prefixed(state, prefix, **further):
    return {**{f"{prefix}{name}": tensor for name, tensor in state.items()}, **further}


@pytest.mark.parametrize("prefix", ["net.", "module.", "_orig_mod.", "model.", "model._orig_mod.", "a.b."])
def test_weights_with_a_prefix_are_the_models(prefix, place, tmp_path):
    others = {} if prefix == "_orig_mod." else {"loss.weight": torch.zeros(3), "epoch": torch.tensor(3)}
    torch.save({"state_dict": prefixed(place, prefix, **others)}, tmp_path / "prefixed.pt")
    model = load_model("mine_of_test:Mine", tmp_path / "prefixed.pt")
    assert all(torch.equal(tensor, place[name]) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("odd")
def test_weights_of_a_wrapped_model_are_those_of_its_wrapper(place, tmp_path):
    (tmp_path / "wrapper_of_test.py").write_text(
        "from mine_of_test import Mine\nfrom torch import nn\n"
        "def one():\n    return nn.ModuleDict({'net': Mine()})\n"
        "def two():\n    return nn.ModuleDict({'net': Mine(), 'other': Mine()})\n"
    )
    model = load_model("wrapper_of_test:one", tmp_path / "mine.pt")
    assert all(torch.equal(tensor, place[name]) for name, tensor in model["net"].state_dict().items())
    with pytest.raises(InputError, match="these weights are not the model's"):
        load_model("wrapper_of_test:two", tmp_path / "mine.pt")


def test_weights_of_two_models_are_refused(place, tmp_path):
    averaged = {name: tensor * 2 for name, tensor in place.items()}
    torch.save(prefixed(place, "net.", **prefixed(averaged, "ema.")), tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"the weights of several models fit, ema\., net\.; save"):
        load_model("mine_of_test:Mine", tmp_path / "two.pt")


def test_a_lightning_checkpoint_gives_the_arguments_of_the_class(place, tmp_path, capsys):
    wide = {"body.weight": torch.randn(10, 8), "body.bias": torch.randn(10)}
    wide |= {"head.weight": torch.randn(8, 7), "head.bias": torch.randn(8)}
    content = {"state_dict": wide, "hyper_parameters": {"latent": 5, "lr": 0.1, "settings": Settings()}, "loops": {1}}
    torch.save(content, tmp_path / "wide.ckpt")
    assert load_model("mine_of_test:Mine", tmp_path / "wide.ckpt").body.out_features == 10
    torch.save({**content, "hyper_parameters": {"latent": Settings()}}, tmp_path / "object.ckpt")
    with pytest.raises(InputError, match="hyper_parameters: latent are objects, which are not unpickled"):
        load_model("mine_of_test:Mine", tmp_path / "object.ckpt")
    assert "code ran" not in capsys.readouterr().out
    # The same bytes read with code allowed do run it.
    torch.load(tmp_path / "wide.ckpt", weights_only=False)
    assert "code ran" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors"])
@pytest.mark.usefixtures("place")
def test_a_pointer_of_git_lfs_is_called_that(name, tmp_path):
    pointer = tmp_path / name
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(InputError, match="pointer of git-lfs, not the file itself; run `git lfs pull`"):
        load_model("mine_of_test:Mine", pointer)


def test_a_folder_is_read_by_the_class_or_by_its_only_file(place, tmp_path):
    (tmp_path / "framework_of_test.py").write_text(FRAMEWORK)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text('{"latent": 3}')
    safetensors.torch.save_file(place, folder / "model.safetensors")
    for spec in ("framework_of_test:Holder", "mine_of_test:Mine"):
        model = load_model(spec, folder)
        assert torch.equal(model.state_dict()["body.bias"], place["body.bias"])
    torch.save(place, folder / "model.pt")
    with pytest.raises(InputError, match=r"expected one file of weights in this folder, got model\.pt, model\.saf"):
        load_model("mine_of_test:Mine", folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"framework_of_test:Holder\.from_pretrained fails: FileNotFoundError"):
        load_model("framework_of_test:Holder", folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="pointer of git-lfs"):
        load_model("framework_of_test:Holder", folder)
