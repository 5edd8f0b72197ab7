"""The command `vae-runtime`, as a shell sees it: exit status, stdout, stderr and files."""

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import interpolate, traverse
from vae_runtime.cli import main as cli
from vae_runtime.cli.options import with_flags
from vae_runtime.errors import InputError

COMMANDS = (
    *("info", "bom", "verify", "pack", "bench", "studio"),
    *("sample", "decode", "interpolate", "traverse"),
    *("encode", "reconstruct", "score", "calibrate"),
    *("generate", "cache"),
    *("install", "rollback", "status", "history"),
)
posix = pytest.mark.skipif(os.name != "posix", reason="limits and signals as on POSIX")


@pytest.fixture
def folder(tmp_path):
    """The working directory of the commands, where they write."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def process(python, folder):
    """Run `vae-runtime` in `folder`, in a process of its own, after a statement if there is one."""

    def run(*arguments, first="", **options):
        main = "from vae_runtime.__main__ import main\nraise SystemExit(main())"
        call = ["-c", f"{first}\n{main}"] if first else ["-m", "vae_runtime"]
        return python(*call, *arguments, cwd=folder, **options)

    return run


@pytest.fixture
def command(call_main, process, folder):
    """Run `vae-runtime` in `folder`: in this process, or with options in a process of its own."""

    def run(*arguments, **options):
        if options:
            return process(*arguments, **options)
        return call_main(cli.main, *arguments, cwd=folder)

    return run


@pytest.fixture
def succeeds(command):
    def run(*arguments, **options):
        done = command(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture
def refuses(command, folder):
    """Run, and hold to it what is promised of every failure; the error's line."""

    def run(*arguments, status=1, match="", **options):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        done = command(*arguments, **options)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
        assert line.startswith("error: " if status == 1 else "vae-runtime")
        if status == 1:
            assert done.stderr == line + "\n"
        assert re.search(match, line), line
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        return line

    return run


@pytest.fixture
def pictures(folder, vae):
    """Observations, in a file of the working directory."""
    x = vae.sample(5, seed=100)
    np.save(folder / "x.npy", x)
    return x


def is_sheet(folder, name, across, down):
    """Whether a PNG holds so many digits, 8 by 8, with lines between, enlarged by a whole factor."""
    with pytest.importorskip("PIL.Image").open(folder / name) as image:
        assert image.format == "PNG"
        assert image.mode == "L"
        width, height = 9 * across - 1, 9 * down - 1
        factor = image.width // width
        assert image.size == (factor * width, factor * height)
    return True


@pytest.fixture(scope="session")
def pack_of_digits(digits, tmp_path_factory):
    """A packed copy of `digits`, a .zip file; not to be written to."""
    out = tmp_path_factory.mktemp("pack") / "digits.zip"
    vae_runtime.pack(digits, out)
    return out


# What each command does.


def test_info_says_what_the_bundle_is(succeeds, digits, vae):
    printed = succeeds("info", digits)
    assert re.search(r"^name +digits$", printed, re.MULTILINE)
    assert re.search(rf"^digest +{vae.digest}$", printed, re.MULTILINE)
    assert re.search(r"^observation +x float32 \[channel 1, height 8, width 8\], values 0 … 1", printed, re.MULTILINE)
    assert re.search(r"^latent +z float32 \[latent 8\]", printed, re.MULTILINE)
    assert re.search(r"^likelihood +bernoulli$", printed, re.MULTILINE)
    for variant in vae.manifest.variants:
        precision = {"fp16": "float16", "int8": "int8"}.get(variant.name, "float32")
        assert re.search(rf"^{variant.component}/{variant.name} +[\d,]+ +{precision}", printed, re.MULTILINE)
    assert succeeds("info", digits, "--digest", vae.digest) == printed


def test_info_cannot_be_forged_and_prints_in_any_encoding(succeeds, bundle_copy, edit_manifest):
    edit_manifest(
        bundle_copy, lambda document: document["additional_metadata"]["vae"].update(name="数\ndigest  sha256:0\x1b[2J")
    )
    assert "数\\ndigest  sha256:0\\x1b[2J\n" in succeeds("info", bundle_copy)
    assert "\\u6570\\ndigest  sha256:0\\x1b[2J\n" in succeeds("info", bundle_copy, env={"PYTHONIOENCODING": "ascii"})


def test_verify_passes_with_a_table(succeeds, digits, vae):
    printed = succeeds("verify", digits, "--threads", 2, "--digest", vae.digest)
    assert printed.startswith("ok      files ")
    assert "ok      decoder/fp32 x " in printed
    assert re.fullmatch(rf"verified on cpu: {re.escape(str(digits))}.*", printed.splitlines()[-1])
    assert "FAILED" not in printed


def test_sample(succeeds, folder, digits, vae):
    printed = succeeds("sample", digits, "--out", "s.npy", "-n", 10, "--seed", 7, timeout=60)
    assert printed == "s.npy: 10 samples, seed 7, start 0, device cpu\n"
    np.testing.assert_array_equal(np.load(folder / "s.npy"), vae.sample(10, seed=7))
    options = ["--start", 2**64 - 3, "--temperature", 0.5, "--batch-size", 4, "--threads", 2, "--variant", "fp32"]
    succeeds("sample", digits, "--out", "s.npy", "-n", 10, "--seed=-7", *options, "--observe")
    found = np.load(folder / "s.npy")
    assert set(np.unique(found)) == {0.0, 1.0}
    assert np.mean(found != vae.sample(10, seed=-7, start=2**64 - 3, temperature=0.5, observe=True)) < 0.01
    assert sorted(os.listdir(folder)) == ["s.npy"]


