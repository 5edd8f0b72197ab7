"""Proof of a folder of samples: what is altered is named, and what another kind of machine made is told from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime.cli.main import main
from vae_runtime.errors import BundleError, InputError, VaeError
from vae_runtime.generation.run import finish_samples, generate
from vae_runtime.generation.verification import verify_samples

JOB = {"n": 700, "seed": 7, "batch_size": 64, "shard_size": 128, "workers": 1}


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "samples"
    generate(digits, folder, **JOB)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "s"))


def forge(folder, number, change=lambda rows: rows, machine=None):
    """Change a shard, its hashes and the machine that is said to have made it, as if all had been made so."""
    import hashlib

    name = f"shard-{number:08}"
    rows = np.load(folder / f"{name}.npy")
    np.save(folder / f"{name}.npy", change(rows))
    content = (folder / f"{name}.npy").read_bytes()
    index = json.loads((folder / "index.json").read_text())
    beside = json.loads((folder / f"{name}.json").read_text())
    for entry in (index["shards"][number], beside):
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    beside["machine"].update(machine or {})
    (folder / "index.json").write_text(json.dumps(index))
    (folder / f"{name}.json").write_text(json.dumps(beside))


def moved(by):
    def change(rows):
        rows = rows.copy()
        rows[(5, *[0] * (rows.ndim - 1))] += by
        return rows

    return change


def failed(report):
    return [check.what for check in report.checks if check.passed is False]


def test_a_sound_folder_passes(finished, digits):
    seen = []
    report = verify_samples(finished, digits, progress=lambda done, n: seen.append((done, n)))
    assert report.passed
    assert [check.what for check in report.checks][:2] == ["files", "shard-00000000.npy"]
    assert report.checks[-1].what == "shard-00000005.npy"
    assert len(report.checks) == 4
    assert seen[-1] == (700, 700)
    assert len(verify_samples(finished, digits, shards=99).checks) == 7
    assert len(verify_samples(finished).checks) == 1


def test_every_bad_shard_is_named(folder, digits):
    for number, damage in enumerate(
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
            lambda path: path.unlink(),
        ]
    ):
        damage(folder / f"shard-{number:08}.npy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = verify_samples(folder, digits, shards=99)
    assert failed(report) == [f"shard-{number:08}.npy" for number in range(3)]
    assert [check.what for check in report.checks if check.passed] == [f"shard-{n:08}.npy" for n in (3, 4, 5)]
    assert "sha256 is" in report.checks[0].detail
    assert "cannot be read" in report.checks[2].detail
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_numbers_that_the_bundle_does_not_give_are_found(folder, digits):
    forge(folder, 0)
    assert verify_samples(folder, digits, shards=99).passed
    forge(folder, 0, moved(1e-6))
    report = verify_samples(folder, digits, shards=1)
    assert failed(report) == ["shard-00000000.npy"]
    assert report.checks[1].detail.startswith("x[5, 0")
    assert ", made again from the bundle, the file holds" in report.checks[1].detail
    assert verify_samples(folder).passed


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_another_kind_of_machine_is_held_to_the_tolerance(digits, tmp_path, dtype):
    generate(digits, tmp_path / "s", **JOB | {"n": 100}, dtype=dtype)
    small, large = (1, 3) if dtype == "uint8" else (1e-7, 0.01)
    for by, machine, passed in (
        (small, {}, False),
        (small, {"processor": "z80"}, True),
        (large, {"processor": "z80"}, False),
        (small, {"onnxruntime": "1.0"}, True),
    ):
        folder = Path(shutil.copytree(tmp_path / "s", tmp_path / "t", dirs_exist_ok=True))
        forge(folder, 0, moved(by), machine)
        report = verify_samples(folder, digits)
        assert report.passed == passed, report
        assert "tolerance" in str(report) or not machine


def test_a_folder_of_nan_fails_on_any_machine(folder, digits):
    forge(folder, 0, moved(np.nan), {"processor": "z80"})
    assert failed(verify_samples(folder, digits, shards=1)) == ["shard-00000000.npy"]


@pytest.mark.parametrize("name", ["small", "codes", "levels"])
def test_latents_of_another_kind_of_machine(request, tmp_path, name):
    bundle, folder = request.getfixturevalue(f"{name}_bundle")(), tmp_path / "s"
    x = np.random.default_rng(0).uniform(0, 4, (100, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    labels = {"balanced": "label"} if name == "codes" else {}
    generate(bundle, folder, seed=1, workers=1, encode=tmp_path / "x.npy", batch_size=64, **labels)
    given = {"files": {"x": tmp_path / "x.npy"}}
    assert verify_samples(folder, bundle, **given).passed
    fields = np.load(folder / "shard-00000000.npy").dtype.names
    for field in fields:

        def change(rows, field=field):
            rows = rows.copy()
            rows[field][7] += 1
            return rows

        forge(folder, 0, machine={"processor": "z80"})
        assert verify_samples(folder, bundle, **given).passed
        forge(folder, 0, change)
        report = verify_samples(folder, bundle, **given)
        assert failed(report) == ["shard-00000000.npy"]
        assert report.checks[1].detail.startswith(f"{field}[7, 0]")
        generate(bundle, folder, seed=1, workers=1, encode=tmp_path / "x.npy", batch_size=64, **labels)
        (folder / "shard-00000000.npy").unlink()
        generate(bundle, folder, seed=1, workers=1, encode=tmp_path / "x.npy", batch_size=64, **labels)


def test_what_cannot_be_made_again_is_said(digits, tmp_path, capsys):
    x = vae_runtime.load(digits).sample(100, seed=1)
    np.save(tmp_path / "x.npy", x)
    generate(digits, tmp_path / "s", seed=1, workers=1, reconstruct=tmp_path / "x.npy")
    with pytest.raises(InputError, match="files: the file of x is needed to make shards again; give it"):
        verify_samples(tmp_path / "s", digits)
    for report in (verify_samples(tmp_path / "s", digits, shards=0), verify_samples(tmp_path / "s")):
        assert [check.what for check in report.checks] == ["files"]
        assert report.passed
    command = ["generate", str(digits), "--verify", "--out", str(tmp_path / "s")]
    assert main(command) == 1
    assert main([*command, "--replay", "0"]) == 0
    assert main([*command, "--reconstruct", str(tmp_path / "x.npy")]) == 0
    assert main([*command, "--encode", str(tmp_path / "x.npy")]) == 1
    assert "made by --reconstruct, not by --encode" in capsys.readouterr().err
    assert verify_samples(tmp_path / "s", digits, files={"x": tmp_path / "x.npy"}).checks[-1].passed
    forge(tmp_path / "s", 0, machine={"processor": "z80"})
    report = verify_samples(tmp_path / "s", digits, files={"x": tmp_path / "x.npy"})
    assert report.checks[-1].passed is None
    np.save(tmp_path / "x.npy", x[::-1])
    with pytest.raises(InputError, match=r"expected sha256 .*, which job\.json states for x, got"):
        verify_samples(tmp_path / "s", digits, files={"x": tmp_path / "x.npy"})
    with pytest.raises(InputError, match="files: expected x, got y"):
        verify_samples(tmp_path / "s", digits, files={"y": tmp_path / "x.npy"})
    with pytest.raises(InputError, match="files: expected a mapping"):
        verify_samples(tmp_path / "s", digits, files=[tmp_path / "x.npy"])


def test_folders_that_are_none(folder, digits, root, tmp_path):
    with pytest.raises(VaeError, match="expected a folder of samples"):
        verify_samples(tmp_path, digits)
    with pytest.raises(BundleError, match="digest"):
        verify_samples(folder, root / "models" / "mnist")
    with pytest.raises(InputError, match="shards: "):
        verify_samples(folder, digits, shards=-1)
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**job, "seed": 8}))
    assert failed(verify_samples(folder, digits)) == ["index.json"]
    for change in ({"shard_size": 0}, {"dtype": "S9"}, {"shape": 5}, {"extra": 1}, {"format": "x"}, {"files": []},
                   {"format_version": "9.0"}):  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job | change))
        with pytest.raises(VaeError, match=r"job\.json: expected a job of this version"):
            verify_samples(folder, digits)
    (folder / "job.json").unlink()
    with pytest.raises(VaeError, match=r"got one without job\.json"):
        verify_samples(folder, digits)


def test_the_command(folder, digits, capsys):
    command = ["generate", str(digits), "--verify", "--out", str(folder)]
    assert main([*command, "--replay", "2"]) == 0
    assert capsys.readouterr().out.count("made again: the same numbers") == 2
    (folder / "shard-00000003.npy").write_bytes(b"")
    assert main([*command, "--json"]) == 1
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["passed"] is False
    assert answer["checks"][0]["what"] == "shard-00000003.npy"
    assert "verification failed; remove the named files and run the same `generate` command again" in output.err


@pytest.mark.parametrize(
    "words",
    [
        ["--verify", "-n", "5"],
        ["--verify", "--condition", "label=3"],
        ["--verify", "--finish"],
        ["--finish", "--seed", "1"],
        ["--finish", "--part", "1/2"],
        ["--finish", "--encode", "x.npy"],
        ["--finish", "--condition", "label=x.npy"],
        ["--replay", "3"],
        ["--seed", "1"],
        ["-n", "1"],
        ["--encode", "x.npy", "--reconstruct", "y.npy"],
    ],
)
def test_misuse(folder, digits, capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(digits), "--out", str(folder), *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_the_file_of_a_condition(root, tmp_path, capsys):
    bundle = root / "models" / "digits-conditional"
    np.save(tmp_path / "labels.npy", np.arange(100) % 7)
    generate(bundle, tmp_path / "s", 100, seed=1, workers=1, conditions={"label": tmp_path / "labels.npy"})
    command = ["generate", str(bundle), "--verify", "--out", str(tmp_path / "s")]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "the file of label is needed to make shards again" in message
    assert "make no shards again (--replay 0)" in message
    assert main([*command, "--replay", "0"]) == 0
    assert main([*command, "--condition", f"label={tmp_path / 'labels.npy'}"]) == 0
    assert "made again: the same numbers" in capsys.readouterr().out
    np.save(tmp_path / "labels.npy", np.arange(100) % 6)
    assert main([*command, "--condition", f"label={tmp_path / 'labels.npy'}"]) == 1


def test_finishing_what_parts_have_made(digits, root, tmp_path, folder, capsys):
    """On disks of their own, whose files are brought together."""
    command = ["generate", str(digits), "--finish", "--out", str(tmp_path / "whole")]
    (tmp_path / "whole").mkdir()
    assert main(command) == 1
    assert "got one without job.json" in capsys.readouterr().err
    for k in (1, 2, 3):
        assert generate(digits, tmp_path / str(k), **JOB, part=(k, 3)) is None
        shutil.copytree(tmp_path / str(k), tmp_path / "whole", dirs_exist_ok=True)
        assert main(command) == (1 if k < 3 else 0)
    output = capsys.readouterr()
    assert (
        "4 of 6 shards are missing or cut short: shard-00000001.npy, shard-00000002.npy, shard-00000004.npy"
        in output.err
    )
    assert output.out == f"{tmp_path / 'whole'}: 700 samples\n"
    assert (tmp_path / "whole" / "index.json").read_bytes() == (folder / "index.json").read_bytes()
    with pytest.raises(BundleError, match="digest"):
        finish_samples(folder, root / "models" / "mnist")
    (folder / "index.json").unlink()
    (folder / "shard-00000002.npy").write_bytes(b"cut")
    with pytest.raises(VaeError, match=r"1 of 6 shards is missing or cut short: shard-00000002\.npy"):
        finish_samples(folder)
    assert not (folder / "index.json").exists()
