"""Reconstructions and latents of a file of observations: the same bits as the VAE gives, checked row by row."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime.cli.main import main
from vae_runtime.errors import InputError, VaeError
from vae_runtime.generation import rows as job_rows
from vae_runtime.generation import sources
from vae_runtime.generation.run import generate

SIZES = {"batch_size": 64, "shard_size": 128, "workers": 1}


@pytest.fixture(scope="module")
def x(digits, tmp_path_factory):
    """A file of 300 observations, and they."""
    path = tmp_path_factory.mktemp("data") / "x.npy"
    observations = vae_runtime.load(digits).sample(300, seed=1)
    np.save(path, observations)
    return path, observations


def padded(x, size=64):
    """Whole batches, as a job works on them."""
    return np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npy")}


@pytest.mark.parametrize("observe", [False, True])
def test_reconstructions(digits, tmp_path, x, observe):
    path, observations = x
    vae = vae_runtime.load(digits)
    samples = generate(digits, tmp_path / "s", seed=7, reconstruct=path, observe=observe, **SIZES)
    z = vae.encode(padded(observations), batch_size=64).mode()
    wanted = vae.decode(z, seed=7, observe=observe, batch_size=64)[:300]
    assert samples.shape == observations.shape
    assert np.array_equal(samples[:], wanted)
    if observe:
        assert set(np.unique(samples[:])) == {0, 1}
        assert np.array_equal(vae.decode(z, seed=7, observe=True, batch_size=9)[:300], wanted)
    else:
        assert np.array_equal(wanted, vae.reconstruct(padded(observations), batch_size=64)[:300])


def test_observing_without_a_seed_draws_afresh(digits, x):
    vae = vae_runtime.load(digits)
    z = vae.encode(x[1]).mode()
    first, second = (vae.decode(z, observe=True) for _ in range(2))
    assert set(np.unique(first)) == {0, 1}
    assert not np.array_equal(first, second)


def test_latents_are_those_of_the_posterior(digits, tmp_path, x):
    path, observations = x
    vae = vae_runtime.load(digits)
    samples = generate(digits, tmp_path / "s", seed=7, encode=path, **SIZES)
    q = vae.encode(padded(observations), batch_size=64)
    assert samples.dtype.names == ("mu", "std", "z")
    for field, wanted in (("mu", q.mean), ("std", q.std), ("z", q.sample(seed=7))):
        assert np.array_equal(samples[:][field], wanted[:300])
    assert np.array_equal(samples[200]["z"], q.sample(seed=7)[200])


def test_latents_of_a_deterministic_encoder(weighted_bundle, external_data, tmp_path):
    rows = np.random.default_rng(0).uniform(0, 4, (300, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    samples = generate(weighted_bundle(), tmp_path / "w", seed=7, encode=tmp_path / "x.npy", **SIZES)
    assert samples.dtype == [("mu", np.float32, (3,))]
    assert np.array_equal(samples[:]["mu"], rows)


def test_codes_and_latents_of_several_levels(codes_bundle, levels_bundle, tmp_path):
    rows = np.random.default_rng(0).uniform(0, 4, (300, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    bundle = codes_bundle()
    samples = generate(bundle, tmp_path / "c", seed=7, encode=tmp_path / "x.npy", balanced="label", **SIZES)
    assert samples.dtype == [("codes", np.int64, (3,))]
    assert np.array_equal(samples[:]["codes"], np.floor(rows) + np.arange(300)[:, None] % 3)
    bundle = levels_bundle()
    samples = generate(bundle, tmp_path / "l", seed=7, encode=tmp_path / "x.npy", **SIZES)
    assert samples.dtype.names == tuple(f"z_{level}.{field}" for level in (1, 2) for field in ("mu", "std", "z"))
    q = vae_runtime.load(bundle).encode(rows, seed=7)
    drawn = q.sample(seed=7)
    for level in ("z_1", "z_2"):
        assert np.array_equal(samples[:][f"{level}.mu"], q[level].mean)
        assert np.array_equal(samples[:][f"{level}.z"], drawn[level])
    wanted = vae_runtime.load(bundle).reconstruct(rows)
    assert np.array_equal(generate(bundle, tmp_path / "r", seed=7, reconstruct=tmp_path / "x.npy", **SIZES)[:], wanted)


def test_rows_of_float64_are_those_of_float32(digits, tmp_path, x):
    rows = x[1][:20]
    np.save(tmp_path / "wide.npy", rows.astype(np.float64))
    samples = generate(digits, tmp_path / "s", seed=7, encode=tmp_path / "wide.npy", **SIZES)
    assert np.array_equal(samples[:]["mu"], vae_runtime.load(digits).encode(rows).mean)


def test_who_makes_them_changes_nothing(digits, tmp_path, x):
    whole = generate(digits, tmp_path / "s", seed=7, encode=x[0], **SIZES)
    generate(digits, tmp_path / "two", seed=7, encode=x[0], **SIZES | {"workers": 2})
    for k in (2, 1):
        generate(digits, tmp_path / "parts", seed=7, encode=x[0], part=(k, 2), **SIZES)
    assert content(tmp_path / "two") == content(tmp_path / "parts") == content(tmp_path / "s")
    generate(digits, tmp_path / "more", 200, seed=7, encode=x[0], **SIZES)
    assert np.array_equal(generate(digits, tmp_path / "more", seed=7, encode=x[0], **SIZES)[:], whole[:])
    assert content(tmp_path / "more") == content(tmp_path / "s")


def test_the_job_is_that_of_the_content_not_of_the_place(digits, tmp_path, x, monkeypatch):
    generate(digits, tmp_path / "s", 200, seed=7, encode=x[0], **SIZES)
    assert str(x[0].parent) not in (tmp_path / "s" / "job.json").read_text()
    hashed = []
    sha256 = sources._sha256
    monkeypatch.setattr(sources, "_sha256", lambda path: hashed.append(path) or sha256(path))
    generate(digits, tmp_path / "s", 200, seed=7, encode=x[0], **SIZES)
    assert not hashed
    moved = Path(shutil.copy(x[0], tmp_path / "moved.npy"))
    assert len(generate(digits, tmp_path / "s", 300, seed=7, encode=moved, **SIZES)) == 300
    assert hashed == [moved]
    altered = x[1].copy()
    altered[299] = 0
    np.save(moved, altered)
    with pytest.raises(InputError, match=r"observations: .*sha256.* in the folder, .* now"):
        generate(digits, tmp_path / "s", 300, seed=7, encode=moved, **SIZES)
    with pytest.raises(InputError, match=r"verb: 'encode' in the folder, 'reconstruct' now"):
        generate(digits, tmp_path / "s", 300, seed=7, reconstruct=x[0], **SIZES)


def test_a_file_that_is_altered_during_the_call_ends_it(digits, tmp_path, x):
    path = Path(shutil.copy(x[0], tmp_path / "x.npy"))

    def alter(done, n):
        np.save(path, x[1] * 0.5)
        os.utime(path, ns=(1, 1))

    with pytest.raises(VaeError, match=r"x\.npy: removed or altered since it was hashed"):
        generate(digits, tmp_path / "s", seed=7, encode=path, progress=alter, **SIZES)
    assert list(content(tmp_path / "s")) == ["shard-00000000.npy"]
    path.unlink()
    with pytest.raises(InputError, match=r"x\.npy: no such file; give an \.npy file of rows$"):
        generate(digits, tmp_path / "s", seed=7, encode=path, **SIZES)


def test_a_file_that_is_altered_under_a_shard_spoils_none(digits, tmp_path, x, monkeypatch):
    """What is written into the file in place shows through the mapping at once."""
    path = Path(shutil.copy(x[0], tmp_path / "x.npy"))
    padded = job_rows._padded

    def alter(rows, count):
        found = padded(rows, count)
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"0000")
        return found

    monkeypatch.setattr(job_rows, "_padded", alter)
    with pytest.raises(VaeError, match=r"x\.npy: removed or altered since it was hashed"):
        generate(digits, tmp_path / "s", seed=7, encode=path, **SIZES)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_row_is_named_with_its_file(digits, tmp_path, x, workers, capsys):
    observations = x[1].copy()
    observations[200, 0, 3, 4] = 7
    np.save(tmp_path / "x.npy", observations)
    command = ["generate", str(digits), "--encode", str(tmp_path / "x.npy"), "--seed", "7", "--batch-size", "64",
               "--shard-size", "128", "--workers", str(workers), "--out", str(tmp_path / "s")]  # fmt: skip
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert f"error: {tmp_path / 'x.npy'}: row 200: x[0, 0, 3, 4]: expected values from 0 to 1, got 7" in printed
    assert "Traceback" not in printed
    assert "shard-00000001.npy" not in content(tmp_path / "s")
    # Rows beyond n are not looked at.
    assert main([*command[:-1], str(tmp_path / "t"), "-n", "200"]) == 0


@pytest.mark.parametrize(
    ("rows", "arguments", "words"),
    [
        (np.zeros((5, 1, 8, 8), np.int64), {}, r"row 0: x: expected float32 .*, got dtype int64"),
        (np.zeros((5, 1, 9, 8), np.float32), {}, r"row 0: x: expected float32 \[n, 1, 8, 8\], got"),
        (np.zeros((0, 1, 8, 8), np.float32), {}, "expected an .npy file of rows: it has no rows"),
        (np.float32(1), {}, "expected an .npy file of rows: it has no rows"),
        (
            np.full((5, 1, 8, 8), np.nan, np.float32),
            {},
            r"row 0: x\[0, 0, 0, 0\]: expected values from 0 to 1, got nan",
        ),
        (np.zeros((5, 1, 8, 8), np.float32), {"n": 6}, "n: expected at most 5, the rows of"),
        (
            np.zeros((5, 1, 8, 8), np.float32),
            {"temperature": 0.5},
            "expected for samples of the prior alone, got them for encode",
        ),
        (np.zeros((5, 1, 8, 8), np.float32), {"observe": True}, "observe: expected no draws from the likelihood"),
        (np.zeros((5, 1, 8, 8), np.float32), {"dtype": "uint8"}, "dtype: expected float32 for latents"),
        (
            np.zeros((5, 1, 8, 8), np.float32),
            {"reconstruct": "x.npy"},
            "encode: expected this or reconstruct, got both",
        ),
    ],
)
def test_what_is_wrong_shows_before_anything_is_written(digits, tmp_path, rows, arguments, words):
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(InputError, match=words):
        generate(digits, tmp_path / "s", seed=7, encode=tmp_path / "x.npy", **arguments)
    assert not (tmp_path / "s").exists()


def test_other_files_and_no_number_are_refused(digits, tmp_path):
    for name, written in (("a.npy", b"text"), ("b.npy", b""), ("c.npy", b"\x93NUMPY\x01\x00")):
        (tmp_path / name).write_bytes(written)
        with pytest.raises(InputError, match=rf"{name}: expected an \.npy file of rows"):
            generate(digits, tmp_path / "s", seed=7, encode=tmp_path / name)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    for name, sizes in (
        ("f.npy", b"-3, 1, 8, 8"),
        ("g.npy", b"2, 1, ((8"),
        ("h.npy", b"%d, 8" % 2**70),
        ("i.npy", b"9,"),
    ):
        np_header = (header % sizes).ljust(117) + b"\n"
        (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00" + len(np_header).to_bytes(2, "little") + np_header)
        with pytest.raises(InputError, match=rf"{name}: expected an \.npy file of rows"):
            generate(digits, tmp_path / "s", seed=7, encode=tmp_path / name)
    os.mkfifo(tmp_path / "j.npy")
    with pytest.raises(InputError, match="expected a plain file, got a pipe"):
        generate(digits, tmp_path / "s", seed=7, encode=tmp_path / "j.npy")
    np.savez(tmp_path / "d.npy", a=np.zeros(3))
    np.save(tmp_path / "e.npy", np.array([{}]), allow_pickle=True)
    for name in ("d.npy.npz", "e.npy"):
        with pytest.raises(InputError, match=r"expected an \.npy file of rows"):
            generate(digits, tmp_path / "s", seed=7, encode=tmp_path / name)
    with pytest.raises(InputError, match="n: expected an integer, got None"):
        generate(digits, tmp_path / "s", seed=7)
    assert not (tmp_path / "s").exists()


def test_the_variant_of_the_encoder_counts(digits, tmp_path, x):
    vae = vae_runtime.load(digits)
    generate(digits, tmp_path / "s", seed=7, encode=x[0], **SIZES)
    assert json.loads((tmp_path / "s" / "job.json").read_text())["variant"] == vae.variants["encoder"]


def test_memory_does_not_grow_with_the_file(digits, python, tmp_path, x):
    """Count anonymous memory only: the system takes back mapped pages when it needs them."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not tell anonymous memory")
    code = (
        "import re, sys; from vae_runtime.generation.run import generate\n"
        "most = [0]\n"
        "def note(done, n):\n"
        "    kb = int(re.search(r'Anonymous: +([0-9]+)', open('/proc/self/smaps_rollup').read())[1])\n"
        "    most[0] = max(most[0], kb)\n"
        "generate(*sys.argv[1:3], seed=1, encode=sys.argv[3], workers=1, shard_size=4096, progress=note)\n"
        "print(most[0])"
    )
    found = []
    for number, times in enumerate((20, 400)):
        np.save(tmp_path / "x.npy", np.tile(x[1], (times, 1, 1, 1)))
        found.append(int(python("-c", code, digits, tmp_path / str(number), tmp_path / "x.npy").stdout))
    assert found[1] < found[0] * 1.05 + 4096