def test_sample_draws_a_sheet(succeeds, folder, digits):
    pytest.importorskip("PIL")
    succeeds("sample", digits, "--out", "s.png")
    assert is_sheet(folder, "s.png", 8, 8)
    succeeds("sample", digits, "--out", "s.png", "-n", 7, "--columns", 3)
    assert is_sheet(folder, "s.png", 3, 3)


def test_the_same_seed_gives_the_same_bytes_and_the_printed_seed_too(succeeds, folder, digits):
    printed = succeeds("sample", digits, "--out", "one.npy", "--latents", "z.npy")
    seed = re.search(r"seed (\d+)", printed)[1]
    for name in ["one.npy", "one.png"] if find_spec("PIL") else ["one.npy"]:
        contents = []
        for _ in range(2):
            succeeds("sample", digits, "--out", name, "--seed", seed)
            contents.append((folder / name).read_bytes())
        assert contents[0] == contents[1]
    other = succeeds("sample", digits, "--out", "two.npy")
    assert re.search(r"seed (\d+)", other)[1] != seed


def test_latents_are_the_same_at_once_and_in_batches(succeeds, folder, digits, vae):
    z = vae.prior(100, seed=3)
    arguments = ["sample", digits, "--out", "x.npy", "--seed", 3, "--latents", "z.npy"]
    for batch_size, threads in ((100, 1), (1, 2), (7, 1), (7, 2)):
        succeeds(*arguments, "-n", 100, "--batch-size", batch_size, "--threads", threads)
        assert np.load(folder / "z.npy").tobytes() == z.tobytes()
    succeeds("sample", digits, "--out", "x.npy", "-n", 7, "--seed", 3, "--start", 93, "--latents", "last.npy")
    assert np.load(folder / "last.npy").tobytes() == z[93:].tobytes()


def test_encode(succeeds, folder, digits, vae, pictures):
    q = vae.encode(pictures)
    printed = succeeds("encode", digits, "x.npy", "--out", "q.npz")
    assert printed == f"q.npz: posteriors of 5 observations; mean KL {q.kl().mean():.4g} nats\n"
    with np.load(folder / "q.npz") as archive:
        assert sorted(archive.files) == ["logvar", "mean", "std"]
        for name in archive.files:
            np.testing.assert_array_equal(archive[name], getattr(q, name))
    succeeds("encode", digits, "x.npy", "--out", "q.npz", "--seed", 4)
    with np.load(folder / "q.npz") as archive:
        assert sorted(archive.files) == ["logvar", "mean", "std", "z"]
        np.testing.assert_array_equal(archive["z"], q.sample(seed=4))
    succeeds("encode", digits, "x.npy", "--out", "z.npy", "--batch-size", 5)
    np.testing.assert_array_equal(np.load(folder / "z.npy"), q.mean)
    succeeds("encode", digits, "x.npy", "--out", "z.npy", "--seed", 4, "--start", 9)
    np.testing.assert_array_equal(np.load(folder / "z.npy"), q.sample(seed=4, start=9))


def test_decode(succeeds, folder, digits, vae):
    z = vae.prior(6, seed=1)
    np.save(folder / "z.npy", z)
    assert succeeds("decode", digits, "z.npy", "--out", "x.npy") == "x.npy: 6 observations\n"
    np.testing.assert_array_equal(np.load(folder / "x.npy"), vae.decode(z))
    pytest.importorskip("PIL")
    succeeds("decode", digits, "z.npy", "--out", "x.png", "--columns", 6)
    assert is_sheet(folder, "x.png", 6, 1)


def test_reconstruct(succeeds, folder, digits, vae, pictures):
    printed = succeeds("reconstruct", digits, "x.npy", "--out", "r.npy")
    r = vae.reconstruct(pictures)
    np.testing.assert_array_equal(np.load(folder / "r.npy"), r)
    assert printed == f"r.npy: 5 reconstructions; mean squared error {((r - pictures) ** 2).mean():.4g}\n"
    succeeds("reconstruct", digits, "x.npy", "--out", "r.npy", "--seed", 2, "--start", 3)
    np.testing.assert_array_equal(np.load(folder / "r.npy"), vae.reconstruct(pictures, seed=2, start=3))
    pytest.importorskip("PIL")
    succeeds("reconstruct", digits, "x.npy", "--out", "r.png")
    assert is_sheet(folder, "r.png", 5, 2)
    succeeds("reconstruct", digits, "x.npy", "--out", "r.png", "--columns", 3)
    assert is_sheet(folder, "r.png", 3, 4)


def test_interpolate(succeeds, folder, digits, vae, pictures):
    succeeds("interpolate", digits, "--seeds", 3, 4, "--out", "i.npy", "--steps", 6)
    a, b = vae.prior(1, seed=3)[0], vae.prior(1, seed=4)[0]
    np.testing.assert_array_equal(np.load(folder / "i.npy"), vae.decode(interpolate(a, b, 6)))
    succeeds("interpolate", digits, "--inputs", "x.npy", "--out", "i.npy", "--linear")
    a, b = vae.encode(pictures[:2]).mean
    np.testing.assert_array_equal(np.load(folder / "i.npy"), vae.decode(interpolate(a, b, 10, spherical=False)))
    pytest.importorskip("PIL")
    succeeds("interpolate", digits, "--seeds", -1, 2**64 - 1, "--out", "i.png")
    assert is_sheet(folder, "i.png", 10, 1)


