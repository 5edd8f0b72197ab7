"""Files and folders are whole or absent, whatever interrupts the writing."""

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_runtime import files
from vae_runtime.errors import VaeError
from vae_runtime.files import write_atomic, write_folder

posix = pytest.mark.skipif(os.name != "posix", reason="this system ends no process at once, whatever it does")

OLD = {"a": b"old", "sub/b": b"old" * 1000}
NEW = {"a": b"new", "sub/b": b"new" * 1000, "sub/deeper/c": b""}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(os.listdir(folder))


# One file.


@pytest.mark.parametrize("write", [b"new", lambda file: file.write(b"new")], ids=["bytes", "function"])
def test_a_file_is_written_or_replaced(tmp_path, write):
    target = tmp_path / "file"
    for _ in range(2):
        write_atomic(str(target), write)
        assert target.read_bytes() == b"new"
        assert names(tmp_path) == ["file"]


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_have_the_permissions_of_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", b"")
        write_folder(tmp_path / "folder", {"a": b"", "b/c": b""})
        (tmp_path / "plain").touch()
        (tmp_path / "plain folder").mkdir()
    finally:
        os.umask(before)

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("file") == mode("folder/a") == mode("folder/b/c") == mode("plain")
    assert mode("folder") == mode("folder/b") == mode("plain folder")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), OSError(28, "No space left")])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_fails_leaves_nothing(tmp_path, error, old):
    target = tmp_path / "file"
    if old:
        target.write_bytes(old)

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(VaeError if isinstance(error, OSError) else type(error)):
        write_atomic(target, fail)
    assert names(tmp_path) == (["file"] if old else [])
    assert not old or target.read_bytes() == old


def test_an_error_says_where_why_and_what_to_do(tmp_path):
    def fail(file):
        raise OSError("800 requested and 12 written")

    with pytest.raises(VaeError, match=r"/file: not written: no space left after 12 of 800 values; free some space"):
        write_atomic(tmp_path / "file", fail)
    with pytest.raises(VaeError, match=r"/none/file: cannot write here: No such file or directory; choose a folder"):
        write_atomic(tmp_path / "none" / "file", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VaeError, match=r"/folder: not written: Is a directory"):
        write_atomic(tmp_path / "folder", b"")
    assert names(tmp_path) == ["folder"]


@posix
def test_no_pipe_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VaeError, match=r"/pipe: expected a plain file to replace, got a pipe or a device; choose"):
        write_atomic(tmp_path / "pipe", b"")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert names(tmp_path) == ["pipe"]


@posix
def test_a_file_killed_in_the_middle_keeps_its_old_content(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    code = """
import os, signal, sys
from vae_runtime.files import write_atomic
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(sys.argv[1], write)
"""
    done = subprocess.run([sys.executable, "-c", code, target], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"


# A folder.


@pytest.fixture(params=["exchange", "aside"])
def either_way(request, monkeypatch):
    """With the exchange in one step, and without it."""
    if request.param == "aside":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_this_system_exchanges_folders_in_one_step(tmp_path):
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("only Linux and macOS do")
    for name in ("one", "other"):
        (tmp_path / name / name).mkdir(parents=True)
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("the file system of the temporary folder does not")
    assert (names(tmp_path / "one"), names(tmp_path / "other")) == (["other"], ["one"])


def test_a_folder_is_written_with_its_parents(tmp_path):
    write_folder(tmp_path / "x" / "y" / "folder", NEW)
    assert content(tmp_path / "x" / "y" / "folder") == NEW
    assert names(tmp_path / "x" / "y") == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path, either_way):
    target = tmp_path / "folder"
    write_folder(target, {**OLD, "only/old": b""})
    write_folder(target, NEW, replace=True)
    assert content(target) == NEW
    assert names(tmp_path) == ["folder"]
    assert not (target / "only").exists()


def test_a_check_sees_the_whole_folder_before_it_is_there_and_may_stop_it(tmp_path, either_way):
    target = tmp_path / "folder"
    seen = []
    write_folder(target, OLD, check=lambda folder: seen.append((content(folder), target.exists())))
    assert seen == [(OLD, False)]

    def refuse(folder):
        assert content(folder) == NEW
        raise KeyError("no")

    with pytest.raises(KeyError):
        write_folder(target, NEW, replace=True, check=refuse)
    assert content(target) == OLD
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_not_replaced_unasked(tmp_path, either_way):
    target = tmp_path / "folder"
    write_folder(target, OLD)
    with pytest.raises(VaeError, match=r"folder: already exists; .*--force"):
        write_folder(target, NEW)
    assert content(target) == OLD
    assert names(tmp_path) == ["folder"]


def test_what_is_no_folder_is_never_replaced(tmp_path, either_way):
    (tmp_path / "real").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "broken").symlink_to("none")
    before = names(tmp_path)
    for name in ("file", "link", "broken"):
        with pytest.raises(VaeError, match=f"{name}: expected a folder, got a file or a link"):
            write_folder(tmp_path / name, NEW, replace=True)
        with pytest.raises(VaeError, match=f"{name}: already exists"):
            write_folder(tmp_path / name, NEW)
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert names(tmp_path / "real") == []


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, either_way):
    target = tmp_path / "folder"
    write_folder(target, OLD)
    # "a" is a file first and a folder then; a name can be too long.
    for wrong in ({"a": b"", "a/b": b""}, {"x" * 300: b""}):
        with pytest.raises(VaeError, match="folder: not written: "):
            write_folder(target, wrong, replace=True)
        with pytest.raises(VaeError, match="other: not written: "):
            write_folder(tmp_path / "other", wrong)
    with pytest.raises(VaeError, match="cannot write here"):
        write_folder(target / "a" / "deeper", NEW)
    assert content(target) == OLD
    assert names(tmp_path) == ["folder"]


