"""Reading a folder of samples: as an array's first axis, in every format, without loading or opening all of it."""

import json
import os
import pickle
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from format_libraries import LIBRARIES
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_runtime.errors import InputError, VaeError
from vae_runtime.generation.formats import row_types, table
from vae_runtime.generation.run import generate
from vae_runtime.generation.samples import open_samples

CODES = np.dtype([("mu", "f4", (2,)), ("code", "i8")])
N, SHARD = 107, 10


@pytest.fixture(scope="module", params=table.FORMATS)
def name(request):
    """Each format whose library is here."""
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param], reason="the library of this format is an extra")
    return request.param


def write_samples(folder, name, rows, size):
    """A finished folder of these rows, so many in a shard."""
    folder.mkdir()
    shards = []
    for number, start in enumerate(range(0, len(rows), size)):
        part = rows[start : start + size]
        path = folder / f"shard-{number:08}.{name}"
        with path.open("wb") as file:
            table.write(name, file, part.shape, part.dtype, [part], {"start": str(start)})
        shards.append(
            {"file": path.name, "start": start, "stop": start + len(part), "bytes": path.stat().st_size, "sha256": ""}
        )
    dtype, shape = row_types.dtype_to_json(rows.dtype), list(rows.shape[1:])
    job = {"format": name, "dtype": dtype, "shape": shape, "n": len(rows), "seed": 7}
    (folder / "index.json").write_text(json.dumps({"format_version": "1.0", "job": job, "shards": shards}))


def rows_of(dtype, n=N):
    rows = np.zeros((n, 3, 2) if np.dtype(dtype).names is None else (n,), dtype)
    for part in [rows] if rows.dtype.names is None else [rows[field] for field in rows.dtype.names]:
        part[...] = np.random.default_rng(0).integers(0, 256, part.shape)
    return rows


@pytest.fixture(scope="module", params=["u1", "f4", CODES], ids=["uint8", "float32", "structured"])
def rows(request):
    return rows_of(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, name, rows):
    folder = tmp_path_factory.mktemp("read") / "samples"
    write_samples(folder, name, rows, SHARD)
    return folder


@pytest.fixture(scope="module")
def samples(folder):
    return open_samples(folder)


def test_what_is_there(samples, rows):
    assert len(samples) == N
    assert samples.shape == rows.shape
    assert samples.dtype == rows.dtype
    found = list(samples)
    assert np.array_equal(np.array(found), rows)
    assert not np.shares_memory(found[0], found[1])


NUMBERS = st.integers(-N, N - 1)
INDICES = st.one_of(
    NUMBERS,
    NUMBERS.map(np.int16),
    st.slices(N),
    st.lists(NUMBERS, max_size=30),
    st.lists(NUMBERS, max_size=30).map(lambda numbers: np.array(numbers, np.int16)),
    st.lists(NUMBERS, min_size=6, max_size=6).map(lambda numbers: np.array(numbers).reshape(2, 3)),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
)


@settings(deadline=None, max_examples=50)
@given(index=INDICES)
def test_indices_are_those_of_an_array(index, samples, rows):
    wanted = rows[index] if not isinstance(index, list) or index else rows[:0]
    found = samples[index]
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)
    # A copy of its own, that may be written to.
    if isinstance(found, np.ndarray) and found.size:
        found[...] = np.zeros((), found.dtype)
        assert np.array_equal(samples[index], wanted)


@pytest.mark.parametrize("index", [N, -N - 1, 2**70, [0, N], np.array([-N - 1]), np.array([2**63], np.uint64)])
def test_what_lies_beyond_is_an_index_error(samples, index):
    with pytest.raises(IndexError, match=f"expected {-N} … {N - 1}, got"):
        samples[index]