@pytest.mark.parametrize("observe", [False, True])
def test_latents_from_elsewhere_are_decoded(digits, tmp_path, observe):
    vae = vae_runtime.load(digits)
    z = np.random.default_rng(3).normal(size=(300, *vae.latent_shape))
    np.save(tmp_path / "z.npy", z)
    samples = generate(digits, tmp_path / "s", seed=7, decode=tmp_path / "z.npy", observe=observe, **SIZES)
    wanted = vae.decode(padded(z), seed=7, observe=observe, batch_size=64)[:300]
    assert np.array_equal(samples[:], wanted)
    generate(digits, tmp_path / "two", seed=7, decode=tmp_path / "z.npy", observe=observe, **SIZES | {"workers": 2})
    assert content(tmp_path / "two") == content(tmp_path / "s")
    (tmp_path / "s" / "shard-00000001.npy").unlink()
    generate(digits, tmp_path / "s", seed=7, decode=tmp_path / "z.npy", observe=observe, **SIZES)
    assert content(tmp_path / "two") == content(tmp_path / "s")
    files = {vae.latents[0].name: tmp_path / "z.npy"}
    report = vae_runtime.verify_samples(tmp_path / "s", digits, files=files)
    assert report.passed
    assert len(report.checks) == 4
    with pytest.raises(InputError, match="verb: 'decode' in the folder, 'sample' now"):
        generate(digits, tmp_path / "s", 300, seed=7, observe=observe, **SIZES)