def test_traverse(succeeds, folder, digits, vae, pictures):
    printed = succeeds("traverse", digits, "--seed", 3, "--out", "t.npy", "--steps", 5, "--reach", 2)
    assert printed == "t.npy: 8 dimensions, 5 steps from -2\n"
    values = np.linspace(-2, 2, 5, dtype=np.float32)
    sheet = np.load(folder / "t.npy")
    assert sheet.shape == (8, 5, 1, 8, 8)
    z = vae.prior(1, seed=3)[0]
    np.testing.assert_allclose(sheet[6], vae.decode(traverse(z, 6, values)), atol=2e-6)
    succeeds("traverse", digits, "--inputs", "x.npy", "--out", "t.npy", "--dimensions", "7,0")
    sheet = np.load(folder / "t.npy")
    z = vae.encode(pictures[:1]).mean[0]
    wanted = vae.decode(traverse(z, 7, np.linspace(-3, 3, 9, dtype=np.float32)))
    np.testing.assert_allclose(sheet[0], wanted, atol=2e-6)
    pytest.importorskip("PIL")
    succeeds("traverse", digits, "--seed", 3, "--out", "t.png")
    assert is_sheet(folder, "t.png", 9, 8)


def test_score(succeeds, folder, digits, vae, pictures):
    printed = succeeds("score", digits, "x.npy", "-k", 4, "--seed", 6, "--start", 2, "--out", "s.npz")
    s = vae.score(pictures, k=4, seed=6, start=2)
    assert printed.startswith("x.npy: 5 observations, seed 6, start 2, 4 importance samples\n")
    error = s.elbo.std(ddof=1) / np.sqrt(5)
    assert re.search(rf"^  elbo +{re.escape(f'{s.elbo.mean():.6g}')} ± {error:.2g} +nats$", printed, re.MULTILINE)
    names = ["elbo", "reconstruction", "kl", "log_likelihood", "mse", "mae"]
    with np.load(folder / "s.npz") as archive:
        assert archive.files == ["row", *names, "kl_per_dimension"]
        assert archive["row"].tolist() == [0, 1, 2, 3, 4]
        for name in archive.files[1:]:
            np.testing.assert_allclose(archive[name], getattr(s, name), rtol=1e-5)
    printed = succeeds("score", digits, "x.npy", "--seed", 6, "--start", 2, "--out", "s.csv")
    assert "likelihood" not in printed
    header, *rows = (folder / "s.csv").read_text().splitlines()
    assert header == "row,elbo,reconstruction,kl,mse,mae"
    np.testing.assert_allclose([float(row.split(",")[1]) for row in rows], s.elbo, rtol=1e-5)
    seed = re.search(r"seed (\d+)", succeeds("score", digits, "x.npy"))[1]
    assert succeeds("score", digits, "x.npy", "--seed", seed).startswith(f"x.npy: 5 observations, seed {seed}")


def test_results_replace_files_that_are_there(succeeds, folder, digits, vae):
    (folder / "s.npy").write_bytes(b"old")
    succeeds("sample", digits, "--out", "s.npy", "-n", 1, "--seed", 0)
    np.testing.assert_array_equal(np.load(folder / "s.npy"), vae.sample(1, seed=0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("encode bundle x.npy --out x.npy", "argument --out: expected another file than the one it reads, got x.npy"),
        ("encode bundle x.npy --out link/x.npy", "--out: expected another file than the one it reads"),
        ("encode bundle link/x.npy --out x.npy", "--out: expected another file than the one it reads"),
        ("reconstruct bundle x.npy --out x.npy", "--out: expected another file than the one it reads"),
        ("decode bundle z.npy --out z.npy", "--out: expected another file than the one it reads"),
        ("interpolate bundle --inputs x.npy --out x.npy", "--out: expected another file than the one it reads"),
        ("traverse bundle --inputs x.npy --out x.npy", "--out: expected another file than the one it reads"),
        ("sample bundle --condition c=z.npy --out z.npy", "--out: expected another file than the one it reads"),
        ("sample bundle --out a.npy --latents bundle/z.npy", "argument --latents: expected a place outside the bundle"),
        ("sample bundle --out bundle/a.npy", "argument --out: expected a place outside the bundle, got bundle/a.npy"),
        ("sample bundle --out link/bundle/decoder/a.png", "--out: expected a place outside the bundle"),
        ("score bundle x.npy --out bundle/scores.csv", "--out: expected a place outside the bundle"),
        ("pack bundle --out bundle/small --only decoder", "--out: expected a place outside the bundle"),
        ("pack bundle.zip --out bundle.zip --force", "--out: expected a place outside the bundle"),
        ("generate bundle -n 1 --seed 0 --out bundle/samples", "--out: expected a place outside the bundle"),
    ],
)
def test_nothing_is_written_over_what_is_read(refuses, folder, digits, pictures, arguments, match, pack_of_digits):
    shutil.copytree(digits, folder / "bundle")
    shutil.copy(pack_of_digits, folder / "bundle.zip")
    np.save(folder / "z.npy", np.zeros((2, 8), np.float32))
    (folder / "link").symlink_to(folder)
    refuses(*arguments.split(), status=2, match=match)


def test_generate_writes_nothing_into_the_bundle(bundle_copy):
    before = sorted(bundle_copy.rglob("*"))
    with pytest.raises(InputError, match="expected a place outside the bundle"):
        vae_runtime.generate(bundle_copy, bundle_copy / "samples", 1, seed=0)
    assert sorted(bundle_copy.rglob("*")) == before


def test_an_output_beside_the_input_is_written(succeeds, folder, digits, pictures):
    succeeds("encode", digits, "x.npy", "--out", "x.npz")
    assert (folder / "x.npz").exists()


