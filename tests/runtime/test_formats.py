"""How rows lie in a shard's file: as the formats' own libraries read and write them, whatever the batches were."""

import io
import json
import re
import sys
import tracemalloc

import numpy as np
import pytest
from format_libraries import LIBRARIES
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_runtime.cli.main import main
from vae_runtime.errors import InputError, VaeError
from vae_runtime.generation.formats import row_types, table
from vae_runtime.generation.run import generate

POSTERIOR = np.dtype([("mu", "f4", (3,)), ("std", "f4", (3,)), ("z", "f2", (2, 2)), ("code", "i8")])
ABOUT = {"seed": "7", "start": "512", "bundle": "sha256:0"}


@pytest.fixture(scope="module", params=table.FORMATS)
def name(request):
    """Each format whose library is here."""
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param], reason="the library of this format is an extra")
    return request.param


def rows_of(shape, dtype, seed=0):
    """Random numbers of any type."""
    rows = np.zeros(shape, dtype)
    for part in [rows] if rows.dtype.names is None else [rows[field] for field in rows.dtype.names]:
        part[...] = np.random.default_rng(seed).integers(0, 200, part.shape)
    return rows


def written(name, rows, size=3, about=ABOUT):
    """A shard's bytes; every batch lies where the one before it did."""
    file, buffer = io.BytesIO(), np.empty((size, *rows.shape[1:]), rows.dtype)

    def batches():
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            buffer[: len(part)] = part
            yield buffer[: len(part)]
            buffer[...] = 0

    table.write(name, file, rows.shape, rows.dtype, batches(), about)
    return file.getvalue()


KINDS = st.sampled_from([np.dtype(kind) for kind in ("u1", "f4", "i8", "f2", "bool")])
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@st.composite
def shards(draw):
    """Rows, of one type or structured."""
    dtype = draw(KINDS | st.just(POSTERIOR))
    if draw(st.booleans()):
        names = draw(
            st.lists(st.from_regex("[A-Za-z_][A-Za-z0-9_.]{0,9}", fullmatch=True), min_size=1, max_size=3, unique=True)
        )
        dtype = np.dtype([(name if name != "index" else "i", draw(KINDS), draw(SHAPES)) for name in names])
    return rows_of((draw(st.integers(1, 40)), *draw(SHAPES)), dtype, draw(st.integers(0, 9)))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), rows=shards(), size=st.integers(1, 50))
def test_what_is_written_is_read(data, rows, size, name, tmp_path_factory):
    content = written(name, rows, size)
    assert content == written(name, rows, len(rows))
    path = tmp_path_factory.getbasetemp() / f"round-trip.{name}"
    path.write_bytes(content)
    first = data.draw(st.integers(0, len(rows) - 1))
    numbers = np.array(sorted(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))))
    for source in (path, content):
        found = table.read(name, source, rows.shape, rows.dtype)
        for which in (slice(0, len(rows)), slice(first, len(rows)), slice(0, first + 1), numbers):
            assert found(which).dtype == rows.dtype
            assert np.array_equal(found(which), rows[which])


@pytest.mark.parametrize("wrong", [rows_of((9, 3), "f4"), rows_of((11, 3), "f4"), rows_of((10, 3), "i4"),
                                   rows_of((10, 4), "f4"), rows_of((10,), POSTERIOR)])  # fmt: skip
def test_batches_of_another_kind_than_the_header_are_refused(name, wrong):
    file = io.BytesIO()
    with pytest.raises(InputError, match=r"batches: expected float32 \[10, 3\] in total, got"):
        table.write(name, file, (10, 3), "f4", (wrong[first : first + 4] for first in range(0, 12, 4)), ABOUT)


def test_npy_is_what_numpy_writes():
    for rows in (rows_of((5, 2, 3), "f4"), rows_of((4,), POSTERIOR)):
        file = io.BytesIO()
        np.save(file, rows)
        assert written("npy", rows) == file.getvalue()


def test_safetensors_is_what_its_library_writes():
    library = pytest.importorskip("safetensors.numpy", reason="the library is an extra")
    for rows in (rows_of((5, 2, 3), "u1"), rows_of((4,), POSTERIOR)):
        tensors = {"x": rows} if rows.dtype.names is None else {n: rows[n].copy() for n in rows.dtype.names}
        # The library orders several words differently in each process.
        assert written("safetensors", rows, about={"start": "0"}) == library.save(tensors, {"start": "0"})