def test_a_seed_is_needed_only_where_something_is_drawn(digits, levels_bundle, tmp_path):
    vae = vae_runtime.load(digits)
    np.save(tmp_path / "z.npy", vae.prior(100, seed=1))
    np.save(tmp_path / "x.npy", vae.sample(100, seed=1))
    for verb, file in (("decode", "z.npy"), ("reconstruct", "x.npy")):
        generate(digits, tmp_path / verb, **{verb: tmp_path / file}, **SIZES)
        generate(digits, tmp_path / f"{verb} 0", seed=0, **{verb: tmp_path / file}, **SIZES)
        assert content(tmp_path / verb) == content(tmp_path / f"{verb} 0")
        with pytest.raises(InputError, match=r"^seed: expected an integer for draws from the likelihood, got nothing"):
            generate(digits, tmp_path / "drawn", **{verb: tmp_path / file}, observe=True, **SIZES)
    with pytest.raises(InputError, match=r"^seed: expected an integer, since z is drawn, got nothing; give seed=0"):
        generate(digits, tmp_path / "drawn", encode=tmp_path / "x.npy", **SIZES)
    with pytest.raises(InputError, match=r"^seed: expected an integer for samples of the prior"):
        generate(digits, tmp_path / "drawn", 10)
    assert not (tmp_path / "drawn").exists()