def test_a_link_to_the_bundle_and_auto_work(command, folder, digits):
    (folder / "link").symlink_to(digits)
    done = command("sample", "link", "--out", "s.npy", "--device", "auto")
    assert done.returncode == 0
    assert done.stderr.startswith("device auto: ")


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        *("info bundle", "bom bundle", "verify bundle", "history none", "cache list"),
        *("sample bundle --seed 1 --out s.npy", "decode bundle z.npy --out s.npy"),
        *("interpolate bundle --seeds 1 2 --out s.npy", "traverse bundle --seed 1 --out s.npy"),
        *("encode bundle x.npy --out q.npz", "reconstruct bundle x.npy --out s.npy", "score bundle x.npy --seed 1"),
        *(
            "info none",
            "sample bundle --out none/s.npy",
            "sample bundle --out s.jpg",
            "decode bundle x.npy --out s.npy",
        ),
    ],
)
def test_a_process_of_its_own_says_the_same(process, command, folder, digits, pictures, arguments):
    (folder / "bundle").symlink_to(digits)
    np.save(folder / "z.npy", np.zeros((2, 8), np.float32))
    here, there = (run(*arguments.split()) for run in (command, process))
    assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr)
    assert bool(here.returncode) == here.stderr.startswith(("error: ", "usage: "))


# Misuse: wrong without opening anything, so that neither bundle nor file need be there.


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["info"], "required: bundle"),
        (["info", "b", "--seed", "1"], "vae-runtime info: error: unrecognized arguments: --seed 1"),
        (["generate", "b", "--out", "s"], "vae-runtime generate: error: .* required: -n, --seed"),
        (
            ["generate", "b", "--out", "s", "--decode", "z.npy", "--observe"],
            "--seed: expected an integer for draws from",
        ),
        (
            ["info", "b", "--digest", "abc"],
            "argument --digest: expected .* 64 hexadecimal digits, got 'abc'",
        ),
        (["sample", "b"], "required: --out"),
        (
            ["sample", "b", "--out", "x.npy/"],
            "argument --out: x.npy/: expected the name of a file, got",
        ),
        (
            ["traverse", "b", "--seed", "1", "--reach", "0", "--out", "x.npy"],
            "--reach: expected a number",
        ),
        (["sample", "b", "--out", "x.npy", "--max-memory", "0"], "argument --max-memory: expected 1048576"),
        (
            ["sample", "b", "--out", "x.jpg"],
            r"argument --out: x\.jpg: expected a file name ending in \.png or \.npy",
        ),
        (["sample", "b", "--out", ".npy"], r"a file name ending in"),
        (["sample", "b", "--out", "x.npz"], r"a file name ending in"),
        (["sample", "b", "--out", "x.npy", "-n", "0"], "argument -n: expected 1 … 281474976710656, got 0"),
        (["sample", "b", "--out", "x.npy", "-n", "-5"], "argument -n: .* got -5"),
        (["sample", "b", "--out", "x.npy", "-n", str(10**18)], "argument -n: .* got 1000000000000000000"),
        (["sample", "b", "--out", "x.npy", "-n", "1.5"], "argument -n: expected an integer, got '1.5'"),
        (["sample", "b", "--out", "x.npy", "--seed", str(2**64)], "argument --seed: .* got 18446744073709551616"),
        (["sample", "b", "--out", "x.npy", "--seed", str(-(2**63) - 1)], "argument --seed: "),
        (["sample", "b", "--out", "x.npy", "--seed", "x"], "argument --seed: expected an integer, got 'x'"),
        (["sample", "b", "--out", "x.npy", "--seed", "9" * 5000], "argument --seed: expected an integer"),
        (["sample", "b", "--out", "x.npy", "--start", "-1"], "argument --start: "),
        (["sample", "b", "--out", "x.npy", "--start", str(2**64)], "argument --start: "),
        (["sample", "b", "--out", "x.npy", "--temperature", "-1"], "argument --temperature: .* got -1"),
        (["sample", "b", "--out", "x.npy", "--temperature", "nan"], "argument --temperature: .* got nan"),
        (["sample", "b", "--out", "x.npy", "--temperature", "1e39"], "argument --temperature: .* got 1e\\+39"),
        (["sample", "b", "--out", "x.npy", "--temperature", "hot"], "argument --temperature: .* got 'hot'"),
        (["sample", "b", "--out", "x.npy", "--threads", "0"], "argument --threads: "),
        (["sample", "b", "--out", "x.npy", "--batch-size", "0"], "argument --batch-size: "),
        (["sample", "b", "--out", "x.npy", "--columns", "0"], "argument --columns: "),
        (["sample", "b", "--out", "x.npy", "--device", "gpu"], "argument --device: expected cpu, cuda, cuda:N"),
        (["sample", "b", "--out", "x.npy", "--latents", "z.txt"], "argument --latents: "),
        (
            ["sample", "b", "--out", "x.npy", "--latents", "./x.npy"],
            "argument --latents: expected a file other than that of --out",
        ),
        (["verify", "b", "--device", "gpu"], "argument --device: "),
        (["encode", "b", "x.txt", "--out", "z.npy"], r"argument x: x\.txt: expected a file name ending in \.npy"),
        (["sample", "b", "--out", "x.npy", "--start", "1"], "argument --start: allowed only with --seed, because"),
        (["encode", "b", "x.npy", "--out", "z.npz", "--start", "1"], "argument --start: allowed only with --seed"),
        (["reconstruct", "b", "x.npy", "--out", "r.npy", "--start", "0"], "argument --start: allowed only with --seed"),
        (["score", "b", "x.npy", "--start", "1"], "argument --start: allowed only with --seed"),
        (["sample", "b", "--out", "x.npy", "--columns", "3"], r"argument --columns: allowed only with --out \*\.png"),
        (
            ["decode", "b", "z.npy", "--out", "x.npy", "--columns", "3"],
            r"argument --columns: allowed only with --out \*\.png",
        ),
        (["reconstruct", "b", "x.npy", "--out", "r.npy", "--columns", "3"], "argument --columns: allowed only with"),
        (["sample", "b", "--out", "x.npy", "--truncation", "0"], "argument --truncation: .* a number from 0.01"),
        (["sample", "b", "--out", "x.npy", "--latent-shape", "4,x"], "argument --latent-shape: .* got 'x'"),
        (["sample", "b", "--out", "x.npy", "--latent-shape", "4,0"], "argument --latent-shape: .* got 0"),
        (["sample", "b", "--out", "x.npy", "--condition", "a"], "argument --condition: expected NAME=VALUE"),
        (["score", "b", "x.npy", "-k", "0"], "argument -k: expected 1 … 1000000, got 0"),
        (["score", "b", "x.npy", "--out", "s.png"], r"expected a file name ending in \.npz or .*\.parquet"),
        (["score", "b", "x.txt"], r"expected a file name ending in \.npy or \.csv or \.parquet"),
        (["score", "b", "x.npy", "--only-anomalies"], "argument --only-anomalies: allowed only with --threshold"),
        (["score", "b", "x.npy", "--only-anomalies", "--threshold", "0.1"], "allowed only with --out or --contribut"),
        (["score", "b", "x.npy", "--threshold", "2"], "threshold: expected a number from 0 to 1"),
        (["traverse", "b", "--out", "t.npy"], "one of the arguments --seed --inputs is required"),
        (["traverse", "b", "--out", "t.npy", "--seed", "1", "--dimensions", "a"], "argument --dimensions: "),
        (["traverse", "b", "--out", "t.npy", "--seed", "1", "--reach", "nan"], "argument --reach: "),
        (["decode", "b", "--out", "x.npy"], "required: z"),
        (["decode", "b", "z.npy", "--out", "x.npy", "--tile", "64x"], "expected \"auto\" or an integer, got '64x'"),
        (["decode", "b", "z.npy", "--out", "x.npy", "--tile", "0"], "--tile: expected 1 … "),
        (["interpolate", "b", "--out", "x.npy"], "one of the arguments --seeds --inputs is required"),
        (["interpolate", "b", "--out", "x.npy", "--seeds", "1"], "argument --seeds: expected 2 arguments"),
        (["interpolate", "b", "--out", "x.npy", "--seeds", "1", "2", "--inputs", "x.npy"], "not allowed with"),
        (["interpolate", "b", "--out", "x.npy", "--seeds", "1", "2", "--steps", "1"], "argument --steps: "),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_misuse(capsys, arguments, match):
    # In this process, to save the time of some dozens; the next test is the partner in its own.
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    (line,) = (line for line in printed.err.splitlines() if "error: " in line)
    assert line.startswith("vae-runtime")
    assert re.search(match, line), line


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("conditions: expected 'y', got nothing; give conditions={'y': …}",
         "--condition: expected 'y', got nothing; give --condition y=…"),
        ("conditions['y']: expected 3 rows", "--condition y: expected 3 rows"),
        ("batch_size: expected 1 … 9, got 0; move `start` on", "--batch-size: expected 1 … 9, got 0; move --start on"),
        ("latent_shape of z: expected [8]", "--latent-shape of z: expected [8]"),
        ("decode: … is posterior='std' or leave the axis out of dynamic=",
         "decode: … is --posterior std or leave the axis out of --dynamic"),
        ("x: leave scale=2 out", "x: leave --scale 2 out"),
        ("z: give posterior=, one of 'std'; seed=, as shown", "z: give --posterior, one of 'std'; --seed, as shown"),
        ("data: raise data.part; train.part: too small", "--data: raise --part; train.part: too small"),
        # Not arguments of the verb: a file, the arguments of a call, other words.
        ("seed.npy: the seed of encode(x, seed=…), at the scale (prior=…)",
         "seed.npy: the seed of encode(x, seed=…), at the scale (prior=…)"),
    ],
)  # fmt: skip
def test_a_message_names_the_flags_that_were_typed(message, written):
    flags = {
        name: "--" + name.replace("_", "-").rpartition(".")[2]
        for name in ("condition", "batch_size", "start", "latent_shape", "posterior", "dynamic", "scale", "seed",
                     "data", "data.part")
    }  # fmt: skip
    assert with_flags(message, flags) == written