@pytest.mark.parametrize(
    "index", ["mu", 1.0, [1.5], None, ..., (1, 2), [True], np.ones(N + 1, bool), np.zeros((0,), bool), [[1], [2, 3]]]
)
def test_what_is_no_index_is_refused(samples, index):
    with pytest.raises(InputError, match="expected an integer, a slice, integers, or a mask of all rows, got"):
        samples[index]


@pytest.mark.parametrize("size", [1, 7, SHARD, 1000])
def test_batches(samples, rows, size):
    found = list(samples.batches(size))
    assert {len(batch) for batch in found[:-1]} <= {size}
    assert np.array_equal(np.concatenate(found), rows)
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError, match="size: "):
            samples.batches(wrong)


def test_a_batch_of_a_data_loader_is_one_array(samples, rows):
    assert np.array_equal(samples.__getitems__([5, 99, 5]), rows[[5, 99, 5]])
    assert samples.__getitems__([]).shape == (0, *rows.shape[1:])


def test_pickled_it_reads_on(samples, rows):
    assert np.array_equal(samples[50:70], rows[50:70])
    assert np.array_equal(pickle.loads(pickle.dumps(samples))[:], rows)


def test_threads_share_it(samples, rows):
    wrong = []

    def read(seed):
        chance = np.random.default_rng(seed)
        for _ in range(60):
            numbers = chance.integers(0, N, 20)
            if not np.array_equal(samples[numbers], rows[numbers]) or not np.array_equal(
                samples[numbers[0]], rows[numbers[0]]
            ):
                wrong.append(numbers)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_data_loader_of_torch_gives_every_row_once(name, tmp_path, workers):
    torch = pytest.importorskip("torch", reason="the exporter's tests have it")
    rows = rows_of("u1")
    write_samples(tmp_path / "s", name, rows, SHARD)
    loader = torch.utils.data.DataLoader(
        open_samples(tmp_path / "s"), batch_size=8, shuffle=True, num_workers=workers, collate_fn=torch.from_numpy,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    found = torch.cat(list(loader)).numpy()
    assert not np.array_equal(found, rows)
    assert sorted(map(bytes, found)) == sorted(map(bytes, rows))
    plain = next(iter(torch.utils.data.DataLoader(open_samples(tmp_path / "s"), batch_size=8)))
    assert np.array_equal(plain.numpy(), rows[:8])


def test_a_remote_store_is_read(name, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="remote stores need it")
    rows = rows_of(CODES)
    write_samples(tmp_path / "s", name, rows, SHARD)
    fsspec.filesystem("memory").put(f"{tmp_path}/s/", f"/read-{name}/", recursive=True)
    samples = open_samples(f"memory://read-{name}")
    assert np.array_equal(samples[:], rows)
    assert np.array_equal(samples[[99, 5, -1]], rows[[99, 5, -1]])
    assert np.array_equal(pickle.loads(pickle.dumps(samples))[3:5], rows[3:5])
    fsspec.filesystem("memory").rm(f"/read-{name}/shard-00000004.{name}")
    with pytest.raises(
        VaeError, match=rf"memory://read-{name}/shard-00000004\.{name}: cannot be read: the file is missing"
    ):
        open_samples(f"memory://read-{name}")[45]


def open_files(folder):
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="mapped files are counted in /proc")
def test_few_shards_are_kept_open_and_only_those_asked_for(name, tmp_path):
    rows = rows_of("u1", 300)
    write_samples(tmp_path / "s", name, rows, 1)
    samples = open_samples(tmp_path / "s")
    assert open_files(tmp_path) == 0
    for number in range(10):
        (tmp_path / "s" / f"shard-{299 - number:08}.{name}").unlink()
    assert np.array_equal(samples[5], rows[5])
    assert open_files(tmp_path) == 1
    assert np.array_equal(samples[:290], rows[:290])
    assert 1 < open_files(tmp_path) <= 64


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "expected .* bytes"),
        (lambda path: path.write_bytes(b""), "expected .* bytes .*, got 0"),
        (lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_a_damaged_shard_is_named_and_the_others_are_read(name, tmp_path, damage, words):
    rows = rows_of("u1", 40)
    write_samples(tmp_path / "s", name, rows, 16)
    damage(tmp_path / "s" / f"shard-00000001.{name}")
    samples = open_samples(tmp_path / "s")
    for index in (20, slice(10, 20), [31, 0]):
        with pytest.raises(VaeError, match=rf"shard-00000001\.{name}: .*{words}"):
            samples[index]
    for index in (3, slice(32, 40), [39, 1]):
        assert np.array_equal(samples[index], rows[index])


@pytest.mark.parametrize("other", [rows_of("u1", 17), rows_of("i1", 16), rows_of(CODES, 16)])
def test_the_shard_of_another_job_is_refused(name, tmp_path, other):
    write_samples(tmp_path / "s", name, rows_of("u1", 16), 16)
    write_samples(tmp_path / "t", name, other, 17)
    shutil.copy(tmp_path / "t" / f"shard-00000000.{name}", tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    index["shards"][0]["bytes"] = (tmp_path / "s" / f"shard-00000000.{name}").stat().st_size
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    with pytest.raises(VaeError, match=rf"shard-00000000\.{name}: cannot be read: expected .*, got"):
        open_samples(tmp_path / "s")[3]


def edited(path, value):
    """A function that puts a value at a place of an index."""

    def edit(index):
        for key in path[:-1]:
            index = index[key]
        index[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (["shards"], [None, {}, [], 7, "shards", [None] * 11]),
        (["job"], [None, [], {}, "job"]),
        (["job", "n"], [None, "107", 106, 108, 107.0, True, 2**70, -1, 0]),
        (["job", "seed"], [None, "7", 7.0]),
        (["job", "shape"], [None, 6, [3, -2], [3, 0], [3, True], [2**40, 2**40], [2**70], ["3"], {}]),
        (["job", "dtype"], [None, "object", "U8", [], [["x", "object", []]], [["x", "uint8", [2**60]]], 8]),
        (["job", "format"], [None, "hdf5", [], {}, "../npy"]),
        (["shards", 0], [None, [], {}, 7, "shard"]),
        (["shards", 0, "start"], [None, 1, -1, "0", False]),
        (["shards", 0, "stop"], [None, 0, -10, 9, 11, "10", 2**70, 10.0]),
        (["shards", 10, "stop"], [106, 108, True]),
        (["shards", 0, "bytes"], [None, 0, -1, "1", 2**70, True]),
        (["shards", 0, "file"], [
            None, 7, "", ".", "..", "/etc/passwd", "../s/shard-00000000.npy", "sub/shard-00000000.npy", "index.json",
            "shard-00000000.npy\n", "shard-00000000.parquet", "shard-٣.npy", "s3://other/shard-00000000.npy",
        ]),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be_is_refused(tmp_path, path, values):
    write_samples(tmp_path / "s", "npy", rows_of("u1"), SHARD)
    assert len(open_samples(tmp_path / "s")) == N
    file = tmp_path / "s" / "index.json"
    sound = file.read_text()
    for value in values:
        index = json.loads(sound)
        edited(path, value)(index)
        file.write_text(json.dumps(index))
        with pytest.raises(VaeError, match=r"index\.json: expected consecutive shards up to n"):
            open_samples(tmp_path / "s")
    for text in (
        "",
        "[]",
        "7",
        "[" * 100_000,
        '{"job": ' + "9" * 5000 + "}",
    ):
        file.write_text(text)
        with pytest.raises(VaeError, match=r"index\.json: "):
            open_samples(tmp_path / "s")


def test_an_index_that_claims_more_than_there_is_takes_no_memory(name, tmp_path):
    """The file is opened, and found to be another one, before room is made for its rows."""
    write_samples(tmp_path / "s", name, rows_of("u1", 10), 10)
    file = tmp_path / "s" / "index.json"
    index = json.loads(file.read_text())
    index["job"]["shape"] = [2**47]
    file.write_text(json.dumps(index))
    for which in (0, slice(None), [1, 2]):
        with pytest.raises(VaeError, match="cannot be read"):
            open_samples(tmp_path / "s")[which]


def test_a_missing_library_is_told(name, tmp_path, monkeypatch):
    if name not in LIBRARIES:
        pytest.skip("this format has no library of its own")
    write_samples(tmp_path / "s", name, rows_of("u1"), SHARD)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(VaeError, match=rf"pip install 'vae-runtime\[{name}\]'"):
        open_samples(tmp_path / "s")[0]


# What `generate` writes.

JOB = {"n": 1400, "seed": 7, "batch_size": 64, "shard_size": 256}


def content(folder):
    """The bytes of every shard."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("shard-*") if path.suffix != ".json"}


@pytest.fixture(scope="module")
def generated(digits, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "samples"
    generate(digits, folder, **JOB, format=name, dtype="uint8", workers=1)
    return folder


def test_every_format_holds_the_same_samples(digits, generated, name, tmp_path):
    plain = generate(digits, tmp_path / "s", **JOB, dtype="uint8", workers=1)
    samples = open_samples(generated)
    assert samples.job["format"] == name
    assert len(content(generated)) == 6
    assert np.array_equal(samples[:], plain[:])


@pytest.mark.parametrize(("workers", "parts"), [(2, 1), (1, 3)])
def test_who_makes_them_changes_no_byte(digits, generated, name, tmp_path, workers, parts):
    for k in range(parts, 0, -1):
        generate(
            digits, tmp_path / "s", **JOB, format=name, dtype="uint8", workers=workers,
            part=(k, parts) if parts > 1 else None,
        )  # fmt: skip
    assert content(tmp_path / "s") == content(generated)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-1], lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]]
)
def test_a_damaged_shard_alone_is_made_again(digits, generated, name, tmp_path, damage):
    folder = Path(shutil.copytree(generated, tmp_path / "s"))
    path = folder / f"shard-00000002.{name}"
    path.write_bytes(damage(path.read_bytes()))
    assert content(folder) != content(generated)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob(f"*.{name}")}
    generate(digits, folder, **JOB, format=name, dtype="uint8", workers=1)
    assert content(folder) == content(generated)
    assert [each for each, then in before.items() if (folder / each).stat().st_mtime_ns != then] == [path.name]


def test_another_format_is_another_job(digits, generated, name, tmp_path):
    folder = Path(shutil.copytree(generated, tmp_path / "s"))
    other = "npy" if name != "npy" else "safetensors"
    with pytest.raises(InputError, match=f"format: '{name}' in the folder, '{other}' now"):
        generate(digits, folder, **JOB, format=other, dtype="uint8", workers=1)
    with pytest.raises(InputError, match=f"format: expected {', '.join(table.FORMATS)}, got 'hdf5'"):
        generate(digits, tmp_path / "t", **JOB, format="hdf5")
    assert not (tmp_path / "t").exists()
    assert content(folder) == content(generated)


def test_a_format_without_its_library_leaves_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(VaeError, match=r"pip install 'vae-runtime\[parquet\]'"):
        generate(digits, tmp_path / "s", **JOB, format="parquet")
    assert not (tmp_path / "s").exists()


def test_a_disk_that_is_full_is_told(digits, generated, name, tmp_path, python):
    """By a limit on the size of files, which stops a write in the middle as a full disk does."""
    resource = pytest.importorskip("resource", reason="a limit on the size of files is set")
    size = min(map(len, content(generated).values())) // 2
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {resource.RLIM_INFINITY}))\n"
        "from vae_runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python(
        "-c", code, "generate", digits, "-n", 1400, "--seed", 7, "--batch-size", 64, "--shard-size", 256, "--dtype",
        "uint8", "--format", name, "--workers", 1, "--out", "s", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"error: s/shard-00000000.{name}: not written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
