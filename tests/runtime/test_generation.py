"""Generation to disk: the same bytes whoever makes them, after whatever interrupts them; and reading them back."""

import collections
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime.cli.main import main
from vae_runtime.errors import BundleError, InputError, VaeError
from vae_runtime.files import locked
from vae_runtime.generation.ahead import HELD, Ahead
from vae_runtime.generation.conversion import to_uint8
from vae_runtime.generation.folder import claim
from vae_runtime.generation.job import Job
from vae_runtime.generation.local import _cores, make_shards, usable_cores
from vae_runtime.generation.request import Draw, Output, Request, describe_job
from vae_runtime.generation.rows import make_rows
from vae_runtime.generation.run import generate
from vae_runtime.generation.samples import open_samples
from vae_runtime.generation.store import LocalStore
from vae_runtime.manifest import Latent, LatentPosterior, Likelihood, Observation, Signature

# Six shards of four batches, the last cut short.
JOB = {"n": 1400, "seed": 7, "batch_size": 64, "shard_size": 256, "workers": 1}
WORDS = ["-n", "1400", "--seed", "7", "--batch-size", "64", "--shard-size", "256"]


def content(folder):
    """Every file of the samples and its bytes, without the index and the job, which name the machine."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix == ".npy"}


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "samples"
    generate(digits, folder, **JOB)
    return folder


def test_samples_are_those_of_the_seed(undisturbed, digits):
    samples = open_samples(undisturbed)
    vae = vae_runtime.load(digits)
    assert samples.shape == (1400, *vae.observation_shape)
    assert np.array_equal(samples[:], vae.sample(1408, seed=7, batch_size=64)[:1400])
    assert len(content(undisturbed)) == 6
    assert not [name for name in os.listdir(undisturbed) if name.startswith(".")]


def test_reading(undisturbed):
    samples = open_samples(undisturbed)
    whole = np.concatenate([np.load(undisturbed / name) for name in sorted(content(undisturbed))])
    assert len(samples) == len(whole) == 1400
    for index in (0, 255, 256, 1399, -1, -1400, np.int64(700)):
        assert np.array_equal(samples[index], whole[index])
    for part in (
        slice(None),
        slice(250, 270),
        slice(-3, None),
        slice(5, 5),
        slice(1, 1399, 137),
        slice(None, None, -99),
    ):
        assert np.array_equal(samples[part], whole[part])
        assert samples[part].dtype == whole.dtype
    assert np.array_equal(np.array(list(samples)), whole)
    for index in (1400, -1401):
        with pytest.raises(IndexError):
            samples[index]
    with pytest.raises(InputError, match="expected an integer, a slice"):
        samples["a"]
    samples[0][...] = 5
    assert np.array_equal(samples[0], whole[0])


@pytest.mark.parametrize(
    ("workers", "parts"),
    [(2, 1), (1, 3), pytest.param(4, 1, marks=pytest.mark.long), pytest.param(2, 3, marks=pytest.mark.long)],
)
def test_who_makes_them_changes_nothing(digits, tmp_path, undisturbed, workers, parts):
    for k in range(parts, 0, -1):
        done = generate(digits, tmp_path / "s", **{**JOB, "workers": workers}, part=(k, parts) if parts > 1 else None)
        assert (done is None) == (k > 1)
    assert content(tmp_path / "s") == content(undisturbed)


@pytest.mark.parametrize(("batch_size", "shard_size"), [(1, 100), (64, 64), (700, 1400), (512, None)])
def test_other_sizes_decode_the_same_latents(digits, tmp_path, undisturbed, batch_size, shard_size):
    job = {**JOB, "batch_size": batch_size, "shard_size": shard_size}
    samples = generate(digits, tmp_path / "s", **job)
    np.testing.assert_allclose(samples[:], open_samples(undisturbed)[:], atol=1e-5)


def test_more_may_be_asked_for_later(digits, tmp_path, undisturbed):
    folder = tmp_path / "s"
    generate(digits, folder, **{**JOB, "n": 600})
    before = (folder / "shard-00000000.npy").stat().st_mtime_ns
    assert len(generate(digits, folder, **JOB)) == 1400
    assert content(folder) == content(undisturbed)
    assert (folder / "shard-00000000.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="n: 1400 in the folder, 600 now, expected at least as many"):
        generate(digits, folder, **{**JOB, "n": 600})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").write_text("{}"),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("[" * 9),
    ],
)
def test_a_damaged_shard_alone_is_made_again(digits, tmp_path, undisturbed, damage):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    damage(folder / "shard-00000002.npy")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    generate(digits, folder, **JOB)
    assert content(folder) == content(undisturbed)
    changed = [name for name, then in before.items() if (folder / name).stat().st_mtime_ns != then]
    assert changed in (["shard-00000002.npy"], [])
    assert (folder / "shard-00000002.npy").stat().st_mtime_ns != before.get("shard-00000002.npy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 8}, "seed: 7 in the folder, 8 now"),
        ({"batch_size": 32}, "batch_size: 64 in the folder, 32 now"),
        ({"dtype": "uint8"}, "dtype: 'float32' in the folder, 'uint8' now"),
        ({"observe": True}, "observe: False in the folder, True now"),
        ({"temperature": 0.5}, "temperature: 1.0 in the folder, 0.5 now"),
        ({"n": 1300}, "n: 1400 in the folder, 1300 now"),
    ],
)
def test_another_job_is_refused(digits, tmp_path, undisturbed, change, words):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    with pytest.raises(InputError, match=words):
        generate(digits, folder, **{**JOB, **change})
    assert content(folder) == content(undisturbed)


def test_another_bundle_and_a_folder_of_other_things_are_refused(digits, root, tmp_path, undisturbed):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    with pytest.raises(InputError, match="digest"):
        generate(root / "models" / "mnist", folder, **JOB)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"expected an empty folder or one of this job, got one with thesis\.tex"):
        generate(digits, tmp_path / "full", **JOB)
    with pytest.raises(VaeError, match="cannot be made"):
        generate(digits, tmp_path / "full" / "thesis.tex" / "s", **JOB)
    with pytest.raises(BundleError):
        generate(tmp_path, tmp_path / "none", **JOB)
    assert not (tmp_path / "none").exists()


def test_another_machine_is_warned_of(digits, tmp_path, undisturbed):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    job = json.loads((folder / "job.json").read_text())
    job["machine"]["onnxruntime"] = "1.0.0"
    (folder / "job.json").write_text(json.dumps(job))
    warnings = []
    generate(digits, folder, **JOB, warn=warnings.append)
    assert len(warnings) == 1
    assert "onnxruntime: '1.0.0' then" in warnings[0]


def test_two_calls_in_one_folder_do_not_mix(digits, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    with locked(folder), pytest.raises(VaeError, match="another call is at work"):
        generate(digits, folder, **JOB)
    with locked(folder, shared=True), pytest.raises(VaeError, match="another call is at work"):
        generate(digits, folder, **JOB)
    assert not os.listdir(folder)
    with locked(folder, shared=True):
        generate(digits, folder, **JOB, part=(1, 2))
    assert len(content(folder)) == 3


def test_parts_that_begin_at_once(digits, tmp_path, undisturbed):
    for number in range(5):
        folder = tmp_path / str(number)
        with ThreadPoolExecutor(4) as pool:
            parts = [pool.submit(generate, digits, folder, **JOB, part=(k, 4)) for k in (1, 2, 3, 4)]
        assert any(part.result() is not None for part in parts)
        assert content(folder) == content(undisturbed)


def test_uint8_is_rounded_and_takes_a_range(digits, tmp_path, undisturbed, small_bundle):
    samples = generate(digits, tmp_path / "s", **{**JOB, "dtype": "uint8"})
    wanted = np.rint(open_samples(undisturbed)[:].astype(np.float64) * 255)
    assert samples.dtype == np.uint8
    assert np.abs(samples[:] - wanted).max() <= 1
    assert (samples[:] == wanted).mean() > 0.999
    with pytest.raises(InputError, match="uint8 needs a range"):
        generate(small_bundle(), tmp_path / "t", **{**JOB, "dtype": "uint8"})


def test_uint8_clips_to_the_range():
    for x, wanted in (
        (np.full((3, 2), 0.5, np.float32), [[128, 128]] * 3),
        (np.float32([[1e30, -1e30]]), [[255, 0]]),
        (np.float32([[3e38, -3e38]]), [[255, 0]]),
        (np.float32([[0.5, 1.5, 2.5, -0.4]]) / np.float32(255), [[0, 2, 2, 0]]),
    ):
        out = np.empty(x.shape, np.uint8)
        to_uint8(x, (0, 1), out, 0, "the decoder gives")
        assert out.tolist() == wanted


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_uint8_refuses_what_is_not_finite(wrong):
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = wrong
    with pytest.raises(VaeError, match=rf"^sample 8: expected finite values, it gives {wrong} at \[2\];"):
        to_uint8(x, (0, 1), np.empty(x.shape, np.uint8), 7, "it gives")


def test_items_are_made_ahead():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    with Ahead(items()) as ahead:
        assert next(ahead) == 0
        while len(made) < HELD:
            time.sleep(0.001)
        assert made == list(range(HELD))
        assert list(ahead) == list(range(1, 10))
        assert list(ahead) == []


def test_an_error_comes_where_its_item_would_have_been():
    def items():
        yield 1
        raise KeyError("two")

    with Ahead(items()) as ahead:
        assert next(ahead) == 1
        for _ in range(2):
            with pytest.raises(KeyError, match="two"):
                next(ahead)


def test_who_leaves_early_leaves_no_thread():
    before = threading.enumerate()

    def leave():
        with Ahead(itertools.count()) as ahead:
            raise KeyError(next(ahead))

    with pytest.raises(KeyError):
        leave()
    assert threading.enumerate() == before


@pytest.mark.parametrize("batch_size", [1, 3, 64, 700])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_strips_of_any_size_give_the_same_rows(digits, monkeypatch, dtype, batch_size):
    vae = vae_runtime.load(digits)
    output = Output(dtype=dtype, batch_size=batch_size)
    job = describe_job(vae, Request(1400, Draw(7), output=output))
    wanted = np.concatenate([rows.copy() for rows in make_rows(vae, job, 0, 1400)])
    for bytes_of_strip, bytes_of_part in ((1, 1), (2**14, 2**12), (2**30, 2**30)):
        monkeypatch.setattr("vae_runtime.generation.rows._STRIP_BYTES", bytes_of_strip)
        monkeypatch.setattr("vae_runtime.generation.rows._PART_BYTES", bytes_of_part)
        found = np.concatenate([rows.copy() for rows in make_rows(vae, job, 0, 1400)])
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_rows_stay_while_the_next_ones_are_made(digits, monkeypatch, dtype):
    monkeypatch.setattr("vae_runtime.generation.rows._STRIP_BYTES", 1)
    vae = vae_runtime.load(digits)
    job = describe_job(vae, Request(20, Draw(7), output=Output(dtype=dtype, batch_size=2)))
    last = collections.deque(maxlen=HELD)
    for rows in make_rows(vae, job, 0, 20):
        last.append((rows, rows.copy()))
        assert all(np.array_equal(now, before) for now, before in last)
    assert len(last) == HELD


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_decoder_that_gives_nan_ends_the_call(dtype, onnx_bytes, write_bundle, tmp_path):
    o, rows = onnx_bytes, ["batch", 3]
    decoder = o.model([o.node("Sqrt", ["z"], ["x"])], [o.value("z", rows)], [o.value("x", rows)])
    encoder = o.model([o.node("Identity", ["x"], ["mu"])], [o.value("x", rows)], [o.value("mu", rows)])
    signature = Signature(
        observation=Observation("x", (3,), ("feature",), (0.0, 9.0)),
        latents=(Latent("z", (3,), LatentPosterior("none", value="mu")),),
        likelihood=Likelihood("gaussian", "x", scale=0.5),
    )
    bundle = write_bundle("root", signature, encoder, decoder, {"x": np.ones((2, 3), np.float32)})
    # The first latent with a negative number.
    z = vae_runtime.load(bundle).prior(300, seed=7)
    row, column = np.argwhere(z < 0)[0]
    with pytest.raises(
        VaeError, match=rf"^sample {row}: expected finite values, the decoder gives nan at \[{column}\];"
    ):
        generate(bundle, tmp_path / "s", **{**JOB, "dtype": dtype})
    assert not (tmp_path / "s").exists()


def test_an_encoder_that_gives_infinity_ends_the_call(small_bundle, tmp_path):
    x = np.zeros((300, 3), np.float32)
    x[257, 1] = -1000
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(VaeError, match=r"^sample 257: expected finite values, the encoder gives std inf at \[1\];"):
        generate(small_bundle(), tmp_path / "s", **{**JOB, "n": None}, encode=tmp_path / "x.npy")
    # Numbers whose sum overflows are finite.
    x[:] = 3e38
    np.save(tmp_path / "large.npy", x)
    samples = generate(small_bundle(name="b"), tmp_path / "t", **{**JOB, "n": None}, encode=tmp_path / "large.npy")
    assert np.array_equal(samples[:]["mu"], x)


def test_draws_from_the_likelihood(digits, tmp_path):
    samples = generate(digits, tmp_path / "s", **{**JOB, "observe": True})
    assert set(np.unique(samples[:])) == {0, 1}
    assert np.array_equal(samples[:64], vae_runtime.load(digits).sample(64, seed=7, observe=True))


def test_conditions(root, tmp_path):
    bundle = root / "models" / "digits-conditional"
    vae = vae_runtime.load(bundle)
    labels = np.random.default_rng(0).integers(0, 10, 1400)
    np.save(tmp_path / "labels.npy", labels)
    for given, each in (
        ({"balanced": "label"}, np.arange(1400) % 10),
        ({"conditions": {"label": tmp_path / "labels.npy"}}, labels),
        ({"conditions": {"label": 3}}, np.full(1400, 3)),
    ):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        samples = generate(bundle, folder, **JOB, **given)
        padded = np.concatenate([each, each[-1:].repeat(8)]) if "balanced" not in given else np.arange(1408) % 10
        wanted = vae.sample(1408, seed=7, conditions={"label": padded}, batch_size=64)[:1400]
        assert np.array_equal(samples[:], wanted)
    np.save(tmp_path / "short.npy", labels[:10])
    for given, words in (
        ({"conditions": {"label": tmp_path / "short.npy"}}, "expected a row for each of 1400 samples, got 10"),
        ({"conditions": {"label": tmp_path / "none.npy"}}, "none.npy"),
        ({"balanced": "colour"}, "balanced: takes .*: expected one of label, got 'colour'"),
        ({"conditions": {"label": 11}}, "0 to 9"),
        ({"conditions": {"label": labels}}, r"one value of shape \[\] .* or the path of an \.npy file .* got \[1400\]"),
        ({"conditions": {"label": [3]}}, r"conditions: label: expected one value .* got \[1\]"),
        ({"conditions": {"label": [[1], 2]}}, "conditions: label: expected numbers or a class"),
        ({"conditions": [3]}, "conditions: expected a mapping of names to values"),
        ({"balanced": ["label"]}, "one of label"),
        ({}, "label.* got nothing"),
    ):
        with pytest.raises(InputError, match=words):
            generate(bundle, tmp_path / "bad", **JOB, **given)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n: "),
        ({"workers": 0}, "workers: "),
        ({"shard_size": 100}, "a multiple of the batch size, 64"),
        ({"batch_size": 0}, "batch_size: "),
        ({"dtype": "float16"}, "float32 or uint8"),
        ({"part": (4, 3)}, "part: "),
        ({"part": (0, 3)}, "part: "),
        ({"part": "1/2"}, "part: expected two integers"),
        ({"part": 1}, "part: expected two integers"),
        ({"temperature": -1}, "temperature: "),
        ({"n": 10**10, "shard_size": 64}, "shard_size: expected at least 10048, got 64"),
        ({"observe": "yes"}, "observe: expected True or False"),
        ({"variant": {}}, "variant: expected a name"),
        ({"batch_size": 2**20, "shard_size": None, "bundle": "mnist"}, "batch_size: expected at most 342392"),
        ({"out": None}, "out: expected a folder or a URL, got None"),
        ({"encode": 3}, "3: expected an .npy file of rows"),
    ],
)
def test_bad_arguments_leave_nothing(root, tmp_path, change, words):
    arguments = {"bundle": "digits", "out": tmp_path / "s", **JOB, **change}
    with pytest.raises(InputError, match=words):
        generate(root / "models" / arguments.pop("bundle"), **arguments)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits as on POSIX")
@pytest.mark.parametrize("place", ["new", "there"])
def test_a_failed_call_leaves_nothing_that_stops_another(digits, tmp_path, monkeypatch, place):
    out = tmp_path / place
    (tmp_path / "there").mkdir()
    with monkeypatch.context() as full:
        full.setattr("vae_runtime.generation.store.LocalStore.free", lambda store: 10)
        with pytest.raises(VaeError, match="of free space"):
            generate(digits, out, **JOB)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there"]
    assert len(generate(digits, out, **{**JOB, "seed": 8})) == JOB["n"]


def test_a_failed_call_keeps_what_is_whole(digits, tmp_path, monkeypatch):
    generate(digits, tmp_path / "s", **JOB, part=(1, 2))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("vae_runtime.generation.store.LocalStore.free", lambda store: 10)
    with pytest.raises(VaeError, match="of free space"):
        generate(digits, tmp_path / "s", **JOB)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_or_damaged_folder_is_no_samples(digits, tmp_path, undisturbed):
    with pytest.raises(VaeError, match="expected a folder of samples"):
        open_samples(tmp_path)
    generate(digits, tmp_path / "s", **JOB, part=(1, 2))
    with pytest.raises(VaeError, match="the folder is not finished"):
        open_samples(tmp_path / "s")
    folder = Path(shutil.copytree(undisturbed, tmp_path / "t"))
    index = json.loads((folder / "index.json").read_text())
    for change in ({"shards": []}, {"shards": index["shards"][1:]}, {"shards": None}, {"job": {}},
                   {"format_version": "2.0"}):  # fmt: skip
        (folder / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(VaeError, match="consecutive shards"):
            open_samples(folder)
    escaping = [{**index["shards"][0], "file": "../undisturbed.npy"}, *index["shards"][1:]]
    (folder / "index.json").write_text(json.dumps({**index, "shards": escaping}))
    with pytest.raises(VaeError, match="consecutive shards"):
        open_samples(folder)
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "shard-00000001.npy").unlink()
    with pytest.raises(VaeError, match=r"shard-00000001\.npy: cannot be read"):
        open_samples(folder)[300]


def test_a_disk_that_is_full_is_told(digits, tmp_path, undisturbed):
    """By a limit on the size of files, which stops a write in the middle as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "from vae_runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "generate", str(digits), *WORDS, "--workers", "1", "--out", "s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert "error: s/shard-00000000.npy: not written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
    generate(digits, tmp_path / "s", **JOB)
    assert content(tmp_path / "s") == content(undisturbed)