def test_conditions_of_decoded_latents(root, tmp_path):
    bundle = root / "models" / "digits-conditional"
    vae = vae_runtime.load(bundle)
    z = vae.prior(300, seed=1)
    np.save(tmp_path / "z.npy", z)
    samples = generate(bundle, tmp_path / "s", seed=7, decode=tmp_path / "z.npy", balanced="label", **SIZES)
    labels = np.arange(320) % 10
    assert np.array_equal(samples[:], vae.decode(padded(z), conditions={"label": labels}, batch_size=64)[:300])


def test_codes_and_several_latents_are_decoded(codes_bundle, levels_bundle, tmp_path):
    codes = np.random.default_rng(0).integers(0, 4, (300, 3), dtype=np.int16)
    np.save(tmp_path / "codes.npy", codes)
    bundle = codes_bundle()
    samples = generate(bundle, tmp_path / "c", seed=7, decode=tmp_path / "codes.npy", balanced="label", **SIZES)
    labels = np.arange(320) % 3
    vae = vae_runtime.load(bundle)
    assert np.array_equal(samples[:], vae.decode(padded(codes), conditions={"label": labels}, batch_size=64)[:300])
    bundle = levels_bundle()
    vae = vae_runtime.load(bundle)
    z = vae.prior(300, seed=2)
    rows = np.empty(300, [(name, "<f8", part.shape[1:]) for name, part in z.items()])
    for name, part in z.items():
        rows[name] = part
    np.save(tmp_path / "z.npy", rows)
    samples = generate(bundle, tmp_path / "l", seed=7, decode=tmp_path / "z.npy", **SIZES)
    assert np.array_equal(samples[:], vae.decode({name: padded(part) for name, part in z.items()}, batch_size=64)[:300])
    np.save(tmp_path / "plain.npy", z["z_1"])
    with pytest.raises(InputError, match=r"plain\.npy: row 0: expected a structured array with the fields z_1, z_2"):
        generate(bundle, tmp_path / "bad", seed=7, decode=tmp_path / "plain.npy", **SIZES)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z: z[:, :-1], r"z\.npy: row 0: z: expected float32 \[.*\], got \[1, 7\]"),
        (lambda z: z.astype(np.complex64), r"z\.npy: row 0: z: expected float32 .*complex64"),
        (lambda z: z.astype([("z", "f4")]), r"z\.npy: row 0: expected an array of numbers, got one of"),
        (lambda z: z[:0], r"z\.npy: expected an \.npy file of rows: it has no rows"),
        (lambda z: np.where(np.arange(300)[:, None] == 0, np.nan, z), r"z\.npy: row 0: z\[0, 0\]: .*nan"),
        (lambda z: np.where(np.arange(300)[:, None] == 257, np.nan, z), r"z\.npy: row 257: z\[0, 0\]: .*nan"),
        (lambda z: np.where(np.arange(300)[:, None] == 299, -np.inf, z), r"z\.npy: row 299: z\[0, 0\]: .*inf"),
        (
            lambda z: np.where(np.arange(300)[:, None] == 130, 1e300, z),
            r"z\.npy: row 130: z\[0, 0\]: expected numbers within",
        ),
    ],
)
def test_latents_that_do_not_fit_are_refused_with_their_place(digits, tmp_path, change, words):
    vae = vae_runtime.load(digits)
    assert vae.latent_shape == (8,)
    np.save(tmp_path / "z.npy", change(vae.prior(300, seed=1).astype(np.float64)))
    with pytest.raises(InputError, match=words):
        generate(digits, tmp_path / "s", seed=7, decode=tmp_path / "z.npy", **SIZES)
    # What is whole stays.
    assert all(name < "shard-00000002.npy" for name in content(tmp_path / "s"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encode": "x.npy"}, "decode: expected this or encode, got both"),
        (
            {"temperature": 0.5},
            "temperature and truncation: expected for .* got them for decode",
        ),
        ({"n": 301}, "n: expected at most 300, the rows of .*, got 301"),
    ],
)
def test_arguments_that_decoding_does_not_take(digits, tmp_path, change, words):
    np.save(tmp_path / "z.npy", vae_runtime.load(digits).prior(300, seed=1))
    with pytest.raises(InputError, match=words):
        generate(digits, tmp_path / "s", **{"seed": 7, "decode": tmp_path / "z.npy", **SIZES, **change})
    assert not (tmp_path / "s").exists()


def test_the_command_decodes_and_verifies(digits, tmp_path, capsys):
    np.save(tmp_path / "z.npy", vae_runtime.load(digits).prior(300, seed=1))
    words = ["generate", str(digits), "--decode", str(tmp_path / "z.npy"), "--out", str(tmp_path / "s")]
    assert main([*words, "--seed", "7", "--dtype", "uint8", "--workers", "1"]) == 0
    assert main([*words, "--verify"]) == 0
    words[2] = "--encode"
    assert main([*words, "--verify"]) == 1
    assert "its samples were made by --decode, not by --encode; leave out --encode" in capsys.readouterr().err
