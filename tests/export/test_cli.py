import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vae_export
from vae_export.cli import build_parser, main
from vae_runtime import verify

# Good paths. A warning would be an error.


@pytest.fixture(scope="module", params=["here", pytest.param("in a process of its own", marks=pytest.mark.long)])
def call(request, command):
    """Run the command `vae-export`."""

    def here(*arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    return here if request.param == "here" else command


@pytest.fixture(scope="module")
def trained(call, tmp_path_factory):
    run = tmp_path_factory.mktemp("cli") / "run"
    options = ["--epochs", 1, "--threads", 1, "--latent", 3, "--hidden", 16, 8]
    done = call("train", "--out", run, "--recipe", "digits", *options)
    done.run = run
    return done


def test_train_makes_a_run(trained):
    assert trained.returncode == 0, trained.stderr
    first, second = trained.stdout.splitlines()
    assert first == f"{trained.run}: finished"
    number = r"-?\d+\.\d\d"
    assert re.fullmatch(
        rf"best epoch 1 of 1: validation surrogate ELBO {number} nats \(reconstruction {number}, KL {number}\)", second
    )
    assert "error" not in trained.stderr
    assert set(os.listdir(trained.run)) == {
        "config.json", "model.safetensors", "metrics.jsonl", "curve.png", "samples.png", "report.html", "samples",
    }  # fmt: skip


def test_options_change_what_they_name_and_leave_the_rest_of_the_recipe(trained):
    config = json.loads((trained.run / "config.json").read_text())
    assert (config["model"]["latent"], config["model"]["hidden"], config["train"]["epochs"]) == (3, [16, 8], 1)
    assert (config["train"]["batch_size"], config["train"]["patience"]) == (64, 40)


def test_train_again_finds_it_finished(trained, capsys):
    before = (trained.run / "model.safetensors").read_bytes()
    options = ["--recipe", "digits", "--epochs", "1", "--threads", "1", "--latent", "3", "--hidden", "16", "8"]
    assert main(["train", "--out", str(trained.run), *options]) == 0
    assert capsys.readouterr().out.startswith(f"{trained.run}: already finished\nbest epoch 1 of 1")
    assert (trained.run / "model.safetensors").read_bytes() == before


def test_evaluate_prints_the_figures_and_keeps_them(call, trained):
    done = call("evaluate", trained.run, "--importance-samples", 4, "--limit", 10)
    assert done.returncode == 0, done.stderr
    kept = json.loads((trained.run / "evaluation.json").read_text())
    shown = dict(
        line.split(maxsplit=1) for line in done.stdout.replace("importance s", "importance_s").splitlines()[:3]
    )
    assert shown
    assert kept["importance_samples"] == 4
    assert kept["observations"] == 10
    for words in (f"{kept['elbo']:.6g}", f"{kept['nll']:.6g}", "10", "4"):
        assert words in done.stdout
    assert "surrogate" in done.stdout


def test_export_writes_a_bundle_and_shows_its_parity(call, command, fresh_export, tiny_run, tmp_path, prepared):
    if call is command:
        done = fresh_export("one", hash_seed=1)
    else:
        done = call("export", tiny_run, "--out", tmp_path / "bundle", "--formats", "onnx,torchscript,pt2")
        done.bundle = tmp_path / "bundle"
    assert done.returncode == 0, done.stderr
    assert verify(done.bundle).passed
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("ok ") and "max abs" in line]) == 15
    assert len([line for line in lines if "KiB" in line]) == 6
    assert re.fullmatch(rf"{done.bundle}: sha256:[0-9a-f]{{64}}", lines[-1])
    assert done.stderr == ""


@pytest.mark.long
def test_parity_of_a_bundle_with_its_run(command, tiny_run, tiny_bundle):
    done = command("parity", tiny_run, tiny_bundle, "--trust")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tiny_bundle}: equal to {tiny_run}"
    assert done.stdout.count("max abs") == 15
    assert "skipped" not in done.stdout
    assert done.stderr == ""