def test_parquet_is_a_table_that_says_how_to_decode_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the library is an extra")
    rows = rows_of((5000,), POSTERIOR)
    (tmp_path / "x.parquet").write_bytes(written("parquet", rows, 512))
    table = parquet.read_table(tmp_path / "x.parquet")
    about = json.loads(table.schema.metadata[b"vae_runtime"])
    fields = about.pop("fields")
    assert about == ABOUT
    assert table.column_names == ["index", "mu", "std", "z", "code"]
    assert table["index"].to_pylist() == list(range(512, 5512))
    for field in POSTERIOR.names:
        assert str(table.schema.field(field).type) == f"fixed_size_binary[{POSTERIOR[field].itemsize}]"
        values = np.frombuffer(b"".join(table[field].to_pylist()), fields[field]["dtype"])
        assert np.array_equal(values.reshape(-1, *fields[field]["shape"]), rows[field])
    column = parquet.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"


def test_a_row_group_is_small():
    parquet = pytest.importorskip("pyarrow.parquet", reason="the library is an extra")
    content = written("parquet", rows_of((3000, 1000), "u1"), 700)
    metadata = parquet.ParquetFile(io.BytesIO(content)).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [1048, 1048, 904]


@pytest.mark.parametrize("dtype", ["u1", "f4", POSTERIOR])
def test_another_shard_is_refused(name, dtype, tmp_path):
    shape = (20, 4) if np.dtype(dtype).names is None else (20,)
    rows = rows_of(shape, dtype)
    content = written(name, rows)
    assert np.array_equal(table.read(name, content, rows.shape, rows.dtype)(slice(0, 20)), rows)
    other = np.dtype([("mu", "f4", (3,)), ("std", "f4", (3,)), ("y", "f2", (2, 2)), ("code", "i8")])
    for shape, kind in (((21, *rows.shape[1:]), rows.dtype), ((20, 2, 2), rows.dtype), (rows.shape, other)):
        with pytest.raises(ValueError, match=r"expected .*, got"):
            table.read(name, content, shape, kind)
    cut = (0, 1, 7, 8, 9, 60, len(content) // 2, len(content) - 1)
    for damaged in (*(content[:size] for size in cut), b"\xff" * len(content), b"[" * 10_000):
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        for source in (path, damaged):
            with pytest.raises((ValueError, OSError)):
                table.read(name, source, rows.shape, rows.dtype)(slice(0, 20))
    with pytest.raises(OSError, match="none"):
        table.read(name, tmp_path / "none", rows.shape, rows.dtype)


def test_a_flipped_bit_in_a_page_of_parquet_is_seen():
    pytest.importorskip("pyarrow", reason="the library is an extra")
    rows = rows_of((100, 50), "u1")
    content = bytearray(written("parquet", rows))
    content[1000] ^= 4
    with pytest.raises((ValueError, OSError), match="CRC"):
        table.read("parquet", bytes(content), rows.shape, rows.dtype)(slice(0, 100))


def test_a_flipped_bit_in_a_header_gives_the_rows_or_an_error_of_reading(name):
    rows = rows_of((6, 5), "f4")
    content, refused = written(name, rows), 0
    first = content.find(rows.tobytes())
    # Everything but the rows; behind rows that are encoded, the last bytes.
    between = range(first, first + rows.nbytes) if first >= 0 else range(len(content) - 600)
    head = [place for place in range(len(content)) if place not in between]
    for place in head:
        damaged = bytearray(content)
        damaged[place] ^= 4
        try:
            found = table.read(name, bytes(damaged), rows.shape, rows.dtype)(slice(0, 6))
            assert (found.shape, found.dtype) == (rows.shape, rows.dtype)
        except (ValueError, OSError):
            refused += 1
    assert refused > len(head) / 3


def peak(work):
    """The most bytes that numpy, Python and Arrow hold while a function runs, beyond those before it.

    The function is given another one, to call where Arrow's may be many.
    """
    arrow = sys.modules["pyarrow"].default_memory_pool() if "pyarrow" in sys.modules else None
    before, most = arrow.bytes_allocated() if arrow else 0, 0

    def look():
        nonlocal most
        most = max(most, arrow.bytes_allocated() - before if arrow else 0)

    tracemalloc.start()
    try:
        work(look)
        return most + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("structured", [False, True])
def test_memory_is_that_of_a_batch_or_a_row_group(name, structured, tmp_path):
    batch, path = rows_of((500, 1000), "u1"), tmp_path / f"x.{name}"
    if structured:
        batch = batch.view([("a", "u1", (400,)), ("b", "u1", (600,))])[:, 0]
    shape = (40_000, *batch.shape[1:])

    def write(look):
        def batches():
            for _ in range(80):
                yield batch
                look()

        with path.open("wb", buffering=0) as file:
            table.write(name, file, shape, batch.dtype, batches(), ABOUT)
        look()

    def read(look):
        rows = table.read(name, path, shape, batch.dtype)
        for which in (slice(39_000, 39_001), np.array([5, 20_000])):
            assert np.array_equal(rows(which), batch[np.arange(shape[0])[which] % 500])
            look()

    table.require(name)
    if structured and name == "safetensors":
        assert 40_000_000 < peak(write) < 44_000_000
    else:
        assert peak(write) < 8_000_000
    assert peak(read) < 8_000_000


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", "float32"),
        (np.uint8, "uint8"),
        (
            POSTERIOR,
            [["mu", "float32", [3]], ["std", "float32", [3]], ["z", "float16", [2, 2]], ["code", "int64", []]],
        ),
    ],
)
def test_a_dtype_goes_through_json(dtype, value):
    assert row_types.dtype_to_json(dtype) == value
    assert row_types.dtype_from_json(json.loads(json.dumps(value))) == dtype


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "object",
        "O",
        "float33",
        "<f4,<f4",
        [],
        {},
        ["float32"],
        [["x", "float32"]],
        [["x", "object", []]],
        [["", "float32", []]],
        [["\ud800", "float32", []]],
        [["x", "float32", [True]]],
        [["x", "float32", [0]]],
        [["x", "float32", [-1]]],
        [["x", "float32", [2**70]]],
        [["x", "float32", [2**40, 2**40]]],
        [["x", "float32", [1] * 99]],
        [["x", "float32", 3]],
        [["x", "uint8", []], ["x", "uint8", []]],
        [["x", [["y", "uint8", []]], []]],
    ],
)
def test_what_is_no_dtype_of_rows_is_refused(value):
    with pytest.raises(InputError, match="dtype: expected"):
        row_types.dtype_from_json(value)


