"""Scores of files of any length: what is read and written, in parts, and again after an interruption."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise, scoring
from vae_runtime.calibration import calibrate
from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import locked
from vae_runtime.manifest import Condition
from vae_runtime.row_files import conditions_of_rows, open_rows
from vae_runtime.scoring import Request, score_rows

TABLES = ("csv", "jsonl", "parquet", "npy", "npz")
NAMES = ["row", "elbo", "reconstruction", "kl", "mse", "mae", "p_value"]


@pytest.fixture
def x():
    return noise.normal(3, 0, 300, (3,), 9) / 2


@pytest.fixture
def vae(small_bundle, x):
    folder = small_bundle()
    calibrate(folder, x[:200], data="normal numbers")
    return vae_runtime.load(folder)


@pytest.fixture
def parts_of_64(monkeypatch):
    monkeypatch.setattr(scoring, "_ROWS", 64)


def rows(path, vae):
    return open_rows(path, vae.observation_shape, vae.manifest.observation.dtype)


def written(path, x):
    """A file of rows in the form of its name."""
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".csv":
        lines = ["a,b,c", *(",".join(repr(float(value)) for value in row) for row in x)]
        path.write_text("\n".join(lines) + "\n")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        columns = {"row": np.arange(len(x)), **{name: x[:, i] for i, name in enumerate("abc")}}
        pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=70)
    return path


def table(path):
    """The columns of a table that was written."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".npy":
        array = np.load(path)
        return {name: array[name] for name in array.dtype.names}
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return {name: c.to_numpy() for name, c in zip(NAMES, pyarrow.parquet.read_table(path).columns, strict=True)}
    lines = path.read_text().splitlines()
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in lines]
        return {name: np.array([record[name] for record in records]) for name in records[0]}
    values = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    return dict(zip(lines[0].split(","), values.T, strict=True))


@pytest.mark.parametrize("source", ["npy", "csv", "parquet"])
def test_every_source_gives_the_scores_of_its_rows(vae, x, tmp_path, parts_of_64, source):
    file = rows(written(tmp_path / f"x.{source}", x), vae)
    done = []
    summary = score_rows(vae, file, Request(out=tmp_path / "s.npy"), done.append)
    s, found = vae.score(x), table(tmp_path / "s.npy")
    assert list(found) == NAMES
    np.testing.assert_array_equal(found["row"], np.arange(300))
    for name in NAMES[1:]:
        np.testing.assert_allclose(found[name], getattr(s, name), rtol=1e-6)
        mean, error = summary.means[name]
        np.testing.assert_allclose(mean, getattr(s, name).mean())
        np.testing.assert_allclose(error, getattr(s, name).std(ddof=1) / np.sqrt(300))
    assert (summary.rows, done) == (300, [64, 128, 192, 256, 300])
    assert sorted(os.listdir(tmp_path)) == ["s.npy", "small", f"x.{source}"]


