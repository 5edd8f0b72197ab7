"""A bundle in one .zip file opens as its folder does, and no other .zip file opens."""

import io
import os
import re
import shutil
import struct
import subprocess
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import BundleError
from vae_runtime.bundle import open_bundle
from vae_runtime.cli import main as cli
from vae_runtime.places import SUMS, Archive, clash_of, format_sums, write_zip

DIGITS = Path(__file__).parents[2] / "models" / "digits"
DECODER = "decoder/fp32/model.onnx"


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = files_of(DIGITS)
# A bundle's form without its weight, for what is tried many times: the manifest is none.
SMALL = {"decoder/model.onnx": b"graph", "golden.npz": b"", "manifest.json": b"{}"}
SMALL[SUMS] = format_sums(SMALL.items())


def zip_of(files, *, last=b"", first=b"", gap=b"", order=None, **end):
    """A .zip file as the format wants it, byte for byte, with whatever is set for a file instead of its content.

    For a file (a name or a pair of names, a content or a mapping): `content`; `local` and `entry`, other values of the
    header's fields by name; `local_extra`, `extra`, `comment`. For the whole: bytes `first`, `last`, in a `gap` before
    the directory; the `order` of the directory; other values of the end's fields.
    """
    body, directory, offsets = first, {}, {}
    for number, (name, what) in enumerate(files):
        settings = what if isinstance(what, dict) else {"content": what}
        content, local_extra = settings["content"], settings.get("local_extra", b"")
        extra, comment = settings.get("extra", b""), settings.get("comment", b"")
        raw = name if isinstance(name, bytes) else name.encode()
        offsets[number] = len(body)
        fields = {
            "needs": 20, "flags": 0, "method": 0, "time": 0, "date": 33, "crc": zlib.crc32(content),
            "packed": len(content), "size": len(content), "name": len(raw),
        }  # fmt: skip
        local = {**fields, "extra": len(local_extra), **settings.get("both", {}), **settings.get("local", {})}
        body += b"PK\3\4" + struct.pack("<5H3L2H", *local.values()) + settings.get("local_name", raw) + local_extra
        body += content
        entry = {
            "by": 3 << 8 | 20, **fields, "extra": len(extra), "comment": len(comment), "disk": 0, "kind": 0,
            "mode": 0o100644 << 16, "offset": offsets[number], **settings.get("both", {}), **settings.get("entry", {}),
        }  # fmt: skip
        directory[number] = b"PK\1\2" + struct.pack("<6H3L5H2L", *entry.values()) + raw + extra + comment
    body += gap
    listed = b"".join(directory[number] for number in (order or directory))
    fields = {"disk": 0, "first": 0, "here": len(files), "count": len(files)}
    fields |= {"size": len(listed), "start": len(body), "comment": 0} | end
    return body + listed + b"PK\5\6" + struct.pack("<4H2LH", *fields.values()) + last


def with_one(name="decoder/model.onnx", **settings):
    """SMALL with settings of one of its files, the others after it."""
    content = settings.pop("content", SMALL.get(name, b"content"))
    rest = [pair for pair in SMALL.items() if pair[0] != name]
    return zip_of([(name, {"content": content, **settings}), *rest])


def and_more(*pairs):
    return zip_of([*SMALL.items(), *pairs])


WHOLE = zip_of(sorted(SMALL.items()))


def link(**settings):
    return with_one("README.md", content=b"/etc/passwd", **settings)


def deflated(content):
    maker = zlib.compressobj(wbits=-15)
    return maker.compress(content) + maker.flush()


BOMB = deflated(b"\0" * 10**7)

