"""What needs a GPU is ready: the benchmark runs on the CPU, and `make cuda` says what is missing."""

import io
import json
import tarfile
import zipfile

import pytest
import torch

from benchmarks import cuda, cuda_report, gpu
from benchmarks.carried import CarriedError, package_folder


# torch.compile itself imports what PyTorch deprecates.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_benchmark_of_gpus_runs_and_refuses_where_there_is_none(data, tmp_path, capsys, monkeypatch):
    words = ["--models", "tiny", "--data", str(data), "--batches", "1", "--rounds", "1"]
    out = tmp_path / "cpu"
    assert cuda.main([*words, "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads((out / cuda.FIGURES).read_text(encoding="utf-8"))
    assert {way for entry in found["rounds"] for way in entry["seconds"]} == {
        "PyTorch eager", "torch.compile", "noise alone, host", "vae-runtime", "vae-runtime, 512 at a time",
        "vae-runtime, host noise", "vae-runtime, to numpy",
    }  # fmt: skip
    row = "| MLP 8-64-128-64 on scikit-learn's digits | fp32 | 1 |"
    assert row in capsys.readouterr().out
    page = (out / cuda.PAGE).read_text(encoding="utf-8")
    assert row in page
    assert "without CuPy: the host draws all noise" in page
    # Another answer is no figure.
    monkeypatch.setitem(cuda.TOLERANCES, "fp32", -1.0)
    assert cuda.main([*words, "--device", "cpu", "--out", str(tmp_path / "wrong")]) == 1
    assert "from float32 PyTorch on the CPU" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
    # Figures of a CPU stay off the page.
    assert cuda.main([*words, "--device", "cpu"]) == 1
    assert "give --out" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cuda.main([*words, "--out", str(tmp_path / "none")]) == 1
        assert "no CUDA GPU" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_the_page_of_gpus_judges_the_fastest_way_on_the_device():
    seconds = {
        "vae-runtime": 2.0,
        "vae-runtime, 512 at a time": 1.0,
        "vae-runtime, to numpy": 0.5,
        "torch.compile": 1.5,
    }
    entry = {"model": "mnist", "precision": "fp32", "batch": 4096, "round": 0, "seconds": seconds}
    found = {"device": "A GPU", "torch": "2", "onnxruntime": "1", "cupy": "14", "date": "today", "rounds": [entry],
             "titles": {"mnist": "conv"}, "skipped": ["conv: too large"]}  # fmt: skip
    text = cuda_report.cuda_section(found)
    assert "A GPU, PyTorch 2, ONNX Runtime 1, CuPy 14 draws noise. today." in text
    judged = (
        "| sample, batch 4096, MNIST conv: × torch.compile | ≥ 1.2 | 1.5 (1.5–1.5) | met | vae-runtime, 512 at a time |"
    )
    assert judged in text
    assert text.count("not measured") == 2
    assert "| conv | fp32 | 4096 | 2,048 | – | 0.75 | 0.50 | – | – | 0.25 | – |" in text
    assert "- Skipped: conv: too large" in text
    seconds["torch.compile"] = 1.1
    assert "**not met**" in cuda_report.cuda_section(found)


# What `make cuda` does before it needs a GPU.


def wheel_in(folder, parts, members=(("onnxruntime/__init__.py", b"FOUND = 1"), ("other/x.py", b""))):
    """A wheel of ONNX Runtime in a folder, in so many parts."""
    folder.mkdir()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members:
            archive.writestr(name, text)
    whole, name = content.getvalue(), "onnxruntime_gpu-1.0-cp312-cp312-linux_x86_64.whl"
    if parts == 1:
        (folder / name).write_bytes(whole)
    else:
        size = -(-len(whole) // parts)
        for number in range(parts):
            (folder / f"{name}.{number:02d}").write_bytes(whole[number * size : (number + 1) * size])
    return folder


@pytest.mark.parametrize("parts", [1, 3, 11])
def test_a_carried_wheel_is_joined_and_unpacked_once(parts, tmp_path):
    place = wheel_in(tmp_path / "carried", parts)
    folder = package_folder(place, tmp_path / "out")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")] == ["onnxruntime/__init__.py"]
    assert (folder / "onnxruntime" / "__init__.py").read_bytes() == b"FOUND = 1"
    before = (folder / "onnxruntime").stat().st_mtime_ns
    assert package_folder(place, tmp_path / "out") == folder
    assert (folder / "onnxruntime").stat().st_mtime_ns == before
    assert list((tmp_path / "out").iterdir()) == [folder]
    # A package that is unpacked already is taken as it is.
    assert package_folder(folder, tmp_path / "elsewhere") == folder


def test_a_carried_tar_file_is_taken_too(tmp_path):
    package = package_folder(wheel_in(tmp_path / "wheel", 1), tmp_path / "out")
    place = tmp_path / "carried"
    place.mkdir()
    with tarfile.open(tmp_path / "whole", "w:xz") as archive:
        archive.add(package / "onnxruntime", "onnxruntime")
    content = (tmp_path / "whole").read_bytes()
    for number, first in enumerate(range(0, len(content), 100)):
        (place / f"onnxruntime-cuda.tar.xz.{number:02d}").write_bytes(content[first : first + 100])
    folder = package_folder(place, tmp_path / "out")
    assert (folder / "onnxruntime" / "__init__.py").read_bytes() == b"FOUND = 1"
    sorted(place.iterdir())[-1].unlink()
    with pytest.raises(CarriedError, match="cannot be unpacked"):
        package_folder(place, tmp_path / "out")


def test_a_carried_wheel_that_is_not_whole_is_refused(tmp_path):
    def refuses(place, match):
        with pytest.raises(CarriedError, match=match):
            package_folder(place, tmp_path / "out")

    place = wheel_in(tmp_path / "a", 4)
    first, *_, last = sorted(place.iterdir())
    last.unlink()
    refuses(place, "in 3 files, got one that cannot be unpacked")
    first.unlink()
    refuses(place, "got none of number 0; carry it too")
    refuses(wheel_in(tmp_path / "b", 1, [("other/x.py", b"")]), "expected the package onnxruntime/ in its file")
    refuses(tmp_path / "c", r"one wheel onnxruntime\*.whl or .tar.xz, whole or in parts .*, got none")
    two = wheel_in(tmp_path / "d", 1)
    (two / "onnxruntime-2.whl").write_bytes(b"")
    refuses(two, r"got onnxruntime-2.whl and onnxruntime_gpu-1.0")
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


def a_gpu(folder, script):
    """A folder with a program nvidia-smi."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return folder


def test_without_a_gpu_nothing_is_run_and_that_is_said(tmp_path, monkeypatch, capsys):
    for number, (script, words) in enumerate(
        [(None, "no nvidia-smi that can be run"), ("exit 0", "nvidia-smi that lists none"),
         ("echo 'no driver' >&2; exit 9", "nvidia-smi that says: no driver")]
    ):  # fmt: skip
        folder = tmp_path / str(number)
        monkeypatch.setenv("PATH", str(folder if script is None else a_gpu(folder, script)))
        assert gpu.main(["--models", "mlp"]) == 0
        assert capsys.readouterr().out == f"cuda: skipped: expected an NVIDIA GPU, got {words}\n"


def test_a_machine_with_a_gpu_that_lacks_the_rest_says_what(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{a_gpu(tmp_path / 'bin', 'echo NVIDIA H200')}:/bin:/usr/bin")
    assert gpu.main(["--onnxruntime", str(tmp_path / "none")]) == 1
    out, err = capsys.readouterr()
    assert out == "cuda: NVIDIA H200\n"
    assert "none: expected the package onnxruntime/, or one wheel" in err
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "no_such_package"))
    assert gpu.main([]) == 1
    assert "got none of no_such_package; install them, or take another" in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu, "NEEDED", ())
        assert gpu.main([]) == 1
        assert "expected PyTorch with CUDA" in capsys.readouterr().err


def test_what_runs_on_a_gpu_is_in_the_repository(root):
    names = [name for name, _ in gpu.commands([])]
    assert names[-2:] == ["the tests", "the benchmark"]
    for place in (*gpu.TESTS, *gpu.MODELS):
        assert (root / place).exists(), place
    assert gpu.commands(["--models", "mlp"])[-1][1][-3:] == ["--build", "--models", "mlp"]
