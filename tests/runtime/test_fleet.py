"""Installing bundles on a device: the old one or the new one is there, whole and verified, whatever happens."""

import contextlib
import copy
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vae_runtime
from vae_runtime import BundleError, DeviceError, InputError, VaeError, history, install, rollback, status
from vae_runtime.bundle import open_bundle
from vae_runtime.cli.main import build_parser, main
from vae_runtime.files import locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a link is replaced in one step on POSIX alone")


@pytest.fixture
def bundles(small_bundle):
    """Three small bundles, "a", "b" and "c"."""
    return [small_bundle(name=name) for name in "abc"]


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def names(site):
    """The names of the releases and of their predecessors, as rollback goes through them."""
    return [release.name for release in status(site)]


def used(site):
    """The name of the bundle that is in use, which must be whole and verified."""
    assert vae_runtime.verify(site / "current").passed
    return vae_runtime.load(site / "current").manifest.name


def whole(site):
    """The name of the bundle that is in use, whose files are as listed."""
    bundle = open_bundle(site / "current")
    assert bundle.problems() == []
    return bundle.manifest.name


def results(site):
    return [(event.action, event.name, event.result[:6]) for event in history(site)]


def left_behind(site):
    """What belongs to no release and no record."""
    known = {"current", "releases", "history.jsonl"}
    return [each.name for each in (*site.iterdir(), *(site / "releases").iterdir())
            if each.name not in known and not each.name.isdigit()]  # fmt: skip


# Install and roll back.


def test_a_bundle_is_installed_as_it_is(digits, vae, site):
    release = install(digits, site, digest=vae.digest)
    assert (release.number, release.name, release.digest, release.previous) == (1, "digits", vae.digest, None)
    assert status(site) == (release,)
    loaded = vae_runtime.load(site / "current")
    assert loaded.digest == vae.digest
    assert np.array_equal(loaded.sample(2, seed=1), vae.sample(2, seed=1))
    assert vae_runtime.verify(site / "current", strict=True).passed
    assert left_behind(site) == []


def test_a_zip_file_becomes_a_folder(bundles, site, tmp_path):
    digest = vae_runtime.pack(bundles[0], tmp_path / "small.zip")
    assert install(tmp_path / "small.zip", site).digest == digest
    assert (site / "current" / "SHA256SUMS").is_file()
    assert used(site) == "a"


def test_releases_are_kept_and_gone_back_to(bundles, site):
    a, b, c = bundles
    for bundle in bundles:
        install(bundle, site)
    assert names(site) == ["c", "b"]
    assert sorted(os.listdir(site / "releases")) == ["000002", "000003"]
    assert rollback(site).name == used(site) == "b"
    with pytest.raises(VaeError, match="no release before 2 is kept; install the bundle"):
        rollback(site)
    # What was left stays on the disk for processes that have it open, but nothing leads to it.
    assert names(site) == ["b"]
    with pytest.raises(VaeError, match="this bundle was rolled back here"):
        install(c, site)
    install(a, site)
    assert names(site) == ["a", "b"]
    assert [release.number for release in status(site)] == [4, 2]
    with pytest.raises(VaeError, match="this bundle was rolled back here"):
        install(c, site)
    install(c, site, again=True, keep=3)
    assert names(site) == ["c", "a", "b"]
    install(b, site)
    install(c, site)
    assert results(site) == [
        *(("install", name, "ok") for name in "abc"),
        ("rollback", "b", "ok"),
        ("rollback", None, "failed"),
        ("install", "c", "failed"),
        ("install", "a", "ok"),
        ("install", "c", "failed"),
        *(("install", name, "ok") for name in "cbc"),
    ]


def test_what_is_installed_stays_unless_it_is_damaged(bundles, site):
    first = install(bundles[0], site)
    assert install(bundles[0], site) == first
    assert len(history(site)) == 1
    graph = Path(first.path) / "decoder" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    second = install(bundles[0], site)
    assert (second.number, used(site)) == (2, "a")
    with pytest.raises(VaeError, match="damaged; install the bundle that you want"):
        rollback(site)
    assert used(site) == "a"