@contextlib.contextmanager
def start(digits, folder, workers, n=1400):
    """The command in a process group of its own, so that all of it can be killed, and is where a test fails."""
    words = ["generate", str(digits), *WORDS, "-n", str(n), "--workers", str(workers), "--out", str(folder)]
    command = [str(Path(sys.executable).with_name("vae-runtime")), *words]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", start_new_session=True
    ) as process:
        try:
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


@contextlib.contextmanager
def at_work_on(digits, folder, workers):
    """A call that never ends by itself, once shard 0 is whole; with several workers, others may be whole before it."""
    with start(digits, folder, workers, 10_000_000) as process:
        while not (folder / "shard-00000000.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield process


def children(pid):
    """The workers of a call, by their process numbers."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def at_work(pids):
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
    )
    # One that has ended and whose parent has not looked is a zombie.
    return [state for state in listed.stdout.split() if not state.startswith("Z")]


def kill_at_random(digits, folder, undisturbed, kills, n):
    chance = random.Random(kills)
    for number in range(kills):
        with start(digits, folder, 2, n) as process:
            time.sleep(chance.uniform(0.05, 1.5))
            victims = children(process.pid)
            with contextlib.suppress(ProcessLookupError):
                if number % 3 == 0:
                    os.killpg(process.pid, signal.SIGKILL)
                elif number % 3 == 1 or not victims:
                    process.kill()
                else:
                    os.kill(chance.choice(victims), signal.SIGKILL)
            # Ends when the workers have: theirs is the same stderr.
            _, stderr = process.communicate(timeout=60)
            assert process.returncode in (0, 1, -signal.SIGKILL)
            assert process.returncode != 1 or "error: " in stderr
    with start(digits, folder, 2, n) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert content(folder) == content(undisturbed)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.long
def test_killed_at_random_moments_the_same_command_finishes(digits, tmp_path, undisturbed):
    kill_at_random(digits, tmp_path / "s", undisturbed, 5, 1400)


@pytest.mark.slow
def test_killed_at_fifty_random_moments_the_same_command_finishes(digits, tmp_path):
    generate(digits, tmp_path / "undisturbed", **{**JOB, "n": 400_000})
    kill_at_random(digits, tmp_path / "s", tmp_path / "undisturbed", 50, 400_000)


def test_a_job_that_has_made_nothing_gives_way(digits, tmp_path, undisturbed):
    folder = tmp_path / "s"
    with pytest.raises(VaeError, match="GiB of free space"):
        generate(digits, folder, 10**11, seed=8, part=(1, 2))
    assert os.listdir(folder) == ["job.json"]
    with pytest.raises(InputError, match="another job is in this folder"):
        generate(digits, folder, **JOB, part=(1, 2))
    generate(digits, folder, **JOB)
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-n", "10", "--seed", "1", "--out", ""], 2, "out: expected a folder or a URL"),
        (["-n", "10", "--seed", "1", "--out", "file://s"], 2, "file:///… with three slashes"),
        (["-n", "10", "--seed", "1", "--out", "file:///tmp/a#b"], 2, "without ? or #"),
        (["-n", "10", "--seed", "1", "--out", "s3:bucket/s"], 2, "expected two slashes after the colon of a URL"),
        (["-n", "10", "--seed", "1", "--condition", "a=1", "--condition", "a=2", "--out", "s"], 2, "expected a once"),
        (["--verify", "--dtype", "uint8", "--out", "s"], 2, "argument --dtype: not allowed with --finish or --verify"),
        (["--finish", "-n", "10", "--out", "s"], 2, "argument -n: not allowed with --finish or --verify"),
        (["--verify", "--out", "s"], 1, "s: expected a folder of samples"),
        (
            ["-n", "10", "--seed", "1", "--out", "s", "--batch-size", "2", "--shard-size", "3"],
            2,
            "error: --shard-size: expected a multiple of the batch size, 2, got 3",
        ),
        (["-n", "10", "--seed", "1", "--out", "s", "--address", "auto"], 2, "error: --address: expected one with"),
        (["--encode", "x.npy", "--seed", "1", "--out", "s", "--observe"], 2, "error: --observe: expected no draws"),
        (["--encode", "x.npy", "--seed", "1", "--out", "s", "--dtype", "uint8"], 2, "error: --dtype: expected float32"),
        (
            ["--reconstruct", "x.npy", "--seed", "1", "--out", "s", "--temperature", "2"],
            2,
            "error: --temperature and --truncation: expected for samples of the prior alone",
        ),
        (["-n", "10", "--seed", "1", "--out", "memory://s"], 2, "a place that outlives this command"),
    ],
)
def test_misuse_of_the_command(digits, tmp_path, monkeypatch, capsys, words, status, message):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(["generate", str(digits), *words])
    except SystemExit as end:
        found = end.code
    assert found == status
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_script_needs_no_guard_of_its_main_part(digits, tmp_path, undisturbed, python):
    """Processes that are spawned run what they take for the script again, unless it is guarded."""
    (tmp_path / "script.py").write_text(
        "import sys; from vae_runtime import generate; print('begun')\n"
        "done = generate(sys.argv[1], sys.argv[2], 1400, seed=7, batch_size=64, shard_size=256, workers=2)\n"
        "print(len(done), __file__ == sys.argv[0], __spec__)\n"
    )
    output = python(tmp_path / "script.py", digits, tmp_path / "s")
    assert output.stdout == "begun\n1400 True None\n"
    assert content(tmp_path / "s") == content(undisturbed)


def test_a_closed_standard_error_spoils_nothing(digits, tmp_path, undisturbed):
    """What is said on it would go into the next file that is opened, which has its number."""
    run = Path(sys.executable).with_name("vae-runtime"), "generate", digits, *WORDS, "--out", tmp_path / "s"
    done = subprocess.run(["sh", "-c", '"$@" 2>&- 0<&-', "sh", *map(str, run)], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert content(tmp_path / "s") == content(undisturbed)
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").write_bytes(b"")
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *map(str, run)], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_ctrl_c_says_how_to_go_on(digits, tmp_path, undisturbed):
    with at_work_on(digits, tmp_path / "s", 2) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in stderr
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    first = undisturbed / "shard-00000000.npy"
    assert (tmp_path / "s" / first.name).read_bytes() == first.read_bytes()
    assert not [name for name in os.listdir(tmp_path / "s") if name.startswith(".")]


@pytest.mark.parametrize(
    ("workers", "kill"),
    [
        (2, os.kill),
        pytest.param(1, os.kill, marks=pytest.mark.long),
        pytest.param(2, os.killpg, marks=pytest.mark.long),
    ],
)
def test_a_scheduler_s_sigterm_ends_as_ctrl_c_does(digits, tmp_path, undisturbed, workers, kill):
    """To the parent alone, and to all processes at once."""
    folder = tmp_path / "s"
    with at_work_on(digits, folder, workers) as process:
        kill(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in ((143,) if kill is os.kill else (143, 1))
    assert "run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    first = undisturbed / "shard-00000000.npy"
    assert (folder / first.name).read_bytes() == first.read_bytes()


def test_all_workers_killed_at_once(digits, tmp_path):
    with at_work_on(digits, tmp_path / "s", 2) as process:
        workers = children(process.pid)
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: " in stderr
    assert "a worker died, killed or out of memory; whole shards are kept" in stderr
    assert "Traceback" not in stderr


def test_workers_end_with_a_call_that_was_killed(digits, tmp_path):
    with at_work_on(digits, tmp_path / "s", 2) as process:
        workers = children(process.pid)
        assert len(at_work(workers)) == 2
        process.kill()
        process.wait()
        give_up = time.monotonic() + 30
        while at_work(workers) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not at_work(workers)


@pytest.mark.parametrize(
    "vanish",
    ["moved", pytest.param("removed", marks=pytest.mark.long), pytest.param("replaced", marks=pytest.mark.long)],
)
def test_a_folder_that_vanishes_ends_the_call(digits, tmp_path, vanish):
    folder = tmp_path / "s"
    with at_work_on(digits, folder, 2) as process:
        workers = children(process.pid)
        assert at_work(workers)
        folder.rename(tmp_path / "away")
        if vanish == "removed":
            shutil.rmtree(tmp_path / "away", ignore_errors=True)
        if vanish == "replaced":
            folder.mkdir()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith(f"error: {folder}")
    assert "Traceback" not in stderr
    assert not at_work(workers)
    assert vanish == "replaced" or not folder.exists()


def test_a_folder_that_is_read_only(digits, tmp_path, undisturbed):
    """By the flag that keeps even root from writing, where the file system has it; else by the permissions."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    (folder / "shard-00000002.npy").unlink()
    before = content(folder)
    if os.geteuid():
        folder.chmod(0o500)
    elif subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root writes everywhere here")
    try:
        with pytest.raises(
            VaeError, match=r"shard-00000002\.npy: cannot write here: .*choose a folder that exists and"
        ):
            generate(digits, folder, **JOB)
        with pytest.raises(VaeError, match=r"s/new: cannot be made: "):
            generate(digits, folder / "new", **JOB)
        assert open_samples(folder).shape[0] == 1400
    finally:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)
    assert content(folder) == before