HOSTILE = {
    "empty": (b"", "got an empty file"),
    "a text": (b"# A bundle\n" * 9, "expected a .zip file .*, got a file of another kind"),
    "no archive": (b"PK" * 100, "that ends without a comment, got one that is cut short or has bytes after its end"),
    "the end alone, as of no files": (WHOLE[-22:], "right before its end"),
    "a comment": (zip_of(SMALL.items(), comment=4, last=b"note"), "ends without a comment"),
    "a comment that is not there": (zip_of(SMALL.items(), comment=4), "right before its end"),
    "data after the end": (zip_of(SMALL.items(), last=b"\0"), "ends without a comment"),
    "another archive after the end": (WHOLE + WHOLE, "right before its end"),
    "data before the start": (b"#!/bin/sh\n" + WHOLE, "right before its end"),
    "data before the start, offsets right": (zip_of(SMALL.items(), first=b"#!/bin/sh\n"), "directory, at byte 0"),
    "data before the directory": (zip_of(SMALL.items(), gap=b"hidden"), "without a gap"),
    "data after a file": (
        zip_of([("a", {"content": b"a" * 9, "both": {"packed": 8, "size": 8}}), *SMALL.items()]),
        "decoder/model.onnx: expected its header",
    ),
    "one of several disks": (zip_of(SMALL.items(), disk=1), "right before its end"),
    "on another disk": (with_one(entry={"disk": 1}), "zip -X"),
    "fewer files than there are": (zip_of(SMALL.items(), here=3, count=3), "without a gap"),
    "more files than there are": (zip_of(SMALL.items(), here=5, count=5), "its end says 5 files"),
    "counts that differ": (zip_of(SMALL.items(), here=3), "right before its end"),
    "a directory that is shorter": (zip_of(SMALL.items(), size=10), "right before its end"),
    "Zip64": (zip_of(SMALL.items(), count=0xFFFF, here=0xFFFF, size=0xFFFFFFFF, start=0xFFFFFFFF), "below 4 GiB"),
    "a file of Zip64": (
        with_one(both={"packed": 0xFFFFFFFF, "size": 0xFFFFFFFF}, extra=struct.pack("<2H2Q", 1, 16, 5, 5)),
        "no extra fields",
    ),
    "a directory beyond reason": (and_more(*((f"{i:0900}", b"") for i in range(1200))), "directory of at most"),
    "another order": (zip_of(SMALL.items(), order=[1, 0, 2, 3]), "directory, at byte 0"),
    "compressed": (
        with_one(content=deflated(b"graph"), both={"method": 8, "size": 5, "crc": zlib.crc32(b"graph")}),
        "neither compressed nor encrypted",
    ),
    "a bomb": (
        with_one("README.md", content=BOMB, both={"method": 8, "size": 10**7}),
        "neither compressed nor encrypted",
    ),
    "a bomb that calls itself stored": (
        with_one("README.md", content=BOMB, both={"size": 10**7}),
        "neither compressed nor encrypted",
    ),
    "files that overlap": (
        zip_of([("a", b"a" * 100), ("b", {"content": b"", "entry": {"offset": 0}}), *SMALL.items()]),
        "b: expected its header",
    ),
    "compressed by another method": (with_one(both={"method": 14}), "neither compressed"),
    "encrypted": (with_one(both={"flags": 1}), "nor encrypted"),
    "strongly encrypted": (with_one(both={"flags": 0x41}), "nor encrypted"),
    "sizes after the file": (with_one(both={"flags": 8}), "neither compressed"),
    "masked headers": (with_one(both={"flags": 0x2000}), "neither compressed"),
    "larger than it is": (with_one(both={"packed": 2**31, "size": 2**31}), "its header, as in the directory"),
    "larger than it is, the last": (
        zip_of([*SMALL.items(), ("z", {"content": b"z", "both": {"packed": 2**31, "size": 2**31}})]),
        "without a gap",
    ),
    "smaller than it is": (with_one(both={"packed": 2, "size": 2}), "its header, as in the directory"),
    "of another size in its header": (with_one(local={"packed": 4, "size": 4}), "its header, as in the directory"),
    "of another size in the directory": (with_one(entry={"packed": 4, "size": 4}), "its header, as in the directory"),
    "of another CRC in its header": (with_one(local={"crc": 0}), "its header, as in the directory"),
    "of another method in its header": (with_one(local={"method": 8}), "its header, as in the directory"),
    "of another name in its header": (
        with_one(local_name=b"decoder/model.0nnx"),
        "its header, as in the directory",
    ),
    "for newer programs": (with_one(both={"needs": 63}), "neither compressed"),
    "for newer programs in its header": (with_one(local={"needs": 10}), "its header, as in the directory"),
    "extra fields": (with_one(extra=b"UT\0\0"), "no extra fields"),
    "extra fields in its header": (with_one(local_extra=b"UT\0\0"), "its header, as in the directory"),
    "a comment of a file": (with_one(comment=b"note"), "no comment"),
    "twice": (and_more(("manifest.json", b"{ }")), "expected once, got twice"),
    "in other case": (and_more(("Manifest.json", b"{ }")), "differs only in case from manifest"),
    "in a folder in other case": (and_more(("Decoder/more", b"")), "differs only in case from deco"),
    "a file that is a folder, too": (and_more(("golden.npz/more", b"")), "golden.npz is a file, not a folder"),
    "a folder that is a file, too": (and_more(("decoder", b"")), "decoder is a file, not a folder"),
    "a long name": (and_more(("a" * 1025, b"")), "expected a path of at most 1024 characters, got 1025"),
    "many folders": (and_more(("/".join("a" * 600), b"")), "expected a path of at most 1024 characters, got 1199"),
    "a folder": (and_more(("more/", b"")), "paths of"),
    "a folder by its mode": (and_more(("more", {"content": b"", "entry": {"mode": 0o40755 << 16}})), "a link, a fol"),
    "a link": (link(entry={"mode": 0o120777 << 16}), "expected a plain file, got a link"),
    "a link as of another system": (link(entry={"by": 20, "mode": 0o120777 << 16}), "got a link"),
    "a pipe": (link(entry={"mode": 0o10644 << 16}), "expected a plain file"),
    "a device": (link(entry={"mode": 0o60644 << 16}), "expected a plain file"),
    **{
        f"the name {name!r}": (and_more((name, b"")), "paths of")
        for name in (
            b"", b"..", b"../a", b"a/../b", b"./a", b"a/./b", b"/etc/passwd", b"//a", b"a//b", b"a\\b", b"..\\a",
            b"C:a", b"C:/a", b".hidden", b"a/.b", b"a b", b"a\n", b"a\0.txt", "ä".encode(),
        )
    },
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    return tmp_path / "bundle.zip"


@pytest.fixture(scope="session")
def digits_zip(tmp_path_factory):
    """The bundle `digits` in one file; not to be written to."""
    path = tmp_path_factory.mktemp("zip") / "digits.zip"
    path.write_bytes(zip_of(sorted(FILES.items())))
    return path


# It is its folder.


def test_a_bundle_in_a_zip_file_is_the_same_bundle(digits, digits_zip):
    folder, archive = open_bundle(digits), open_bundle(str(digits_zip))
    assert archive.digest == folder.digest
    assert archive.manifest == folder.manifest
    assert archive.problems() == []
    assert {name: archive.read(name) for name in archive.sums} == {name: folder.read(name) for name in folder.sums}
    assert vae_runtime.load(digits_zip, digest=folder.digest).digest == folder.digest


def test_it_computes_the_same(vae, digits_zip):
    other = vae_runtime.load(digits_zip)
    x = vae.sample(3, seed=1)
    assert np.array_equal(other.sample(3, seed=1), x)
    assert np.array_equal(other.encode(x).mean, vae.encode(x).mean)
    assert np.array_equal(other.reconstruct(x), vae.reconstruct(x))
    assert vae_runtime.verify(digits_zip).passed


def test_every_command_takes_it(vae, digits_zip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", vae.sample(3, seed=1))
    np.save("z.npy", vae.prior(3, seed=1))
    for arguments in (
        ["info"], ["verify"], ["sample", "--out", "a.npy"], ["encode", "x.npy", "--out", "a.npz"],
        ["decode", "z.npy", "--out", "a.npy"], ["reconstruct", "x.npy", "--out", "a.npy"],
        ["interpolate", "--seeds", "1", "2", "--out", "a.npy"], ["traverse", "--seed", "1", "--out", "a.npy"],
        ["score", "x.npy"], ["pack", "--out", "a"],
    ):  # fmt: skip
        assert cli.main([arguments[0], str(digits_zip), *arguments[1:]]) == 0, arguments
    assert capsys.readouterr().err == ""


def test_a_link_to_it_is_followed(digits_zip, tmp_path):
    (tmp_path / "link").symlink_to(digits_zip)
    assert vae_runtime.verify(tmp_path / "link").passed


def test_what_is_neither_a_folder_nor_a_file_is_refused_without_waiting(place):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(place)
    with pytest.raises(BundleError, match=r"is neither a folder nor a \.zip file"):
        open_bundle(place)


def test_other_programs_make_it_too(digits, tmp_path):
    with zipfile.ZipFile(tmp_path / "python.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    made = [tmp_path / "python.zip"]
    if shutil.which("zip"):
        made.append(tmp_path / "info.zip")
        subprocess.run(["zip", "-q", "-0", "-X", "-D", "-r", made[-1], "."], cwd=digits, check=True)
    for path in made:
        assert vae_runtime.verify(path).passed


def test_threads_read_it_at_once(digits_zip):
    bundle, found = open_bundle(digits_zip), []

    def read():
        found.extend(all(bundle.read(name) == FILES[name] for name in bundle.sums) for _ in range(10))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


@pytest.mark.usefixtures("external_data")
def test_weights_beside_a_graph_are_taken_from_it(weighted_bundle, place):
    folder = weighted_bundle()
    place.write_bytes(zip_of(sorted(files_of(folder).items())))
    z = np.float32([[1, 2, 3]])
    assert np.array_equal(vae_runtime.load(place).decode(z), vae_runtime.load(folder).decode(z))
    assert vae_runtime.verify(place).passed


def test_opening_a_bundle_imports_no_zipfile(python, digits, digits_zip):
    for path in (digits, digits_zip):
        code = f"import sys, vae_runtime; vae_runtime.load({str(path)!r}).sample(1, seed=0)"
        done = python("-c", f"{code}\nprint('zipfile' in sys.modules, 'vae_runtime.packing' in sys.modules)")
        assert (done.stdout, done.stderr) == ("False False\n", "")
    done = python("-c", f"{code}\nimport zipfile\nprint('zipfile' in sys.modules)")
    assert done.stdout == "True\n"


# Damage of what opened.


def test_a_flipped_bit_of_a_file_is_found(digits_zip, place):
    whole = digits_zip.read_bytes()
    for name, content in FILES.items():
        damaged = bytearray(whole)
        damaged[whole.index(content) + len(content) // 2] ^= 4
        place.write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{name}: damaged, or altered since it was opened; copy the bundle"):
            Archive(place).read(name)
        if name in (SUMS, "manifest.json"):
            with pytest.raises(BundleError, match=name):
                vae_runtime.verify(place)
        else:
            assert not vae_runtime.verify(place).passed


@pytest.mark.parametrize(
    ("alter", "match"),
    [
        (lambda files: files.update({DECODER: FILES[DECODER][:-1] + b"\0"}), rf"{DECODER}: expected the SHA-"),
        (lambda files: files.pop(DECODER), rf"{DECODER}: missing"),
        (lambda files: files.update({"new.txt": b""}), r"new\.txt: not listed in SHA256SUMS"),
        (lambda files: files.update({f"new/{SUMS}": b""}), r"new/SHA256SUMS: not listed in SHA256SUMS"),
    ],
    ids=["altered", "missing", "added", "added deeper"],
)
def test_files_that_are_not_the_listed_ones_are_found(place, alter, match):
    files = dict(FILES)
    alter(files)
    place.write_bytes(zip_of(sorted(files.items())))
    (problem,) = open_bundle(place).problems()
    assert re.search(match, problem)
    assert not vae_runtime.verify(place).passed


@pytest.mark.parametrize("name", [SUMS, "manifest.json"])
def test_a_bundle_needs_its_sums_and_its_manifest(place, name):
    place.write_bytes(zip_of(sorted((key, content) for key, content in FILES.items() if key != name)))
    with pytest.raises(BundleError, match=rf"{name}: missing"):
        open_bundle(place)


@pytest.mark.parametrize("files", [{}, {"a": b""}, {f"digits/{name}": content for name, content in FILES.items()}])
def test_a_zip_file_without_a_bundle_at_its_root_is_refused(place, files):
    place.write_bytes(zip_of(files.items()))
    with pytest.raises(BundleError, match="not a bundle: it holds neither"):
        open_bundle(place)


@pytest.mark.parametrize("name", [SUMS, "manifest.json"])
def test_a_file_beyond_reason_is_not_read_into_memory(place, name):
    files = {**FILES, name: b" " * (2**24 + 1)}
    place.write_bytes(zip_of(files.items()))
    with pytest.raises(BundleError, match=rf"{name}: expected at most .* bytes, got {2**24 + 1}"):
        open_bundle(place)


@pytest.mark.parametrize("how", ["replaced", "shortened", "gone", "a folder"])
def test_what_changed_since_it_was_opened_is_refused(digits_zip, place, vae, how):
    shutil.copy(digits_zip, place)
    other = vae_runtime.load(place)
    if how == "replaced":
        place.write_bytes(zip_of(sorted({**FILES, "a": b"moves all that follows"}.items())))
    elif how == "shortened":
        os.truncate(place, 1000)
    else:
        place.unlink()
        if how == "a folder":
            place.mkdir()
    with pytest.raises(BundleError, match=r"bundle\.zip/encoder/fp32/model\.onnx: (damaged|cannot be read)"):
        other.encode(vae.sample(1, seed=0))


# Hostile files. The partner of them all is WHOLE, which is opened like them and read.


def opened(place, content):
    place.write_bytes(content)
    return Archive(place)


def test_the_partners_of_the_hostile_files_are_read(place):
    for content in (WHOLE, zip_of(SMALL.items()), with_one(), with_one(both={"flags": 0x800}), and_more(("a/b", b"c"))):
        archive = opened(place, content)
        assert {name: archive.read(name) for name in SMALL} == SMALL


@pytest.mark.parametrize(("content", "match"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(place, capsys, content, match):
    place.write_bytes(content)
    for refuse in (Archive, open_bundle, vae_runtime.load, vae_runtime.verify):
        with pytest.raises(BundleError, match=rf"^\S+bundle\.zip: not a bundle's \.zip file: .*{match}") as caught:
            refuse(place)
        assert str(caught.value).endswith("; pack or copy it again")
        assert len(str(caught.value)) < 600
    for command in (["info", str(place)], ["pack", str(place), "--out", str(place.parent / "out")]):
        assert cli.main(command) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
    assert list(place.parent.iterdir()) == [place]


def test_a_wrong_crc_is_refused_when_the_file_is_read(place):
    archive = opened(place, with_one(both={"crc": 0}))
    with pytest.raises(BundleError, match=r"decoder/model\.onnx: damaged"):
        archive.read("decoder/model.onnx")
    assert archive.read("manifest.json") == b"{}"


def test_a_file_cut_anywhere_is_refused(place):
    for length in range(len(WHOLE)):
        with pytest.raises(BundleError, match=r"not a bundle's \.zip file"):
            opened(place, WHOLE[:length])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "bundle.zip"


def check_refused_or_read_as_zipfile_does(scratch, content):
    """Whatever opens holds what Python's own reader finds in it; all else is a BundleError."""
    try:
        archive = opened(scratch, content)
    except BundleError:
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as other:
        assert list(archive.names()) == other.namelist()
        for name in archive.names():
            try:
                found = archive.read(name)
            except BundleError:
                with pytest.raises(zipfile.BadZipFile):
                    other.read(name)
            else:
                assert found == other.read(name)
    return True


def test_what_opens_is_read_as_zipfile_reads_it(scratch):
    assert check_refused_or_read_as_zipfile_does(scratch, WHOLE)
    assert check_refused_or_read_as_zipfile_does(scratch, with_one(both={"crc": 0}))
    assert not check_refused_or_read_as_zipfile_does(scratch, WHOLE[1:])


many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_altered_bytes_are_refused_or_harmless(scratch, edits):
    content = bytearray(WHOLE)
    for position, value in edits:
        content[position] = value
    check_refused_or_read_as_zipfile_does(scratch, bytes(content))


FIELDS = st.sampled_from(["needs", "flags", "method", "crc", "packed", "size", "extra", "name"])
NUMBERS = st.sampled_from([0, 1, 5, 8, 0x800, 0xFFFF]) | st.integers(0, 0xFFFF)


@many
@given(
    st.dictionaries(st.sampled_from(["disk", "here", "count", "size", "start", "comment"]), NUMBERS, max_size=2),
    st.dictionaries(st.sampled_from(["local", "entry", "both"]), st.dictionaries(FIELDS, NUMBERS, max_size=2)),
    st.sampled_from([b"", b"PK", WHOLE[-22:]]),
)
def test_any_other_headers_are_refused_or_harmless(scratch, end, settings, last):
    files = [("decoder/model.onnx", {"content": b"graph", **settings}), ("manifest.json", b"{}"), (SUMS, b"")]
    check_refused_or_read_as_zipfile_does(scratch, zip_of(files, last=last, **end))


@many
@given(st.binary(max_size=200))
@example(b"PK\5\6" + bytes(18))
def test_any_bytes_are_refused_or_an_empty_archive(scratch, content):
    if check_refused_or_read_as_zipfile_does(scratch, content):
        assert content == b"PK\5\6" + bytes(18)


@many
@given(st.lists(st.text("aAb/", min_size=1, max_size=6).filter(lambda text: "//" not in f"/{text}/"), max_size=4))
def test_a_clash_is_what_no_tree_of_folders_holds(paths):
    """Held against a tree of dictionaries by lower-case names, whose leaves are files."""
    tree, clash = {}, False
    for path in set(paths):
        *folders, name = path.split("/")
        here = tree
        for folder in folders:
            spelled, here = here.setdefault(folder.lower(), (folder, {}))
            clash |= spelled != folder or here is None
            here = {} if here is None else here
        clash |= name.lower() in here
        here[name.lower()] = (name, None)
    assert bool(clash_of(set(paths))) == clash


# What is written.

NAMES = st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,6}(/[a-z0-9_-][a-z0-9._-]{0,6}){0,2}", fullmatch=True)


@settings(many, max_examples=60)
@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5).filter(lambda files: not clash_of(files)))
def test_what_is_written_is_read_and_is_always_the_same(scratch, files):
    write_zip(scratch, files)
    content, archive = scratch.read_bytes(), Archive(scratch)
    assert {name: archive.read(name) for name in archive.names()} == files
    assert content == zip_of(files.items())


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="this system tells no holes of files")
def test_a_sparse_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bundle.zip"
    path.write_bytes(b"PK\3\4")
    os.truncate(path, 2**40)
    with pytest.raises(BundleError, match="got a sparse file"):
        Archive(str(path))