def test_messages_of_the_command_name_flags(refuses, small_bundle, digits):
    line = refuses("sample", digits, "--latent-shape", "3,3", "--out", "a.npy")
    assert line.startswith("error: --latent-shape of z: expected [8]")
    line = refuses("sample", digits, "--condition", "a=1", "--out", "a.npy")
    assert line.startswith("error: --condition: expected none, got 'a'")


@pytest.mark.parametrize("out", ["x.npy", "x.png"])
def test_a_decoder_that_gives_nan_is_an_error(refuses, folder, digits, out):
    z = np.zeros((3, 8), np.float32)
    z[1] = 3e38
    np.save(folder / "z.npy", z)
    line = refuses("decode", digits, "z.npy", "--out", out)
    assert line.startswith("error: observations[1]: expected finite values, got NaN or infinity; give latents nearer")


def test_the_usage_of_a_verb_shows_what_it_requires(capsys):
    for arguments in (["generate", "b", "--out", "s", "-n", "1"], ["generate", "b", "-n", "1", "--seed", "1", "--x"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        usage = " ".join(capsys.readouterr().err.split())
        assert usage.startswith("usage: vae-runtime generate [-h] ")
        assert " -n N --seed SEED [" in usage
        assert "] --out OUT bundle " in usage


def test_misuse_ends_with_2(refuses):
    refuses(status=2, match="required: COMMAND")
    of_n = "argument -n: expected 1 … 281474976710656"
    refuses("sample", "b", "--out", "x.npy", "-n", 0, status=2, match=of_n, timeout=60)
    refuses("sample", "b", "--out", "x.npy", "--columns", 1, status=2, match="argument --columns: allowed only with")


# Failures.


def test_a_bundle_that_is_not_there_or_none(refuses, folder):
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    for command_line in (["info"], ["verify"], ["sample", "--out", "x.npy"]):
        name, *rest = command_line
        refuses(name, "none", *rest, match="^error: none: does not exist; give the folder of a bundle")
    refuses("info", "file", match=r"^error: file: not a bundle's \.zip file")
    refuses("info", "empty", match=r"^error: empty: not a bundle: it holds neither manifest\.json nor SHA256SUMS")
    refuses("info", "x" * 5000, match="does not exist")


def test_a_damaged_bundle(refuses, bundle_copy, vae):
    out = ["--out", "x.npy"]
    graph, manifest = bundle_copy / "decoder/fp32/model.onnx", bundle_copy / "manifest.json"
    content = graph.read_bytes()
    refuses("sample", bundle_copy, *out, "--digest", "0" * 64, match="expected the digest sha256:")
    refuses("sample", bundle_copy, *out, "--variant", "fp8", match="no variant 'fp8'; choose one of: fp32")
    graph.write_bytes(content[:-1] + b"?")
    refuses("sample", bundle_copy, *out, match=r"decoder/fp32/model\.onnx: expected the SHA-256 .*, got .*; copy the")
    refuses("verify", bundle_copy, match="verification failed; unless memory ran out, copy or export the")
    graph.unlink()
    refuses("sample", bundle_copy, *out, match=r"decoder/fp32/model\.onnx: missing; copy the bundle again")
    refuses("info", bundle_copy, match=r"decoder/fp32/model\.onnx: ")
    graph.write_bytes(content)
    manifest.write_text("{")
    refuses("info", bundle_copy, match=r"manifest\.json: expected the SHA-256")


def test_verify_tells_what_failed_on_stdout(process, bundle_copy):
    added = bundle_copy / "added"
    added.write_text("")
    done = process("verify", bundle_copy)
    assert done.returncode == 1
    assert f"FAILED  files                {added}: not listed in SHA256SUMS" in done.stdout
    assert "verified on" not in done.stdout
    advice = "unless memory ran out, copy or export the bundle again"
    assert done.stderr == f"error: {bundle_copy}: verification failed; {advice}\n"


@posix
def test_verify_survives_a_file_name_that_is_no_text(command, bundle_copy):
    os.close(os.open(os.fsencode(bundle_copy) + b"/\xff\n", os.O_CREAT))
    done = command("verify", bundle_copy)
    assert done.returncode == 1
    assert "\\udcff" in done.stdout
    assert done.stderr.count("\n") == 1


def test_a_manifest_with_many_problems_is_one_error(command, bundle_copy, edit_manifest):
    def spoil(document):
        document["additional_metadata"]["vae"].update(noise=1, latents=[])

    edit_manifest(bundle_copy, spoil)
    done = command("info", bundle_copy)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 1
    assert first.startswith("error: ")
    assert first.endswith("manifest.json: 2 problems; export the bundle again:")
    assert all(line.startswith("  additional_metadata.vae.") for line in rest)
    assert len(rest) == 2


def test_a_device_that_is_not_there(refuses, digits):
    refuses("sample", digits, "--out", "x.npy", "--device", "MadeUpExecutionProvider", match="this ONNX Runtime .* has")
    refuses("verify", digits, "--device", "cuda:999", match="device cuda:999: ")


def test_too_many_samples_for_the_memory(refuses, digits):
    refuses("sample", digits, "--out", "x.npy", "-n", 2**48, match="n: .* GiB, more than this machine's memory")
    pytest.importorskip("PIL")
    refuses("sample", digits, "--out", "x.png", "-n", 2**48, match="n: expected at most 10000 pictures in a PNG")


def test_wrong_observations(refuses, folder, digits, pictures):
    wrong = {
        "whole": (pictures.astype(np.int64), r"x: expected float32 \[n, 1, 8, 8\], got dtype int64"),
        "flat": (pictures.reshape(5, 64), r"got \[5, 64\]"),
        "none": (pictures[:0], "at least one row"),
        "nan": (
            np.where(pictures == pictures[0, 0, 3, 3], np.nan, pictures).astype(np.float32),
            r"x\[\d, 0, \d, \d\]: .* nan",
        ),
    }
    for name, (array, match) in wrong.items():
        np.save(folder / f"{name}.npy", array)
        refuses("encode", digits, f"{name}.npy", "--out", "z.npz", match=match)
    refuses("reconstruct", digits, "nan.npy", "--out", "r.npy", match=wrong["nan"][1])
    np.save(folder / "one.npy", pictures[:1])
    refuses("interpolate", digits, "--inputs", "one.npy", "--out", "r.npy", match="expected two observations, got")
    refuses("decode", digits, "x.npy", "--out", "r.npy", match=r"z: expected float32 \[n, 8\], got \[5, 1, 8, 8\]")


def header(text):
    content = text.encode()
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no such file"),
        (b"", "expected an .npy file of numbers: the file is empty; write"),
        (b"garbage", "expected an .npy"),
        (b"PK\x03\x04 half a zip", "expected an .npy"),
        (b"\x93NUMPY\x01\x00\xff\xff", "expected an .npy"),
        (header("{'descr': (("), "expected an .npy"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (100, 8)}\n"), "expected an .npy"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000, 8)}\n"),
            "expected an .npy",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 8)}\n"),
            "expected an .npy",
        ),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"\x80\x04N.", "expected an .npy"),
    ],
    ids=["missing", "empty", "garbage", "zip", "half a header", "no header", "cut", "huge", "endless", "pickle"],
)
def test_a_file_that_is_no_array(refuses, folder, digits, content, match):
    if content is not None:
        (folder / "z.npy").write_bytes(content)
    refuses("decode", digits, "z.npy", "--out", "x.npy", match=rf"^error: z\.npy: .*{match}")