@pytest.mark.parametrize("suffix", TABLES)
def test_every_table_has_the_rows_and_their_numbers(vae, x, tmp_path, parts_of_64, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    x[250] = 9
    x[7] = -9
    file = rows(written(tmp_path / "x.npy", x), vae)
    request = {"threshold": 1 / 201, "contributions": tmp_path / "c.npy"}
    out = tmp_path / f"s.{suffix}"
    summary = score_rows(vae, file, Request(out=out, only_anomalies=True, **request))
    s = vae.score(x, contributions=True)
    wanted = np.flatnonzero(s.p_value <= 1 / 201)
    assert {7, 250} <= set(wanted.tolist())
    assert summary.anomalies == len(wanted) < 20
    found = table(out)
    assert list(found)[:7] == NAMES
    assert ("kl_per_dimension" in found) == (suffix == "npz")
    np.testing.assert_array_equal(found["row"], wanted)
    np.testing.assert_allclose(found["elbo"], s.elbo[wanted], rtol=1e-6)
    contributions = np.load(tmp_path / "c.npy")
    assert contributions.dtype == np.float32
    np.testing.assert_allclose(contributions, s.contributions[wanted], rtol=1e-5)
    first = out.read_bytes()
    score_rows(vae, file, Request(out=out, **request))
    assert len(table(out)["row"]) == 300
    score_rows(vae, file, Request(out=out, only_anomalies=True, **request))
    assert out.read_bytes() == first


def test_an_interrupted_call_goes_on(vae, x, tmp_path, parts_of_64):
    path = written(tmp_path / "x.csv", x)
    score_rows(vae, rows(path, vae), Request(out=tmp_path / "whole.csv"))

    def interrupt(done):
        if done == 128:
            raise KeyboardInterrupt

    out = tmp_path / "s.csv"
    with pytest.raises(KeyboardInterrupt):
        score_rows(vae, rows(path, vae), Request(out=out), interrupt)
    assert not out.exists()
    parts = tmp_path / "s.csv.parts"
    assert sorted(os.listdir(parts)) == ["00000000.npy", "00000001.npy", "call.json"]
    before = (parts / "00000001.npy").stat().st_mtime_ns
    # Another call is refused, and so is this one with other rows.
    with pytest.raises(VaeError, match="interrupted call with other k; repeat that call, or remove"):
        score_rows(vae, rows(path, vae), Request(out=out, k=3))
    seen = []
    score_rows(vae, rows(path, vae), Request(out=out), lambda done: seen.append((parts / "00000001.npy").stat()))
    assert seen[0].st_mtime_ns == before
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not parts.exists()


def test_an_altered_file_is_another_call(vae, x, tmp_path, parts_of_64):
    path = written(tmp_path / "x.npy", x)

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(vae, rows(path, vae), Request(out=tmp_path / "s.csv"), interrupt)
    written(path, np.concatenate([x, x]))
    with pytest.raises(VaeError, match="with other rows"):
        score_rows(vae, rows(path, vae), Request(out=tmp_path / "s.csv"))


@pytest.fixture
def interrupted(vae, x, tmp_path, parts_of_64):
    """A call that was interrupted after its first part: the file of rows, and functions that begin it and make it."""
    path = written(tmp_path / "x.npy", x)

    def interrupt(done):
        raise KeyboardInterrupt

    def call(model=vae, **fields):
        score_rows(model, rows(path, vae), Request(out=tmp_path / "s.csv", **fields))

    def begin(model=vae):
        with pytest.raises(KeyboardInterrupt):
            score_rows(model, rows(path, vae), Request(out=tmp_path / "s.csv"), interrupt)

    return path, begin, call


def test_a_file_of_the_same_size_is_another_call(interrupted, x):
    path, begin, call = interrupted
    begin()
    before = path.stat()
    np.save(path, x[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    with pytest.raises(VaeError, match="with other rows"):
        call()


def test_other_conditions_are_another_call(root, tmp_path, parts_of_64):
    vae = vae_runtime.load(root / "models" / "digits-conditional")
    path = written(tmp_path / "x.npy", vae.sample(70, conditions={"label": 1}, seed=1))

    def interrupt(done):
        raise KeyboardInterrupt

    out = tmp_path / "s.csv"
    with pytest.raises(KeyboardInterrupt):
        score_rows(vae, rows(path, vae), Request(out=out, conditions={"label": 1}), interrupt)
    with pytest.raises(VaeError, match="with other conditions"):
        score_rows(vae, rows(path, vae), Request(out=out, conditions={"label": 2}))


def test_a_call_goes_on_with_the_seed_that_it_drew(interrupted, small_bundle, tmp_path):
    _, begin, call = interrupted
    plain = vae_runtime.load(small_bundle(name="plain"))
    begin(plain)
    seed = json.loads((tmp_path / "s.csv.parts" / "call.json").read_text())["seed"]
    call(plain)
    first = (tmp_path / "s.csv").read_bytes()
    call(plain, seed=seed)
    assert (tmp_path / "s.csv").read_bytes() == first


def test_two_calls_do_not_write_the_same_table(interrupted, tmp_path):
    _, begin, call = interrupted
    begin()
    with locked(tmp_path / "s.csv.parts"), pytest.raises(VaeError, match="another call is at work here"):
        call()
    call()


def test_a_threshold_that_no_score_reaches_is_refused(interrupted):
    _, _, call = interrupted
    with pytest.raises(
        InputError, match=r"threshold: expected at least 0\.00498, below which .* 200 held-out .* 0\.004;"
    ):
        call(threshold=0.004)
    call(threshold=1 / 201)


@pytest.mark.long
def test_a_killed_command_leaves_what_makes_the_same_bytes(vae, tmp_path):
    many = noise.normal(4, 0, 280_000, (3,), 9)
    np.save(tmp_path / "x.npy", many)
    command = [sys.executable, "-m", "vae_runtime", "score", str(vae.bundle.path), "x.npy", "--out"]
    subprocess.run([*command, "whole.csv"], cwd=tmp_path, check=True, capture_output=True)
    kills = 0
    for wanted in (1, 3):
        with subprocess.Popen([*command, "s.csv"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            while process.poll() is None and not (tmp_path / "s.csv.parts" / f"{wanted:08}.npy").exists():
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "s.csv").exists()
    assert kills == 2
    subprocess.run([*command, "s.csv"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["a,b,c", "1,2,3", "1,2"], r"row 1: expected 3 numbers joined by commas, got '1,2'"),
        (["1,2,3", "1,x,3"], r"row 1: expected 3 numbers joined by commas, got '1,x,3'"),
        (["1,2,3", "", "1,2,3"], r"row 1: expected 3 numbers joined by commas, got ''"),
        (["1,2,3,4"], r"row 0: expected 3 numbers"),
        (["1,2,3", "1,2,nan"], r"expected finite"),
        (["a,b,c"], r"expected at least one row, got none"),
        ([], r"expected at least one row, got none"),
    ],
)
def test_a_wrong_line_is_named(vae, tmp_path, lines, match):
    (tmp_path / "x.csv").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError, match=match):
        score_rows(vae, rows(tmp_path / "x.csv", vae), Request(out=tmp_path / "s.csv"))
    assert sorted(os.listdir(tmp_path)) == ["small", "x.csv"]


def test_a_csv_file_may_have_no_header_and_quotes(vae, x, tmp_path):
    (tmp_path / "x.csv").write_text('"1","2",3\r\n4,5,6\r\n')
    parts = list(rows(tmp_path / "x.csv", vae).parts(10))
    np.testing.assert_array_equal(parts, [[[1, 2, 3], [4, 5, 6]]])
    # A header may have names that are numbers.
    (tmp_path / "x.csv").write_text("a,1,2\n4,5,6\n")
    np.testing.assert_array_equal(list(rows(tmp_path / "x.csv", vae).parts(10)), [[[4, 5, 6]]])


def test_wrong_files_are_refused(vae, x, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        score_rows(vae, rows(tmp_path / "none.csv", vae), Request())
    with pytest.raises(InputError, match=r"ending in \.npy or"):
        rows(tmp_path / "x.txt", vae)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"x\.npy: expected a \.npy file of rows"):
        score_rows(vae, rows(tmp_path / "x.npy", vae), Request())
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x\.csv: expected a \.csv file of rows"):
        score_rows(vae, rows(tmp_path / "x.csv", vae), Request())
    written(tmp_path / "x.npy", x)
    with pytest.raises(VaeError, match="cannot write here"):
        score_rows(vae, rows(tmp_path / "x.npy", vae), Request(out=tmp_path / "none" / "s.csv"))
    with pytest.raises(InputError, match=r"threshold: there are no p-values: .*seed=0, got seed=5"):
        score_rows(vae, rows(tmp_path / "x.npy", vae), Request(threshold=0.1, seed=5))


@pytest.mark.parametrize("kind", ["list", "fixed", "binary", "null", "text", "short"])
def test_columns_of_parquet(vae, x, tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    column = {
        "list": lambda: pa.array(x.tolist()),
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3),
        "binary": lambda: pa.array([row.tobytes() for row in x], pa.binary(12)),
        "null": lambda: pa.array([*x[:5].tolist(), None]),
        "text": lambda: pa.array(["a", "b"]),
        "short": lambda: pa.array([*x[:5].tolist(), [1.0, 2.0]]),
    }[kind]()
    pyarrow.parquet.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
    file = rows(tmp_path / "x.parquet", vae)
    if kind in ("null", "text", "short"):
        match = {"null": "row 5: expected a value in 'x', got null", "text": "expected numbers in 'x'"}
        with pytest.raises(InputError, match=match.get(kind, "row 5: expected 3 values, got 2")):
            list(file.parts(100))
        return
    parts = list(file.parts(128, 70))
    assert [len(part) for part in parts] == [128, 102]
    np.testing.assert_allclose(np.concatenate(parts), x[70:])


@pytest.mark.parametrize("kind", ["list", "fixed", "mixed"])
def test_lists_of_lists_in_parquet(x, tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    values = np.resize(x, (150, 1, 2, 3))
    number = pa.float64()
    inner = pa.list_(number, 3) if kind == "fixed" else pa.list_(number)
    middle = pa.list_(inner) if kind == "list" else pa.list_(inner, 2)
    column = pa.array(values.tolist(), pa.list_(middle, 1) if kind == "fixed" else pa.large_list(middle))
    pyarrow.parquet.write_table(pa.table({"x": column, "row": np.arange(150)}), tmp_path / "x.parquet")
    parts = list(open_rows(tmp_path / "x.parquet", (1, 2, 3), "float32").parts(64, 20))
    assert [part.shape for part in parts] == [(64, 1, 2, 3), (64, 1, 2, 3), (2, 1, 2, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), values[20:])
    with pytest.raises(InputError, match=r"row 0: expected 3 values in each list of \[1, 3, 2\], got 2; correct"):
        list(open_rows(tmp_path / "x.parquet", (1, 3, 2), "float32").parts(64))
    with pytest.raises(
        InputError, match=r"expected lists nested as \[2, 3\] is, or flat ones of 6 values, got lists in 3"
    ):
        list(open_rows(tmp_path / "x.parquet", (2, 3), "float32").parts(64))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([[[1, 2], [3, 4]], [[5, 6], [7]]], r"row 1: expected 2 values in each list of \[2, 2\], got 1;"),
        ([[[1, 2], [3, 4]], [[5, 6], None]], r"row 1: expected 2 values in each list of \[2, 2\], got null;"),
        ([[[1, 2], [3, 4]], [[5, 6]]], r"row 1: expected 2 values in each list of \[2, 2\], got 1;"),
        ([[["a", "b"], ["c", "d"]]], "expected numbers in 'x', got object; leave"),
    ],
)
def test_a_list_of_lists_that_is_no_row_is_named(tmp_path, values, match):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"x": pa.array(values)}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=match):
        list(open_rows(tmp_path / "x.parquet", (2, 2), "float32").parts(64))