def test_a_process_keeps_what_it_has_opened(bundles, site, monkeypatch):
    install(bundles[0], site)
    monkeypatch.chdir(site)
    old = vae_runtime.load("current")
    install(bundles[1], ".")
    x = np.ones((1, 3), np.float32)
    # The encoder is read now, and by a copy both are.
    assert np.array_equal(old.reconstruct(x), x)
    assert np.array_equal(copy.deepcopy(old).reconstruct(x), x)
    assert (old.manifest.name, vae_runtime.load("current").manifest.name) == ("a", "b")


# Refusals.


def refused(site, match, source, error=VaeError, **options):
    """An install that fails with a reason, is in the history, and leaves everything as it was."""
    before = [*names(site), *sorted(os.listdir(site / "releases")), os.readlink(site / "current")]
    with pytest.raises(error, match=match):
        install(source, site, **options)
    assert [*names(site), *sorted(os.listdir(site / "releases")), os.readlink(site / "current")] == before
    assert used(site) == "a"
    assert left_behind(site) == []
    assert history(site)[-1].result.startswith("failed: ")


def test_what_is_not_sound_is_refused(bundles, site, resign, tmp_path):
    a, b, c = bundles
    install(a, site)
    refused(site, "expected the digest", b, BundleError, digest="sha256:" + "0" * 64)
    refused(site, "not a bundle", b / "decoder", BundleError)
    graph = b / "decoder" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    refused(site, r"b/decoder/fp32/model\.onnx: expected the SHA-256", b, BundleError)
    # Another decoder under right hashes, whose structure is allowed: its answers are not the golden ones.
    sound = (c / "decoder" / "fp32" / "model.onnx").read_bytes()
    assert sound.count(b"Identity") == 1
    (c / "decoder" / "fp32" / "model.onnx").write_bytes(sound.replace(b"Identity", b"Softplus"))
    resign(c)
    refused(
        site,
        rf"^{c}: not verified on cpu: decoder/fp32 x: disagrees with 6 of 6 golden values; .*; `vae-runtime verify`",
        c,
    )
    # One that the structure check refuses, in the words of the source as well.
    (c / "decoder" / "fp32" / "model.onnx").write_bytes(sound.replace(b"Identity", b"Sigmoid_"))
    resign(c)
    refused(site, rf"^{c}: not verified on cpu: decoder/fp32.*: {c}/decoder/fp32/model\.onnx: .*Sigmoid_", c)
    assert "partial" not in (site / "history.jsonl").read_text()


def test_an_error_of_the_verification_names_the_source(bundles, site, monkeypatch):
    install(bundles[0], site)
    verify = vae_runtime.fleet.verify

    def damaged(copy, **options):
        (copy / "manifest.json").write_bytes(b"")
        return verify(copy, **options)

    monkeypatch.setattr("vae_runtime.fleet.verify", damaged)
    refused(site, rf"^{bundles[1]}/manifest\.json: expected the SHA-256", bundles[1], BundleError)


def test_windows_is_refused(bundles, site, monkeypatch):
    install(bundles[0], site)
    install(bundles[1], site)
    before = results(site)
    # The name alone: pathlib of POSIX would not work with another.
    with monkeypatch.context() as patch:
        patch.setattr("vae_runtime.fleet.os", SimpleNamespace(**{**vars(os), "name": "nt"}))
        for call in (lambda: install(bundles[2], site), lambda: rollback(site)):
            with pytest.raises(VaeError, match="site: expected Linux or macOS, got "):
                call()
        assert names(site) == ["b", "a"]
    assert results(site) == before


def test_a_signature_that_came_later_is_copied(bundles, site):
    release = install(bundles[0], site)
    (bundles[0] / "model.sig").write_bytes(b"signature")
    for content in (b"signature", b"another"):
        (bundles[0] / "model.sig").write_bytes(content)
        assert install(bundles[0], site) == release
        assert Path(release.path, "model.sig").read_bytes() == content
    (bundles[0] / "model.sig").unlink()
    install(bundles[0], site)
    assert Path(release.path, "model.sig").read_bytes() == b"another"
    assert results(site) == [("install", "a", "ok")]


def test_another_device_is_refused(bundles, site):
    install(bundles[0], site)
    refused(site, "NoSuchExecutionProvider", bundles[1], DeviceError, device="NoSuchExecutionProvider")
    refused(site, "NoSuchExecutionProvider", bundles[0], DeviceError, device="NoSuchExecutionProvider")
    with pytest.raises(InputError, match="device: expected"):
        install(bundles[1], site, device="cuda:x")
    with pytest.raises(InputError, match="keep: expected 2"):
        install(bundles[1], site, keep=1)
    with pytest.raises(InputError, match="root: expected the path of a folder"):
        install(bundles[1], 7)