def test_a_disk_that_is_really_full(digits, tmp_path, undisturbed, monkeypatch):
    """A small one in memory, on which the estimate is left out."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(
            VaeError,
            match=r"expected 0\.34 MiB of free space, got 0\.[12][0-9] MiB; free some space, choose another disk, or",
        ):
            generate(digits, disk / "s", **JOB)
        assert os.listdir(disk) == []
        monkeypatch.setattr(LocalStore, "free", lambda self: None)
        with pytest.raises(VaeError, match=r"shard-0000000[0-9]\.npy: not written: No space left on device; free some"):
            generate(digits, disk / "s", **JOB)
        whole = content(disk / "s")
        assert 0 < len(whole) < 6
        assert whole.items() <= content(undisturbed).items()
        assert not [name for name in os.listdir(disk / "s") if name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        generate(digits, disk / "s", **JOB)
        assert content(disk / "s") == content(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_room_is_looked_up_before_the_first_shard(digits, tmp_path, monkeypatch):
    rows = 1400 * 64 * 4
    warnings = []
    cases = (
        (None, "float32", "npy", rows - 1, True, 0),
        (None, "float32", "npy", rows, False, 0),
        (None, "uint8", "npy", rows // 4, False, 0),
        ((1, 3), "float32", "npy", rows // 2, False, 1),
        ((1, 3), "float32", "npy", rows // 4, True, 0),
        (None, "float32", "parquet", rows - 1, False, 1),
    )
    for number, (part, dtype, format, free, refused, warned) in enumerate(cases):
        if format == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is missing")
        warnings.clear()
        monkeypatch.setattr(LocalStore, "free", lambda self, free=free: free)
        folder = tmp_path / str(number)
        job = {**JOB, "dtype": dtype, "format": format, "part": part, "warn": warnings.append}
        if refused:
            with pytest.raises(VaeError, match=r"expected .* MiB of free space.*, got 0\.[0-9]+ MiB"):
                generate(digits, folder, **job)
            assert not folder.exists() if part is None else os.listdir(folder) == ["job.json"]
        else:
            generate(digits, folder, **job)
        assert len(warnings) == warned


def test_a_dry_run_estimates_and_writes_nothing(digits, tmp_path, capsys):
    out, found, began = tmp_path / "deep" / "s", [], time.perf_counter()
    assert generate(digits, out, **{**JOB, "workers": 2}, dtype="uint8", dry_run=found.append) is None
    took = time.perf_counter() - began
    assert not out.parent.exists()
    (one,) = found
    assert (one.rows, one.of, one.shards, one.bytes, one.workers) == (1400, 1400, 6, 1400 * 64, 2)
    # A file at least is made again and again until a second is over, or once.
    assert one.measured <= 256
    assert one.measured / one.rate < took
    # Three files of 256 by each of two workers.
    assert one.seconds == pytest.approx(768 / one.rate)
    assert one.free > 0
    assert one.memory > 2**20
    assert [text.partition(":")[0] for text in one.unknown] == [
        "how fast the place takes files",
        "how much 2 workers slow each other down",
    ]
    generate(digits, out, **JOB, part=(1, 2))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert main(["generate", str(digits), *WORDS, "--workers", "1", "--out", str(out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["samples", "time", "disk", "memory", "unknown", "unknown"]
    assert lines[0] == "samples  632 of 1400 to make, in 3 files"
    assert "whether the files of 768 samples already there are whole" in lines[-1]
    assert main(["generate", str(digits), *WORDS, "--out", str(out), "--dry-run", "--json"]) == 0
    rest = json.loads(capsys.readouterr().out)
    assert (rest["rows"], rest["bytes"]) == (632, 632 * 64 * 4)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(InputError, match="seed: 7 in the folder, 8 now"):
        generate(digits, out, **{**JOB, "seed": 8}, dry_run=found.append)
    with pytest.raises(InputError, match=r"got one with s$"):
        generate(digits, out.parent, **JOB, dry_run=found.append)


def test_a_dry_run_fails_where_the_disk_is_too_small(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("vae_runtime.generation.store.LocalStore.free", lambda store: 10)
    found = []
    with pytest.raises(VaeError, match="of free space"):
        generate(digits, tmp_path / "s", **JOB, dry_run=found.append)
    assert found[0].free == 10
    assert not (tmp_path / "s").exists()


def test_a_dry_run_on_a_cluster_says_what_it_does_not_know(digits, tmp_path):
    found = []
    generate(digits, tmp_path / "s", **{**JOB, "workers": None}, executor="ray", dry_run=found.append)
    assert (found[0].workers, found[0].seconds) == (None, None)
    assert any("how many workers the cluster has" in text for text in found[0].unknown)
    assert "with 1 worker, each" in str(found[0])


def test_a_bundle_that_changes_during_the_call(digits, copy_of, tmp_path, undisturbed, edit_manifest):
    """What was loaded goes on; who would load what has changed refuses it; neither mixes the two."""
    bundle = copy_of(digits)

    def change(done, n):
        if done == 256:
            edit_manifest(bundle, lambda document: document.update(package_name="other"))

    generate(bundle, tmp_path / "s", **JOB, progress=change)
    assert content(tmp_path / "s") == content(undisturbed)
    with pytest.raises(InputError, match=r"digest: .* in the folder, .* now"):
        generate(bundle, tmp_path / "s", **JOB)
    vae = vae_runtime.load(digits)
    job = Job.from_json(json.loads((undisturbed / "job.json").read_text()))
    store = LocalStore(tmp_path / "t")
    with store.held(shared=False):
        claim(store, job, shared=False, warn=None)
        object.__setattr__(vae.bundle, "root", str(bundle))
        with pytest.raises(BundleError, match="digest"):
            list(make_shards(vae, store, job, range(job.shards), 2))
    assert os.listdir(tmp_path / "t") == ["job.json"]


def test_where_the_time_goes(digits, tmp_path):
    timings = {}
    generate(digits, tmp_path / "s", **{**JOB, "dtype": "uint8"}, timings=timings)
    assert set(timings) == {"noise", "decode", "convert", "write"}
    assert all(seconds > 0 for seconds in timings.values())
    before = dict(timings)
    generate(digits, tmp_path / "s", **{**JOB, "dtype": "uint8"}, timings=timings)
    assert timings.pop("check") > 0
    assert timings == before


def test_progress_for_machines(digits, tmp_path, capsys):
    assert main(["generate", str(digits), *WORDS, "--workers", "1", "--json", "--out", str(tmp_path / "s")]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert (answer["out"], answer["finished"], answer["samples"]) == (str(tmp_path / "s"), True, 1400)
    assert set(answer["timings"]) == {"noise", "decode", "write"}
    assert output.err == ""


def test_shards_of_another_job_are_not_believed(digits, tmp_path, undisturbed):
    generate(digits, tmp_path / "other", **{**JOB, "seed": 8})
    folder = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    for suffix in ("npy", "json"):
        shutil.copy(tmp_path / "other" / f"shard-00000003.{suffix}", folder)
    generate(digits, folder, **JOB)
    assert content(folder) == content(undisturbed)


def test_a_folder_that_another_job_has_taken_is_left(digits, tmp_path, undisturbed):
    """Where nothing is locked, as on some network file systems."""
    generate(digits, tmp_path / "other", **{**JOB, "seed": 8}, part=(1, 6))

    def take(done, n):
        if done == 256:
            shutil.copy(tmp_path / "other" / "job.json", tmp_path / "s")

    with pytest.raises(VaeError, match=r"job\.json: another job has replaced this one since the call began"):
        generate(digits, tmp_path / "s", **JOB, progress=take)
    assert not (tmp_path / "s" / "index.json").exists()
    assert len(list((tmp_path / "s").glob("shard-*.json"))) == 1


def test_cores_are_those_of_the_process():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_workers_keep_to_cores_where_there_is_one_for_each(monkeypatch):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr("vae_runtime.generation.local.usable_cores", lambda: len(cores))
    assert _cores(len(cores)) == cores
    assert _cores(len(cores) + 1) == [None] * (len(cores) + 1)
    monkeypatch.setattr("vae_runtime.generation.local.usable_cores", lambda: len(cores) - 1)
    assert _cores(len(cores)) == [None] * len(cores)


def test_each_worker_stays_on_a_core_of_its_own(digits, tmp_path):
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("it takes a system with affinity and two cores")
    before = os.sched_getaffinity(0)
    two = set(sorted(before)[:2])
    try:
        # The call inherits them.
        os.sched_setaffinity(0, two)
        if usable_cores() != 2:
            pytest.skip("a quota leaves this process less than two cores")
        with at_work_on(digits, tmp_path / "s", 2) as process:
            wanted, found, give_up = [{core} for core in sorted(two)], [], time.monotonic() + 30
            # The second may still be starting.
            while found != wanted and time.monotonic() < give_up:
                found = sorted((os.sched_getaffinity(worker) for worker in children(process.pid)), key=min)
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
    finally:
        os.sched_setaffinity(0, before)
    assert found == wanted


def test_memory_does_not_grow_with_the_job(digits, python):
    """Ten times the samples take no more memory, beside what the index says of ten times the shards."""
    code = (
        "import resource, sys, tempfile; from vae_runtime.generation.run import generate\n"
        "generate(sys.argv[1], tempfile.mkdtemp() + '/s', int(sys.argv[2]), seed=1, workers=1, shard_size=4096)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    few, many = (int(python("-c", code, digits, n).stdout) for n in (20_000, 200_000))
    assert many < few * 1.05 + 4096


def test_a_stream_gives_what_is_generated(digits, undisturbed, root):
    vae = vae_runtime.load(digits)
    batches = list(vae.stream(1400, seed=7, batch_size=64))
    assert [len(batch) for batch in batches] == [64] * 21 + [56]
    assert np.array_equal(np.concatenate(batches), open_samples(undisturbed)[:])
    later = next(vae.stream(100, seed=7, start=640, batch_size=64))
    assert np.array_equal(later, batches[10])
    with pytest.raises(InputError, match="n: "):
        vae.stream(0)
    vae = vae_runtime.load(root / "models" / "digits-conditional")
    labels = np.arange(100) % 10
    found = np.concatenate(list(vae.stream(100, seed=1, conditions={"label": labels}, batch_size=64)))
    np.testing.assert_allclose(found, vae.sample(100, seed=1, conditions={"label": labels}), atol=1e-5)
    with pytest.raises(InputError, match=r"label.* got nothing"):
        vae.stream(10, seed=1)