def test_an_unknown_format_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(InputError, match=f"format: expected {', '.join(table.FORMATS)}, got 'hdf5'"):
        table.require("hdf5")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    rows = rows_of((3, 2), "u1")
    for call in (lambda: table.require("parquet"), lambda: written("parquet", rows)):
        with pytest.raises(VaeError, match=r"pip install 'vae-runtime\[parquet\]'"):
            call()
    # Its files are written without the library.
    table.require("safetensors")
    content = written("safetensors", rows)
    with pytest.raises(VaeError, match=r"pip install 'vae-runtime\[safetensors\]'"):
        table.read("safetensors", content, rows.shape, rows.dtype)
    table.require("npy")


def test_every_format_is_named_where_a_user_looks(root, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    (help_of_format,) = re.findall(r"--format FORMAT\s+(.*?)\n\s+--", capsys.readouterr().out, re.DOTALL)
    (argument,) = re.findall(r"^ +format: (.*)$", generate.__doc__, re.MULTILINE)
    places = {
        "the help of --format": help_of_format,
        "docs/command-line.md": (root / "docs" / "command-line.md").read_text(encoding="utf-8"),
        "docs/offline-generation.md": (root / "docs" / "offline-generation.md").read_text(encoding="utf-8"),
        "the docstring of generate": argument,
    }
    assert [(place, name) for place, text in places.items() for name in table.FORMATS if name not in text] == []
    assert "hdf5" not in "".join(places.values())


def test_a_field_may_not_be_called_as_the_column_of_indices():
    pytest.importorskip("pyarrow", reason="the library is an extra")
    with pytest.raises(InputError, match="expected no field called index"):
        written("parquet", rows_of((3,), np.dtype([("index", "i8")])))