def test_too_little_space_is_told_first(bundles, site, monkeypatch):
    install(bundles[0], site)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 2**20))
    refused(site, r"expected 1 MiB of free space, got 1; free some space", bundles[1])


FULL = """
import resource, sys, vae_runtime
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    vae_runtime.install(sys.argv[1], sys.argv[2])
except vae_runtime.VaeError as error:
    print(error)
"""


def test_a_disk_that_is_full_meanwhile(bundles, digits, site, python):
    install(bundles[0], site)
    done = python("-c", FULL, digits, site)
    assert "not written: File too large; free some space" in done.stdout, done.stderr
    assert used(site) == "a"
    assert left_behind(site) == []


def test_what_cannot_be_written_down_is_done_and_written_down_later(bundles, site, monkeypatch):
    install(bundles[0], site)
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise VaeError("no space")

        patch.setattr("vae_runtime.fleet.write_atomic", full)
        assert install(bundles[1], site).name == used(site) == "b"
        assert rollback(site).name == used(site) == "a"
        assert results(site) == [("install", "a", "ok")]
    install(bundles[2], site)
    assert results(site) == [("install", "a", "ok"), ("install", "c", "ok")]


def test_copies_that_never_were_in_use_do_not_gather(bundles, site, monkeypatch):
    install(bundles[0], site)

    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refuse)
        for _ in range(3):
            with pytest.raises(VaeError, match="current: not written: Operation not permitted; choose another place"):
                install(bundles[1], site)
    assert used(site) == "a"
    assert len(os.listdir(site / "releases")) == 2
    install(bundles[1], site)
    assert names(site) == ["b", "a"]
    assert len(os.listdir(site / "releases")) == 2


def test_one_at_a_time(bundles, site):
    install(bundles[0], site)
    with locked(site):
        for call in (lambda: install(bundles[1], site), lambda: rollback(site)):
            with pytest.raises(VaeError, match="site: another process installs here; wait until it has ended"):
                call()
    install(bundles[1], site)
    assert used(site) == "b"


def test_places_that_are_no_roots(bundles, site, tmp_path):
    for call in (status, rollback):
        with pytest.raises(VaeError, match="site: nothing is installed here; run `vae-runtime install"):
            call(site)
    with pytest.raises(VaeError, match=r"nothing is installed here; run `vae-runtime install"):
        history(site)
    assert not site.exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VaeError, match="file: cannot be made: "):
        install(bundles[0], tmp_path / "file")
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("/etc")):
        root = tmp_path / f"root {make}"[:20]
        root.mkdir()
        make(root / "current")
        with pytest.raises(VaeError, match="current: expected a link that `vae-runtime install` made"):
            install(bundles[0], root)
        (root / "current").rmdir() if make is Path.mkdir else (root / "current").unlink()
        shutil.rmtree(root)


def test_a_link_that_leads_to_nothing_is_made_good(bundles, site):
    install(bundles[0], site)
    shutil.rmtree(site / "releases" / "000001")
    with pytest.raises(VaeError, match="nothing is installed here"):
        status(site)
    install(bundles[1], site)
    assert names(site) == ["b"]
    install(bundles[2], site)
    assert names(site) == ["c", "b"]
    assert used(site) == "c"


DAMAGED = ["{", "[]", '{"name": "a"}', {"version": "one"}, {"previous": "1"}, {"digest": None}]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_stops_an_install_and_the_bundle_in_use_stays(bundles, site, damage):
    a, b, c = bundles
    record = Path(install(a, site).path).with_name("release.json")
    document = json.loads(record.read_text())
    record.write_text(damage if isinstance(damage, str) else json.dumps({**document, **damage}))
    for call in (lambda: install(b, site), lambda: rollback(site), lambda: status(site)):
        with pytest.raises(VaeError, match=r"000001/release\.json: expected the record of a release: .*; remove this"):
            call()
    assert used(site) == "a"
    # As the message says. An install that fails leaves the bundle in use, although nothing tells of it.
    record.unlink()
    graph = b / "decoder" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(VaeError, match=r"model\.onnx: expected the SHA-256"):
        install(b, site)
    assert used(site) == "a"
    install(c, site)
    assert names(site) == ["c"]
    assert used(site) == "c"
    assert sorted(os.listdir(site / "releases")) == ["000002"]