def test_an_interruption_leaves_the_old_folder(tmp_path, either_way, monkeypatch):
    target = tmp_path / "folder"
    write_folder(target, OLD)
    for step in ("_fill_folder", "_swap"):

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(files, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_folder(target, NEW, replace=True)
        assert content(target) == OLD
        assert names(tmp_path) == ["folder"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    write_folder(target, OLD)
    rename = os.rename

    def refuse(one, other):
        if str(one).endswith(".partial"):
            raise OSError(16, "Device or resource busy")
        rename(one, other)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(VaeError, match="folder: not written: Device or resource busy"):
        write_folder(target, NEW, replace=True)
    assert content(target) == OLD
    assert names(tmp_path) == ["folder"]


def test_calls_at_once_do_not_disturb_each_other(tmp_path, either_way, monkeypatch):
    """Another call removes the hidden folder before it is locked, or fills the place just before the rename."""
    target, mkdtemp, rename, made = tmp_path / "folder", files.tempfile.mkdtemp, os.rename, []

    def lose_the_first(**options):
        made.append(mkdtemp(**options))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    def come_second(one, other):
        monkeypatch.setattr(os, "rename", rename)
        write_folder(target, OLD)
        rename(one, other)

    monkeypatch.setattr(files.tempfile, "mkdtemp", lose_the_first)
    monkeypatch.setattr(os, "rename", come_second)
    write_folder(target, NEW, replace=True)
    assert len(made) == 3
    assert content(target) == NEW
    assert names(tmp_path) == ["folder"]


# Killed calls.


def renames_that_die(monkeypatch, survive):
    """Let `os.rename` work so many times, and then end the "process"; what only it would have cleaned up stays."""
    rename, done = os.rename, []

    def dying_rename(one, other):
        if len(done) == survive:
            raise SystemExit("killed")
        done.append(one)
        rename(one, other)

    monkeypatch.setattr(os, "rename", dying_rename)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)


@pytest.fixture
def killed_between_the_renames(tmp_path, monkeypatch):
    """A folder being replaced without an exchange by a process killed after the first of the two renames."""

    def make(name):
        write_folder(tmp_path / name, OLD)
        with monkeypatch.context() as patch:
            patch.setattr(files, "_exchange", lambda one, other: False)
            renames_that_die(patch, 1)
            with pytest.raises(SystemExit):
                write_folder(tmp_path / name, NEW, replace=True)
        assert not (tmp_path / name).exists()

    return make


def test_a_call_killed_between_the_renames_is_made_good_by_the_next(tmp_path, killed_between_the_renames):
    killed_between_the_renames("folder")
    with pytest.raises(VaeError, match="already exists"):
        write_folder(tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == OLD
    assert names(tmp_path) == ["folder"]
    write_folder(tmp_path / "folder", NEW, replace=True)
    assert content(tmp_path / "folder") == NEW


def test_a_call_for_another_folder_takes_nothing_that_is_not_its_own(tmp_path, killed_between_the_renames):
    killed_between_the_renames("folder.v2")
    write_folder(tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == NEW
    write_folder(tmp_path / "folder.v2", NEW, replace=True)
    assert content(tmp_path / "folder.v2") == NEW
    assert names(tmp_path) == ["folder", "folder.v2"]


def test_files_of_the_user_that_look_alike_stay(tmp_path):
    for name in (".folder", ".folder.partial", ".folder.notes", "folder.abcdefgh.partial", ".folder.x.y.partial"):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    write_folder(tmp_path / "folder", NEW)
    assert names(tmp_path) == sorted([*before, "folder"])


@contextlib.contextmanager
def started(command):
    """A process, killed at the end of the block if it still runs."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


WRITER = """
import sys
from vae_runtime import files
if sys.argv[2] == "aside":
    files._exchange = lambda one, other: False
contents = [{"a": word * 10, "sub/b": word * 50_000, "sub/c": word} for word in (b"0", b"1")]
print("ready", flush=True)
while True:
    for content in contents:
        files.write_folder(sys.argv[1], content, replace=True)
"""


@posix
@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_killed_at_any_moment_a_folder_is_whole_and_the_next_call_cleans_up(tmp_path, way):
    moment, left = random.Random(1), 0
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, tmp_path / "folder", way]
        with started(command) as process:
            process.stdout.readline()
            time.sleep(moment.uniform(0.0, 0.1))
        left += len(names(tmp_path)) > 1
        # Without the exchange the old folder may be aside; a call that does not replace brings it back.
        with contextlib.suppress(VaeError):
            write_folder(tmp_path / "folder", {"a": b"", "sub/b": b"", "sub/c": b""})
        found = content(tmp_path / "folder")
        word = found["sub/c"]
        assert found == {"a": word * 10, "sub/b": word * 50_000, "sub/c": word}
        assert names(tmp_path) == ["folder"]
    assert left, "no kill came in the middle of a call: this test shows nothing"


@posix
def test_with_an_exchange_the_folder_is_there_at_every_moment(tmp_path):
    write_folder(tmp_path / "folder", {"a": b"0" * 10, "sub/b": b"", "sub/c": b"0"})
    (tmp_path / "probe").mkdir()
    if not files._exchange(tmp_path / "probe", tmp_path / "folder"):
        pytest.skip("this file system does not exchange folders")
    files._exchange(tmp_path / "probe", tmp_path / "folder")
    command = [sys.executable, "-c", WRITER, tmp_path / "folder", "exchange"]
    with started(command) as process:
        process.stdout.readline()
        for _ in range(3000):
            assert os.path.isfile(tmp_path / "folder" / "a")


@posix
def test_a_call_in_progress_is_left_alone(tmp_path):
    code = """
import sys
from vae_runtime import files
fill = files._fill_folder
def slow(*arguments):
    fill(*arguments)
    print("filled", flush=True)
    sys.stdin.readline()
files._fill_folder = slow
files.write_folder(sys.argv[1], {"a": b"slow"}, replace=True)
"""
    command = [sys.executable, "-c", code, tmp_path / "folder"]
    with started(command) as slow:
        assert slow.stdout.readline() == b"filled\n"
        (partial,) = names(tmp_path)
        write_folder(tmp_path / "folder", NEW)
        assert content(tmp_path / "folder") == NEW
        assert content(tmp_path / partial) == {"a": b"slow"}
        slow.stdin.write(b"\n")
        slow.stdin.close()
        assert slow.wait(60) == 0
    assert content(tmp_path / "folder") == {"a": b"slow"}
    assert names(tmp_path) == ["folder"]


def test_an_empty_name_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("kept").touch()
    with pytest.raises(VaeError):
        write_folder(".", NEW)
    assert names(tmp_path) == ["kept"]