WITHOUT_PYTORCH = """
import contextlib, io, json, os, sys
sys.modules["torch"] = None
from vae_export.cli import main
ends = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code or 0
    ends.append([status, out.getvalue(), err.getvalue(), os.listdir()])
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def without_pytorch(python, tmp_path_factory):
    """Run lists of arguments, one after the other in an empty folder, in one process that cannot import PyTorch.

    Return for each the exit status, both outputs, and the names of the files that are in the folder then.
    """

    def run(lines):
        done = python("-c", WITHOUT_PYTORCH, json.dumps(lines), cwd=tmp_path_factory.mktemp("empty"))
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


def test_help_and_version_need_no_pytorch(without_pytorch):
    lines = [["--help"], ["--version"], *([name, "--help"] for name in commands())]
    for arguments, (status, out, err, _) in zip(lines, without_pytorch(lines), strict=True):
        assert (status, err) == (0, ""), arguments
        assert out.startswith(("usage: vae-export", "vae-export 0."))


def test_without_pytorch_there_is_none(without_pytorch):
    with pytest.raises(AssertionError):
        without_pytorch([["train", "--out", "run", "--epochs", "1"]])


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("module", ["argparse", "vae_export.training.config", "vae_export.understand.declaration"])
def test_ctrl_c_in_the_imports_ends_with_130(python, module):
    code = f"""import os, signal, sys
class Interrupts:
    def find_spec(name, path=None, target=None):
        name == {module!r} and os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts)
from vae_export.__main__ import main
sys.exit(main())"""
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_both_commands_are_entered_where_ctrl_c_is_caught(root):
    for path, name in (("pyproject.toml", "vae_export"), ("runtime/pyproject.toml", "vae_runtime")):
        assert f'{name.replace("_", "-")} = "{name}.__main__:main"' in (root / path).read_text(encoding="utf-8")


def test_the_package_runs_as_the_command(python):
    done = python("-m", "vae_export", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vae-export {vae_export.__version__}\n", "")


@pytest.mark.long
def test_an_interrupted_training_says_so_and_goes_on_later(tmp_path):
    arguments = [Path(sys.executable).with_name("vae-export"), "train", "--out", tmp_path / "run", "--epochs", "100000"]
    with subprocess.Popen([*arguments, "--threads", "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        waited = 0
        while not (tmp_path / "run" / "state.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
            waited += 1
            assert waited < 4000
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == b"interrupted"
    assert b"Traceback" not in stderr
    assert (tmp_path / "run" / "state.safetensors").exists()


# Misuse: found out before anything is opened, in a process that cannot import PyTorch.

MISUSE = [
    ("", "the following arguments are required: COMMAND"),
    ("fly", "invalid choice: 'fly'"),
    ("train", "the following arguments are required: --out"),
    ("train --out run --latent 0", "--latent: expected an integer from 1 to 65536, got 0"),
    ("train --out run --latent four", "argument --latent: invalid int value: 'four'"),
    ("train --out run --hidden 8 -8", "--hidden: expected a list of at most 64 integers from 1 to 65536, got [8, -8]"),
    ("train --out run --likelihood cauchy", "--likelihood: expected one of bernoulli, gaussian, laplace, poisson"),
    ("train --out run --likelihood gaussian --scale 0", "--scale: expected a number above 0, got 0.0"),
    ("train --out run --scale nan", "--scale: expected a number above 0, got nan"),
    ("train --out run --learn-scale", "--learn-scale: a bernoulli likelihood has no scale; leave it out"),
    ("train --out run --architecture conv --observation-shape 9", "--observation-shape: conv takes [C, L]"),
    ("train --out run --epochs 0", "--epochs: expected an integer from 1 to 16777216, got 0"),
    ("train --out run --learning-rate inf", "--learning-rate: expected a number above 0, got inf"),
    ("train --out run --binarise often", "--binarise: expected one of none, stochastic, threshold, got 'often'"),
    ("train --out run --seed 9223372036854775808", "--seed: "),
    ("train --out run --test-fraction 1", "--test-fraction: expected a number of at least 0 and at most 0.9"),
    ("train --out run --latent 99999999999999", "--latent: expected an integer from 1 to 65536"),
    (
        "train --out run --batch-size 99999999999999999999",
        "--batch-size: expected an integer from 1 to 16777216",
    ),
    ("train --out run --threads 100000", "--threads: expected an integer from 0 to 1024, got 100000"),
    ("train --out run --data caf\udce9.npy", "--data: expected a name in UTF-8, got 'caf\\udce9.npy'"),
    ("train --out run --recipe cats", "argument --recipe: invalid choice: 'cats'"),
    ("train --out run --wings 2", "unrecognized arguments: --wings 2"),
    ("train --out run --latent 0 --epochs 0", "--latent: expected an integer from 1 to 65536, got 0"),
    ("evaluate", "the following arguments are required: run"),
    ("evaluate run --importance-samples 0", "--importance-samples: expected an integer of at least 1, got 0"),
    ("evaluate run --limit 0", "--limit: expected an integer of at least 1, got 0"),
    ("export run", "the following arguments are required: --out"),
    ("parity run", "the following arguments are required: bundle"),
]


@pytest.fixture(scope="module")
def misused(without_pytorch):
    lines = [line for line, _ in MISUSE]
    return dict(zip(lines, without_pytorch([line.split(" ") if line else [] for line in lines]), strict=True))


@pytest.mark.parametrize(("line", "words"), MISUSE)
def test_misuse_is_one_error_line_and_status_2(misused, line, words):
    status, out, err, files = misused[line]
    assert status == 2, err
    assert out == ""
    *usage, error = err.splitlines()
    assert re.match(r"vae-export( \w+)?: error: ", error)
    assert words in error
    assert usage[0].startswith("usage: vae-export")
    assert not [other for other in usage if "error" in other or "Traceback" in other]
    assert not files


def test_misuse_ends_a_process_with_2(command, tmp_path):
    done = command("train", "--out", "run", "--latent", "four", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: argument --latent: invalid int value: 'four'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("formats", "got"), [("onnx,tflite", "'tflite'"), ("", "''"), ("onnx torchscript", "'onnx ")])
def test_an_unknown_format_is_misuse(tmp_path, capsys, formats, got):
    with pytest.raises(SystemExit) as caught:
        main(["export", "run", "--out", str(tmp_path / "bundle"), "--formats", formats])
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --formats: expected one of onnx, torchscript, pt2, got {got}" in error
    assert not list(tmp_path.iterdir())


# Failures: everything else that can be wrong.


@pytest.fixture
def failing(capfd, tmp_path, monkeypatch):
    """Run the command line in an empty folder; gives its error once it failed as it should, and nothing was written."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, leaves=()):
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert status == 1
        assert "Traceback" not in out + err
        errors = [line for line in err.splitlines() if "error" in line]
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert sorted(os.listdir(folder)) == sorted(leaves)
        return errors[0].removeprefix("error: ")

    return run