def test_a_record_of_a_later_version_is_read(bundles, site):
    release = install(bundles[0], site)
    record = Path(release.path).with_name("release.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "path": "elsewhere", "site": "north"}))
    assert status(site) == (release,)
    install(bundles[1], site)
    assert names(site) == ["b", "a"]


def test_the_history_is_bounded_and_takes_damaged_lines(bundles, site):
    install(bundles[0], site)
    line = (site / "history.jsonl").read_bytes()
    (site / "history.jsonl").write_bytes(line * 1100 + line.replace(b": 1,", b': "1",') + b'{"time": 3}\n\xff\n{"time')
    with (site / "history.jsonl").open("ab") as file:
        for damaged in (b'"seconds": [1]', b'"seconds": {"decode": "1"}'):
            file.write(b"\n" + line.strip().replace(b'"seconds": null', damaged).replace(b'"a"', b'"x"'))
    install(bundles[1], site)
    assert len(history(site)) == 1000
    assert [event.name for event in history(site)[-2:]] == ["a", "b"]
    for text in (site / "history.jsonl").read_text(encoding="utf-8").splitlines():
        assert set(json.loads(text)) == {
            "time", "action", "release", "name", "version", "digest", "device", "result", "seconds",
        }  # fmt: skip


def test_a_timer_that_fails_for_months_does_not_forget_what_was_rolled_back(bundles, site):
    for bundle in bundles[:2]:
        install(bundle, site)
    rollback(site)
    with pytest.raises(VaeError, match="rolled back"):
        install(bundles[1], site)
    lines = (site / "history.jsonl").read_bytes().splitlines(keepends=True)
    (site / "history.jsonl").write_bytes(b"".join(lines) + lines[-1] * 2000)
    for _ in range(2):
        with pytest.raises(VaeError, match="rolled back"):
            install(bundles[1], site)
    assert results(site)[:4] == [
        *(("install", name, "ok") for name in "ab"),
        ("rollback", "a", "ok"),
        results(site)[-1],
    ]
    assert len(history(site)) == 1000


def test_the_root_lies_outside_the_bundle(bundles):
    before = sorted(bundles[0].rglob("*"))
    for root in (bundles[0], bundles[0] / "site"):
        with pytest.raises(InputError, match="root: expected a place outside the bundle"):
            install(bundles[0], root)
    assert sorted(bundles[0].rglob("*")) == before


# Kills.


class Killed(BaseException):
    """The end of the "process": what only it would have cleaned up stays."""


STEPS = ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir")


@contextlib.contextmanager
def killed_at(step):
    """Let so many calls of the system work, and end the process at the next one."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            function = getattr(os, name)

            def call(*arguments, function=function, name=name, **options):
                if len(calls) >= step:
                    # A process that was killed does nothing more.
                    raise Killed(name)
                calls.append(name)
                return function(*arguments, **options)

            patch.setattr(os, name, call)
        yield calls


def test_killed_at_any_step_the_old_or_the_new_one_is_there(bundles, site, tmp_path):
    a, b, c = (tmp_path / f"small {bundle.name}" for bundle in bundles)
    for bundle, small in zip(bundles, (a, b, c), strict=True):
        vae_runtime.pack(bundle, small, only="decoder")
    for bundle in (a, b):
        install(bundle, site)
    with killed_at(10**6) as calls:
        install(c, Path(shutil.copytree(site, tmp_path / "counted", symlinks=True)))
    assert {"fsync", "rename", "replace", "symlink"} <= set(calls)
    seen = set()
    for step in range(len(calls)):
        scratch = Path(shutil.copytree(site, tmp_path / f"killed {step}", symlinks=True))
        with contextlib.suppress(Killed), killed_at(step):
            install(c, scratch)
        seen.add((whole(scratch), len(results(scratch)), len((scratch / "history.jsonl").read_text().splitlines())))
        before = whole(scratch)
        # The next command sees what happened, and cleans up.
        with contextlib.suppress(VaeError):
            install(c, scratch)
        assert whole(scratch) == "c"
        assert names(scratch) == ["c", "b"], step
        assert left_behind(scratch) == []
        assert results(scratch) == [("install", name, "ok") for name in "abc"]
        assert before in ("b", "c")
    # Killed before the switch, between it and the history, which is told all the same, and after it.
    assert seen == {("b", 2, 2), ("c", 3, 2), ("c", 3, 3)}


def test_a_rollback_killed_before_it_is_written_down_is_known(bundles, site):
    for bundle in bundles[:2]:
        install(bundle, site)
    with contextlib.suppress(Killed), killed_at(3):
        rollback(site)
    assert used(site) == "a"
    assert "rollback" not in (site / "history.jsonl").read_text()
    assert results(site)[-1] == ("rollback", "a", "ok")
    with pytest.raises(VaeError, match="this bundle was rolled back here"):
        install(bundles[1], site)
    assert ("rollback", "a", "ok") in results(site)


INSTALLER = """
import itertools, sys, vae_runtime
root, *sources = sys.argv[1:]
for number, source in enumerate(itertools.cycle(sources)):
    if number == len(sources):
        print("ready", flush=True)
    vae_runtime.install(source, root)
"""


@pytest.mark.parametrize("kills", [pytest.param(10, marks=pytest.mark.long), pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_the_old_or_the_new_one_is_there(bundles, site, kills):
    moment, seen = random.Random(kills), set()
    install(bundles[0], site)
    began = time.monotonic()
    for _ in range(20):
        for bundle in bundles:
            install(bundle, site)
    usual = (time.monotonic() - began) / 20
    for _ in range(kills):
        command = [sys.executable, "-c", INSTALLER, site, *bundles]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(moment.uniform(0, 2 * usual))
            process.kill()
        seen.add((used(site), tuple(left_behind(site)) != ()))
    assert {name for name, _ in seen} == set("abc")
    install(bundles[0], site)
    install(bundles[1], site)
    assert left_behind(site) == []
    assert names(site) == ["b", "a"]


# Power failures.


@contextlib.contextmanager
def observed():
    """Record what reaches the disk in which order: (call, path, …), paths as they are at that moment."""
    log = []
    with pytest.MonkeyPatch.context() as patch:
        fsync, rename, replace, rmtree = os.fsync, os.rename, os.replace, shutil.rmtree

        def see_fsync(descriptor):
            log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        def see_rename(one, other, rename=rename):
            whole = [str(one), *map(str, Path(one).rglob("*"))] if not Path(one).is_symlink() else []
            log.append(("rename", str(one), str(other), whole))
            rename(one, other)

        def see_rmtree(path, **options):
            if Path(path).exists():
                log.append(("remove", str(path)))
            rmtree(path, **options)

        patch.setattr(os, "fsync", see_fsync)
        patch.setattr(os, "rename", see_rename)
        patch.setattr(os, "replace", lambda one, other: see_rename(one, other, replace))
        patch.setattr(shutil, "rmtree", see_rmtree)
        yield log


def losses(log):
    """What a power failure could lose: renames whose content, or whose place, is not on the disk in time."""
    found, synced, pending = [], set(), []
    for call, path, *more in log:
        if call == "fsync":
            synced.add(path)
            pending = [each for each in pending if os.path.dirname(each) != path]
        elif call == "rename":
            target, whole = more
            if ".removed" not in target:
                found += [f"{each}: not synced before {target}" for each in whole if each not in synced]
            found += [f"{each}: its name is not synced before {target}" for each in pending]
            pending.append(target)
        elif call == "remove":
            found += [f"{each}: its name is not synced before its removal" for each in pending if each == path]
    return found + [f"{each}: its name is never synced" for each in pending]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_power_failure_loses_nothing(bundles, site, monkeypatch):
    for bundle in bundles:
        with observed() as log:
            install(bundle, site)
        assert losses(log) == []
        if bundle == bundles[0]:
            # The names of the root and of the folder of releases.
            assert log[:2] == [("fsync", str(site.parent)), ("fsync", str(site))]
    assert [call for call, *_ in log].count("rename") == 4
    assert [call for call, *_ in log].count("remove") == 1
    with observed() as log:
        rollback(site)
    assert losses(log) == []
    # Without any one of these calls, something could be lost.
    for number, (call, *_) in enumerate(log):
        if call == "fsync":
            assert losses([*log[:number], *log[number + 1 :]]), log[number]
    with observed() as log:
        install(bundles[0], site)
    for number, (call, *_) in enumerate(log):
        if call == "fsync":
            assert losses([*log[:number], *log[number + 1 :]]), log[number]


# The command line.


def test_the_commands(bundles, site, capsys):
    a, b, _ = map(str, bundles)
    assert main(["install", a, "--root", str(site)]) == 0
    assert "site/current: release 1, a, sha256:" in capsys.readouterr().out
    assert main(["install", b, "--root", str(site), "--keep", "3"]) == 0
    assert main(["status", "--root", str(site)]) == 0
    printed = capsys.readouterr().out
    assert "\ncurrent release 2, b, " in printed
    assert "\nbefore  release 1, a, " in printed
    assert main(["rollback", "--root", str(site)]) == 0
    assert main(["status", "--root", str(site), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("[") :])[0]["path"] == str(site / "releases" / "000001" / "bundle")
    assert main(["install", b, "--root", str(site)]) == 1
    assert "this bundle was rolled back here; install another, or this with --again\n" in capsys.readouterr().err
    assert main(["install", b, "--root", str(site), "--again"]) == 0
    assert main(["history", "--root", str(site)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["install", "install", "rollback", "install", "install"]
    assert lines[3].endswith("or this with `again`")


def test_a_bundle_is_timed_before_the_switch(bundles, site, capsys, monkeypatch):
    a, b, _ = map(str, bundles)
    monkeypatch.setattr("vae_runtime.bench._SECONDS", 0.0001)
    assert main(["install", a, "--root", str(site)]) == 0
    assert main(["install", b, "--root", str(site), "--bench"]) == 0
    times = [event.seconds for event in history(site)]
    assert times[0] is None
    assert set(times[1]) == {f"{work} fp32" for work in ("decode", "sample", "encode", "reconstruct")}
    assert all(0 < seconds < 60 for seconds in times[1].values())
    capsys.readouterr()
    assert main(["history", "--root", str(site)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  ok")
    assert re.search(r"  ok, decode fp32 [0-9.e-]+ ms, ", second)
    with pytest.raises(InputError, match="bench: expected False with provider_options"):
        install(a, site, bench=True, provider_options={"a": "b"})

    def fail(*arguments, **options):
        raise VaeError("a graph failed")

    monkeypatch.setattr("vae_runtime.bench.bench", fail)
    with pytest.raises(VaeError, match="a graph failed"):
        install(bundles[2], site, bench=True)
    assert used(site) == "b"


def test_the_units_of_the_guide_call_commands_that_exist(root):
    text = (root / "docs" / "fleet.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ExecStart=/opt/vae/bin/vae-runtime (.+)$", text, re.MULTILINE)
    verbs = [build_parser().parse_args(shlex.split(line.replace("${DIGEST}", "0" * 64))).command for line in commands]
    assert [verb.__name__ for verb in verbs] == ["_install", "_rollback"]


# Versions.


@pytest.fixture
def versioned(small_bundle, edit_manifest):
    """Write a small bundle of a version, or of none."""

    def write(version):
        bundle = small_bundle(name=f"v{version}")
        edit_manifest(bundle, lambda document: document.update({"package_version": version} if version else {}))
        return bundle

    return write


def test_an_older_version_is_refused(versioned, site):
    assert install(versioned("1.2.0"), site).version == "1.2.0"
    for newer in ("1.2", "1.10.0", "2"):
        install(versioned(newer), site)
    for older in ("1.99.99", "0.3"):
        with pytest.raises(VaeError, match=rf"expected a version of at least 2, which is installed, got {older};"):
            install(versioned(older), site)
        assert status(site)[0].version == "2"
    assert install(versioned("1.1"), site, allow_older=True).version == "1.1"
    # Only what is installed counts: it was asked for.
    install(versioned("1.1.1"), site)
    rollback(site)
    install(versioned("1.1.0.1"), site)


def test_a_bundle_without_a_version(versioned, site, caplog, capsys):
    plain = versioned(None)
    assert install(plain, site).version is None
    assert "vNone: the bundle has no package_version, so an older one cannot be told from a newer" in caplog.text
    caplog.clear()
    install(plain, site)
    install(versioned("1.0"), site)
    assert caplog.text == ""
    assert main(["install", str(plain), "--root", str(site)]) == 1
    assert "got none; install it with --allow-older if you mean it" in capsys.readouterr().err
    assert main(["install", str(plain), "--root", str(site), "--allow-older"]) == 0