def test_an_archive_or_a_folder_for_an_array(refuses, folder, digits, pictures):
    np.savez(folder / "z.npz", z=pictures)
    (folder / "z.npz").rename(folder / "z.npy")
    refuses("decode", digits, "z.npy", "--out", "x.npy", match="expected an .npy file of numbers")
    (folder / "folder.npy").mkdir()
    refuses("decode", digits, "folder.npy", "--out", "x.npy", match="expected an .npy file of numbers")


def test_an_output_that_cannot_be_written(refuses, folder, digits, pictures):
    (folder / "folder.npy").mkdir()
    (folder / "file").write_text("")
    for out in ("none/x.npy", "file/x.npy"):
        refuses("sample", digits, "--out", out, match=f"^error: {out}: cannot write here: ")
    refuses("sample", digits, "--out", "folder.npy", match=r"^error: folder\.npy: ")
    refuses("encode", digits, "x.npy", "--out", "none/q.npz", match="cannot write here")
    if Path("/proc/self").exists():
        refuses("sample", digits, "--out", "/proc/self/x.npy", match="cannot write here")
    if os.name == "posix" and os.geteuid() != 0:
        (folder / "locked").mkdir(mode=0o500)
        refuses("sample", digits, "--out", "locked/x.npy", match="cannot write here: Permission denied")