@pytest.mark.parametrize("form", ["csv", "columns", "lists"])
@pytest.mark.parametrize(("value", "fits"), [(2**24, True), (2**25, True), (2**24 + 1, False), (-(2**62) - 1, False)])
def test_integers_that_float32_does_not_hold_are_refused(tmp_path, form, value, fits):
    path = tmp_path / ("x.csv" if form == "csv" else "x.parquet")
    if form == "csv":
        path.write_text(f"a,b\n1,2\n0.5,{value}\n")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        # Beside floats, a column of integers would become one of float64.
        columns = {"a": [1.0, 0.5], "b": [2, value]} if form == "columns" else {"x": [[1, 2], [0, value]]}
        pyarrow.parquet.write_table(pa.table(columns), path)
    if fits:
        assert np.concatenate(list(open_rows(path, (2,), "float32").parts(64)))[1, 1] == value
        return
    with pytest.raises(
        InputError, match=rf"row 1: expected integers that float32 holds exactly, .* got {value}; scale"
    ):
        list(open_rows(path, (2,), "float32").parts(64))


def test_columns_of_bytes_are_numbers_and_lists_of_bytes_8_bit_values(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = [pa.array(each, pa.uint8()) for each in ([1, 255], [3, 4])]
    pyarrow.parquet.write_table(pa.table({"a": columns[0], "b": columns[1]}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(
        pa.table({"x": pa.array([[1, 3], [255, 4]], pa.list_(pa.uint8()))}), tmp_path / "b.parquet"
    )
    for name, dtype in (("a", np.float32), ("b", np.uint8)):
        values = np.concatenate(list(open_rows(tmp_path / f"{name}.parquet", (2,), "float32").parts(64)))
        assert values.dtype == dtype
        assert values.tolist() == [[1, 3], [255, 4]]


def test_integers_of_a_model_that_takes_integers_stay_what_they_are(tmp_path):
    (tmp_path / "x.csv").write_text(f"{2**40 + 1},2\n")
    assert next(open_rows(tmp_path / "x.csv", (2,), "int64").parts(1)).tolist() == [[2**40 + 1, 2]]


def test_large_floats_are_rounded_as_all_floats_are(tmp_path):
    (tmp_path / "x.csv").write_text("16777217.0,1e20\n")
    assert next(open_rows(tmp_path / "x.csv", (2,), "float32").parts(1)).tolist() == [[16777217.0, 1e20]]


def test_conditions_go_with_their_rows(digits, root, tmp_path, parts_of_64):
    vae = vae_runtime.load(root / "models" / "digits-conditional")
    labels = np.arange(130) % 10
    x = vae.sample(130, conditions={"label": labels}, seed=1)
    np.save(tmp_path / "x.npy", x)
    file = rows(tmp_path / "x.npy", vae)
    score_rows(vae, file, Request(conditions={"label": labels}, seed=2, out=tmp_path / "s.npy"))
    s = vae.score(x, conditions={"label": labels}, seed=2)
    np.testing.assert_allclose(np.load(tmp_path / "s.npy")["elbo"], s.elbo, rtol=1e-5)
    with pytest.raises(InputError, match="130 as the file has rows, got 140"):
        score_rows(vae, file, Request(conditions={"label": np.arange(140) % 10}, seed=2))
    with pytest.raises(InputError, match="label"):
        score_rows(vae, file, Request(conditions={"label": labels[:70]}, seed=2))


def test_rows_and_conditions_that_are_refused_leave_no_parts(digits, root, tmp_path, parts_of_64):
    """Corrected ones make another call, which parts of the first would keep from its place."""
    vae = vae_runtime.load(root / "models" / "digits-conditional")
    labels, out = np.arange(130) % 10, tmp_path / "s.csv"
    x = vae.sample(130, conditions={"label": labels}, seed=1)
    damaged = x.copy()
    damaged[100, 0, 3, 4] = np.nan
    for file, given, words in (
        (damaged, labels, r"x\[36, 0, 3, 4\].* is read from row 64 on"),
        (x, labels[:70], "label"),
        (x, np.arange(140) % 10, "expected one value, or 130 as the file has rows, got 140; give others"),
    ):
        np.save(tmp_path / "x.npy", file)
        with pytest.raises(InputError, match=words):
            score_rows(vae, rows(tmp_path / "x.npy", vae), Request(conditions={"label": given}, out=out))
        assert os.listdir(tmp_path) == ["x.npy"]
    assert score_rows(vae, rows(tmp_path / "x.npy", vae), Request(conditions={"label": labels}, out=out)).rows == 130


def test_a_disk_that_fails_for_a_while_takes_no_parts(vae, x, tmp_path, parts_of_64, monkeypatch):
    file, out = rows(written(tmp_path / "x.npy", x[:130]), vae), tmp_path / "s.csv"
    mapped, words = np.lib.format.open_memmap, os.strerror(errno.ESTALE)

    class Failing:
        def __init__(self, *given, **named):
            self.rows = mapped(*given, **named)

        def __getitem__(self, part):
            if part.start:
                raise OSError(errno.ESTALE, words)
            return self.rows[part]

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "open_memmap", Failing)
        with pytest.raises(VaeError, match=rf"x\.npy: cannot be read: {words}; try it again") as error:
            score_rows(vae, file, Request(out=out))
    assert not isinstance(error.value, InputError)
    assert (tmp_path / "s.csv.parts").is_dir()
    assert score_rows(vae, file, Request(out=out)).rows == 130


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_a_folder_is_no_file_of_rows(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"x{suffix}").mkdir()
    with pytest.raises(InputError, match=rf"x\{suffix}: expected a \{suffix} file of rows: .* a folder; write it"):
        list(open_rows(tmp_path / f"x{suffix}", (2,), "float32").parts(4))


def test_every_place_is_looked_at_before_a_row_is_scored(vae, x, tmp_path):
    file = rows(written(tmp_path / "x.npy", x), vae)
    for name in ("out", "contributions", "picture"):
        place = tmp_path / "gone" / {"out": "s.csv", "contributions": "c.npy", "picture": "p.png"}[name]
        request = Request(**{"out": tmp_path / "s.csv", name: place})
        with pytest.raises(VaeError, match=f"gone.{place.name}: cannot write here: no such folder; choose a folder"):
            score_rows(vae, file, request, lambda done: pytest.fail("a part was scored"))
        assert not [each for each in os.listdir(tmp_path) if each.startswith("s.csv")]


def test_one_vector_may_be_that_of_all_rows():
    known = [Condition(name="slant", shape=(2,)), Condition(name="label", shape=(), dtype="int64")]
    given = {"slant": [0.5, 1], "label": [3, 4, 5]}
    assert conditions_of_rows(known, given, 1, 3) == {"slant": [0.5, 1], "label": [4, 5]}
    each = conditions_of_rows(known, {"slant": [[0, 1], [2, 3], [4, 5]], "label": 7}, 1, 3)
    assert each == {"slant": [[2, 3], [4, 5]], "label": 7}


def test_a_picture_of_the_worst(digits, tmp_path, parts_of_64):
    image = pytest.importorskip("PIL.Image")
    vae = vae_runtime.load(digits)
    x = vae.sample(130, seed=1)
    x[[3, 100]] = noise.uniform(1, 0, 2, (1, 8, 8))
    np.save(tmp_path / "x.npy", x)
    score_rows(vae, rows(tmp_path / "x.npy", vae), Request(seed=0, picture=tmp_path / "p.png"))
    with image.open(tmp_path / "p.png") as opened:
        picture = np.asarray(opened)
    # Three pictures of 8 x 8 in each of 8 lines, a line between them.
    factor = picture.shape[1] // (3 * 9 - 1)
    assert picture.shape == ((8 * 9 - 1) * factor, (3 * 9 - 1) * factor)
    small = picture[::factor, ::factor]
    worst = sorted((3, 100), key=lambda row: vae.score(x[[row]], seed=0, start=row).elbo[0])
    np.testing.assert_allclose(small[:8, :8], np.rint(x[worst[0], 0] * 255), atol=1)
    assert small[:8, 18:].max() == 255
    # The loss is that of the row's own noise.
    loss = -vae.score(x[[worst[0]]], seed=0, start=worst[0], contributions=True).contributions[0, 0]
    loss -= loss.min()
    np.testing.assert_allclose(small[:8, 18:], np.rint(loss / loss.max() * 255), atol=1)


def test_memory_does_not_grow_with_the_file(vae, tmp_path, parts_of_64):
    """What is held at once are parts: no array has all rows."""
    np.save(tmp_path / "x.npy", np.zeros((64 * 40, 3), np.float32))
    sizes = []

    class Watched:
        def __getattr__(self, name):
            return getattr(vae, name)

        def score(self, x, **options):
            sizes.append(len(x))
            return vae.score(x, **options)

    score_rows(Watched(), rows(tmp_path / "x.npy", vae), Request(out=tmp_path / "s.csv"))
    assert sizes == [64] * 40