def make_npy(path, content):
    np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --out run --data nowhere", "nowhere: no such file or folder; give `digits`"),
        ("export run --out bundle", "run: no such folder; give the folder of a run"),
        ("export run --out bundle --force", "run: no such folder; give the folder of a run"),
        ("evaluate run", "run: no such folder; give the folder of a run"),
        ("parity run bundle", "run: no such folder; give the folder of a run"),
        ("train --out /proc/nowhere/run --epochs 1", "/proc/nowhere/run: "),
        ("train --out run --observation-shape 1 4 16 --epochs 1", "observations of shape [1, 4, 16]"),
        ("train --out run --validation-fraction 0 --epochs 1", "expected at least one observation for validation"),
    ],
)
def test_a_failure_is_one_error_line_and_status_1(failing, arguments, words):
    assert words in failing(*arguments.split())


@pytest.mark.long
def test_such_a_failure_in_a_process_of_its_own(command, tmp_path):
    done = command("export", "run", "--out", "bundle", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: run: no such folder; give the folder of a run")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_what_no_memory_can_hold_is_an_error(command, tmp_path):
    sizes = ("--importance-samples", 16777216, "--batch-size", 5000)
    done = command("train", "--out", "run", "--epochs", 1, *sizes, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (error,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert re.search(r"^error: out of memory: PyTorch asked for [\d,]+\.\d GiB at once; compute fewer", error)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_bad_data_are_named(failing, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "expected images, IDX files or Parquet files, got none of them" in failing(
        "train", "--out", "run", "--data", tmp_path / "empty"
    )
    (tmp_path / "torn.npy").write_bytes(make_npy(tmp_path / "whole.npy", np.ones((9, 4))).read_bytes()[:-7])
    words = failing("train", "--out", "run", "--data", tmp_path / "torn.npy")
    assert "torn.npy: expected an .npy file of numbers: " in words
    make_npy(tmp_path / "high.npy", np.arange(7.0, 607.0).reshape(150, 4))
    words = failing("train", "--out", "run", "--data", tmp_path / "high.npy")
    assert "expected values in [0, 1] for a bernoulli likelihood, got " in words


def test_a_run_of_another_configuration_is_left_alone(failing, trained):
    before = {path.name: path.read_bytes() for path in trained.run.rglob("*.*")}
    words = failing("train", "--out", trained.run, "--latent", "9")
    assert "holds another run: " in words
    assert "--latent is 3, asked for 9" in words
    assert {path.name: path.read_bytes() for path in trained.run.rglob("*.*")} == before


def test_a_run_folder_that_is_a_file(failing, tmp_path):
    (tmp_path / "file").write_text("thesis")
    assert f"{tmp_path / 'file'}: cannot make this folder: " in failing("train", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "thesis"


def test_export_keeps_what_is_there(failing, tiny_run, bundle_copy):
    words = failing("export", tiny_run, "--out", bundle_copy)
    assert words == f"{bundle_copy}: already exists; choose another place, or replace it with --force"
    shutil.rmtree(bundle_copy)
    bundle_copy.mkdir()
    (bundle_copy / "thesis.tex").write_text("years of work")
    words = failing("export", tiny_run, "--out", bundle_copy, "--force")
    assert words.startswith(f"{bundle_copy}: is not a sound bundle, and --force replaces only bundles: ")
    assert os.listdir(bundle_copy) == ["thesis.tex"]


def test_parity_with_what_is_no_bundle(failing, tiny_run, bundle_copy, root, tmp_path):
    assert "nowhere: does not exist" in failing("parity", tiny_run, tmp_path / "nowhere")
    assert "not a bundle: it holds neither manifest.json nor SHA256SUMS" in failing("parity", tiny_run, tiny_run)
    assert "latents: expected [(4,)] from" in failing("parity", tiny_run, root / "models" / "digits")
    (bundle_copy / "decoder/pt2/model.pt2").unlink()
    words = failing("parity", tiny_run, bundle_copy, "--trust")
    assert "decoder/pt2/model.pt2: missing; copy the bundle again" in words


def test_a_name_that_is_no_text_is_misuse(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for option in ("--name", "--license"):
        for text in ("caf\udce9", "a\nb", "\x1b[2J"):
            with pytest.raises(SystemExit, match="2"):
                main(["export", str(tiny_run), "--out", "bundle", option, text])
            error = capsys.readouterr().err.splitlines()[-1]
            assert error == f"vae-export export: error: {option}: expected printable text, got {text!r}"
    assert not list(tmp_path.iterdir())


# The documentation.


def commands():
    """Every command of `vae-export` with its long options."""
    (subparsers,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: sorted({o for action in sub._actions for o in action.option_strings if o.startswith("--")})
        for name, sub in subparsers.choices.items()
    }


def sections(text):
    """The options that each section `### vae-export COMMAND` speaks of."""
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    found = {}
    for part in parts:
        title = re.match(r"vae-export (\w+)\n", part)
        if title:
            found[title[1]] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", part))
    return found


def undocumented(text):
    there = sections(text)
    return [(name, o) for name, options in commands().items() for o in options if o not in there.get(name, ())]


@pytest.fixture(scope="module")
def documentation(root):
    return (root / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_documented(documentation):
    assert {"train", "evaluate", "export", "parity", "demo"} <= set(commands())
    assert undocumented(documentation) == []


def test_what_is_documented_exists(documentation):
    for name, options in sections(documentation).items():
        assert options <= set(commands()[name]), name


def test_a_missing_option_would_be_noticed(documentation):
    assert undocumented(documentation.replace("--importance-start", "--something")) == [("train", "--importance-start")]
    assert ("parity", "--data") in undocumented(documentation.replace("### vae-export parity", "### vae-export fly"))