@posix
def test_a_full_disk_leaves_nothing(refuses, folder, digits, pictures):
    np.save(folder / "many.npy", np.tile(pictures, (40, 1, 1, 1)))
    outs = {
        "x.npy": ["sample", digits, "-n", 400],
        "q.npz": ["encode", digits, "many.npy"],
        "r.npy": ["reconstruct", digits, "many.npy"],
        "d.npy": ["interpolate", digits, "--seeds", 1, 2, "--steps", 100],
    }
    if find_spec("PIL"):
        outs["x.png"] = ["sample", digits, "-n", 400]
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    (folder / "x.npy").write_bytes(b"old")
    for out, arguments in outs.items():
        line = refuses(*arguments, "--out", out, first=full, match="not written: .*; free some space")
        assert "None" not in line


def test_a_png_without_pillow_is_refused_before_any_work(refuses, succeeds, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    match = r"^error: a PNG needs Pillow, which is not installed: pip install 'vae-runtime\[image\]', or write \.npy$"
    # No such bundle, no such input: nothing was opened yet.
    refuses("sample", "none", "--out", "x.png", match=match)
    refuses("decode", "none", "none.npy", "--out", "x.png", match=match)
    refuses("reconstruct", "none", "none.npy", "--out", "x.png", match=match)
    refuses("interpolate", "none", "--seeds", 1, 2, "--out", "x.png", match=match)
    succeeds("sample", digits, "--out", "x.npy")


def test_a_png_of_what_is_no_picture_is_refused_and_npy_works(refuses, succeeds, small_bundle):
    pytest.importorskip("PIL")
    bundle = small_bundle()
    refuses(
        "sample",
        bundle,
        "--out",
        "x.png",
        match=r"observations: expected pictures, .*, got the shape \[3\]; write them as \.npy",
    )
    refuses("interpolate", bundle, "--seeds", 1, 2, "--out", "x.png", match="expected pictures")
    succeeds("sample", bundle, "--out", "x.npy")


# Interruptions and streams.


INTERRUPT = "import os, signal; interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
IN_THE_WORK = (
    INTERRUPT
    + """
from vae_runtime.session import Session
run, calls = Session.run_into, iter(range(10**9))
Session.run_into = lambda *arguments: (next(calls) == 3 and interrupt(), run(*arguments))[1]
"""
)
IN_THE_IMPORTS = (
    INTERRUPT
    + """
import sys
class Interrupts:
    def find_spec(name, path=None, target=None):
        name == "numpy" and interrupt()
sys.meta_path.insert(0, Interrupts)
"""
)
IN_THE_FIRST_IMPORTS = IN_THE_IMPORTS.replace("numpy", "argparse")
IN_THE_WRITING = INTERRUPT + "os.fsync = lambda _: interrupt()"


@posix
@pytest.mark.parametrize(
    "moment",
    [IN_THE_FIRST_IMPORTS, IN_THE_IMPORTS, IN_THE_WORK, IN_THE_WRITING],
    ids=["in the first imports", "in the imports", "in the work", "in the writing"],
)
def test_ctrl_c_ends_with_130_and_no_partial_file(command, folder, digits, moment):
    (folder / "x.npy").write_bytes(b"old")
    done = command("sample", digits, "--out", "x.npy", "-n", 5000, first=moment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert os.listdir(folder) == ["x.npy"]
    assert (folder / "x.npy").read_bytes() == b"old"


def test_a_call_for_very_many_samples_points_to_generate(refuses, command, folder, digits, monkeypatch):
    pytest.importorskip("PIL")
    words = r"^error: -n: expected at most 10000 pictures in a PNG sheet, got 10001; .*`vae-runtime generate`"
    refuses("sample", digits, "-n", 10001, "--out", "x.png", match=words)
    monkeypatch.setattr("vae_runtime.cli.sampling._MANY", 64 * 3)
    assert command("sample", digits, "-n", 3, "--seed", 1, "--out", "x.npy").stderr == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = command("sample", digits, "-n", 3, "--seed", 1, "--out", "x.npy")
    assert done.stderr.startswith("x.npy: 3 samples in one call without progress")
    assert command("sample", digits, "-n", 2, "--seed", 1, "--out", "x.npy").stderr == ""


@posix
def test_sigterm_ends_with_143_as_ctrl_c_does(command, folder, digits):
    (folder / "x.npy").write_bytes(b"old")
    moment = IN_THE_WRITING.replace("SIGINT", "SIGTERM")
    done = command("sample", digits, "--out", "x.npy", first=moment)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")
    assert os.listdir(folder) == ["x.npy"]
    assert (folder / "x.npy").read_bytes() == b"old"


@posix
def test_a_call_leaves_the_handler_of_its_process(command, digits):
    before = signal.getsignal(signal.SIGTERM)
    assert command("info", digits).returncode == 0
    assert signal.getsignal(signal.SIGTERM) == before
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert command("info", digits).returncode == 0
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def without_reader(folder, *arguments, both=False, unbuffered=False):
    """Run `vae-runtime` with a standard output, or also a standard error, whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    streams = {"stdout": writer, "stderr": writer if both else subprocess.PIPE}
    try:
        return subprocess.run(command, **streams, env=environment, cwd=folder, text=True, check=False)
    finally:
        os.close(writer)


@posix
@pytest.mark.parametrize(
    "arguments", [["--version"], ["info", "BUNDLE"], ["sample", "BUNDLE", "--seed", "1", "-n", "2", "--out", "x.npy"]]
)
def test_a_reader_that_has_ended_ends_the_command_quietly(folder, digits, arguments):
    done = without_reader(folder, *[digits if word == "BUNDLE" else word for word in arguments])
    assert (done.returncode, done.stderr) == (141, "")
    if "x.npy" in arguments:
        assert len(np.load(folder / "x.npy")) == 2


@posix
def test_a_reader_of_both_streams_may_end(folder, digits):
    assert without_reader(folder, "info", "nowhere", both=True).returncode == 141


@posix
def test_a_reader_of_streams_without_a_buffer_may_end(folder, digits):
    done = without_reader(folder, "info", digits, unbuffered=True)
    assert (done.returncode, done.stderr) == (141, "")
    assert without_reader(folder, "info", "nowhere", both=True, unbuffered=True).returncode == 141


@posix
def test_a_failure_without_a_reader_is_a_failure(folder, digits):
    done = without_reader(folder, "info", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere: ")


@posix
def test_a_stdout_that_is_closed_is_refused_at_once(folder, digits):
    command = f'exec "{sys.executable}" -W error -m vae_runtime sample "{digits}" --out x.npy >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False, cwd=folder)
    line = "error: standard output: expected an open stream, got a closed one; redirect it to /dev/null\n"
    assert (done.returncode, done.stderr) == (1, line)
    assert os.listdir(folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_stdout_that_is_full_is_an_error(digits):
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", "info", digits]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "error: standard output: not written: No space left on device; free some space or write it elsewhere\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_one_is_singular_and_no_name_commands_the_terminal(folder, digits, capsys):
    out = folder / "a\x1b[31m.npy"
    assert cli.main(["sample", str(digits), "-n", "1", "--seed", "1", "--out", str(out)]) == 0
    assert out.is_file()
    assert capsys.readouterr().out == f"{folder}/a\\x1b[31m.npy: 1 sample, seed 1, start 0, device cpu\n"
    assert cli.main(["sample", str(digits), "-n", "2", "--seed", "1", "--out", str(out)]) == 0
    assert ".npy: 2 samples, seed 1" in capsys.readouterr().out
    command = ["generate", str(digits), "-n", "1", "--seed", "1", "--workers", "1", "--out", str(folder / "b\x1b[31m")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{folder}/b\\x1b[31m: 1 sample\n"
    assert cli.main(["verify", str(digits)]) == 0
    assert re.search(r"\nverified on cpu: .*", capsys.readouterr().out)


@posix
def test_no_pipe_is_replaced(folder, digits, capsys):
    os.mkfifo(folder / "pipe.npy")
    assert cli.main(["sample", str(digits), "-n", "1", "--out", str(folder / "pipe.npy")]) == 1
    assert "pipe.npy: expected a plain file to replace, got a pipe or a device; choose" in capsys.readouterr().err


# What is said of the commands.


def test_version_and_help(succeeds):
    assert succeeds("--version") == f"vae-runtime {vae_runtime.__version__}\n"
    printed = succeeds("--help")
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", printed, re.MULTILINE)


def test_help_and_version_need_no_numpy(python):
    code = (
        "import sys; sys.modules['numpy'] = None; from vae_runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["--help"], ["--version"], ["generate", "--help"]):
        done = python("-c", code, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout.startswith(("usage: vae-runtime", "vae-runtime 0."))
    assert python("-c", code, "info", "none").returncode == 1


def subparsers():
    (action,) = (action for action in cli.build_parser()._actions if action.choices)
    return action.choices


def test_the_commands_are_those_tested_here():
    assert tuple(subparsers()) == COMMANDS


def undocumented(text):
    """Commands, and options of commands, that a documentation does not mention where it should."""
    sections = dict(re.findall(r"^### vae-runtime (\w+)$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    missing = [name for name in subparsers() if name not in sections]
    for name, parser in subparsers().items():
        for action in parser._actions:
            words = action.option_strings or [action.dest]
            missing += [
                f"{name} {w}" for w in words if not re.search(rf"(?<![\w-]){w}(?![\w-])", sections.get(name, ""))
            ]
    return missing


def test_every_command_and_option_is_documented(root):
    text = (root / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert undocumented(text) == []
    assert undocumented(text.replace("--temperature", "")) == ["sample --temperature", "generate --temperature"]
    assert "interpolate --steps" in undocumented(text.replace("### vae-runtime interpolate", ""))


def test_the_documentation_mentions_no_option_that_is_not_there(root):
    text = (root / "docs" / "command-line.md").read_text(encoding="utf-8")
    parsers = subparsers()
    for name, section in re.findall(r"^### vae-runtime (\w+)$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL):
        options = {word for action in parsers[name]._actions for word in action.option_strings}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section)) <= options
