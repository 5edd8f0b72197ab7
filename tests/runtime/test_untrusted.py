"""Limits for bundles of strangers: `load(max_memory=, max_seconds=)`, and `--untrusted`, a process with limits."""

import pickle
import sys

import onnxruntime
import pytest

import vae_runtime
from vae_runtime import DeviceError, InputError, VaeError
from vae_runtime.cli import limits
from vae_runtime.cli.main import main

has_arenas = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 23), reason="this ONNX Runtime has one arena for all"
)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are those of Linux")


@linux
def test_an_untrusted_bundle_is_sampled_as_any_other(digits, tmp_path):
    for name, flags in (("a.npy", ()), ("b.npy", ("--untrusted",))):
        assert main(["sample", str(digits), "-n", "2", "--seed", "1", "--out", str(tmp_path / name), *flags]) == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@linux
def test_the_limits_hold(monkeypatch, capfd):
    limited = "import sys; from vae_runtime.cli.limits import set_limits; set_limits(); "
    shown = "import resource as r; print(r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_CORE)[0])"
    monkeypatch.setattr(limits, "_CHILD", limited + shown)
    assert limits.run_limited([]) == 0
    assert capfd.readouterr().out == f"{limits.MEMORY} 0\n"
    for code, message in (
        ("bytearray(2**33)", None),
        ("import os; os.kill(os.getpid(), 24)", "60 seconds of the processor"),
        ("import os; os.abort()", r"crashed \(SIGABRT\), probably at the limit of 4 GiB"),
    ):
        monkeypatch.setattr(limits, "_CHILD", limited + code)
        if message is None:
            assert limits.run_limited([]) == 1
            assert "MemoryError" in capfd.readouterr().err
        else:
            with pytest.raises(VaeError, match=message):
                limits.run_limited([])


@linux
def test_a_refusal_in_that_process_is_one_line(tmp_path, capfd):
    assert main(["info", str(tmp_path), "--untrusted"]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_other_systems_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(VaeError, match="untrusted: expected Linux, got darwin"):
        limits.run_limited([])


def test_a_batch_within_its_time_gives_the_same_answer(digits, vae):
    z = vae.prior(5, seed=0)
    with pytest.raises(InputError, match=r"max_seconds: expected a number from 0\.001 to 1e\+06, got True"):
        vae_runtime.load(digits, max_seconds=True)
    limited = vae_runtime.load(digits, max_seconds=60)
    for each in (limited, pickle.loads(pickle.dumps(limited))):
        assert (each.decode(z) == vae.decode(z)).all()
        assert each._networks.max_seconds == 60


def test_a_batch_that_takes_too_long_ends(digits):
    slow = vae_runtime.load(digits, max_seconds=1e-3)
    with pytest.raises(VaeError, match=r"model\.onnx: expected an answer within max_seconds=0\.001; compute fewer"):
        slow.sample(300_000, seed=0, batch_size=300_000)


def test_max_seconds_is_a_number(digits):
    for wrong in (0, -1, "1", float("nan")):
        with pytest.raises(InputError, match=r"^max_seconds: expected a number from 0\.001"):
            vae_runtime.load(digits, max_seconds=wrong)


@has_arenas
def test_a_batch_within_its_memory_gives_the_same_answer(digits, vae):
    z = vae.prior(5, seed=0)
    limited = vae_runtime.load(digits, max_memory=2**24)
    for each in (limited, pickle.loads(pickle.dumps(limited))):
        assert (each.decode(z) == vae.decode(z)).all()
    # The copy has the limit, too.
    with pytest.raises(VaeError, match="max_memory=16777216"):
        each.sample(100_000, seed=0, batch_size=100_000)


@has_arenas
def test_each_graph_has_a_limit_of_its_own(digits, vae):
    small, large = (vae_runtime.load(digits, max_memory=memory) for memory in (2**23, 2**28))
    words = r"model\.onnx: expected at most max_memory=8388608 bytes between operators; compute fewer rows at a time"
    with pytest.raises(VaeError, match=words):
        small.sample(50_000, seed=0, batch_size=50_000)
    for unlimited in (large, vae):
        assert unlimited.sample(50_000, seed=0, batch_size=50_000).shape[0] == 50_000
    assert small.sample(50_000, seed=0).shape[0] == 50_000


@linux
@has_arenas
def test_the_process_stays_within_that_memory(digits, python):
    code = """
import sys, vae_runtime
from vae_runtime import VaeError
vae = vae_runtime.load(sys.argv[1], max_memory=int(sys.argv[2]))
vae.sample(1, seed=0)
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
before = peak()
try:
    vae.sample(400_000, seed=0, batch_size=400_000)
except VaeError:
    print("refused", end=" ")
print(peak() - before)
"""
    whole = int(python("-c", code, digits, 2**34).stdout)
    word, limited = python("-c", code, digits, 2**25).stdout.split()
    assert word == "refused"
    # Latents, which are not counted, take some 13 MiB, and their noise three times as much.
    assert int(limited) < 32 + 100 < whole


def test_max_memory_is_an_integer_for_the_cpu(digits):
    for wrong in (0, 2**60, "1", True, 1.5):
        with pytest.raises(InputError, match=r"^max_memory: expected "):
            vae_runtime.load(digits, max_memory=wrong)
    with pytest.raises(InputError, match=r"^max_memory: expected the device cpu, got cuda; on CUDA, give provider_opt"):
        vae_runtime.load(digits, max_memory=2**24, device="cuda")


def test_an_onnx_runtime_without_such_limits_is_named(digits, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("already registered")

    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", refuse)
    words = r"^max_memory: ONNX Runtime .* cannot limit one session: already registered; install a newer one"
    with pytest.raises(DeviceError, match=words):
        vae_runtime.load(digits, max_memory=2**24)


@has_arenas
def test_the_command_line_takes_that_limit(digits, tmp_path, capfd):
    out = str(tmp_path / "a.npy")
    words = ["sample", str(digits), "-n", "50000", "--batch-size", "50000", "--seed", "1", "--out", out]
    assert main([*words, "--max-memory", str(2**23)]) == 1
    assert "expected at most --max-memory 8388608 bytes between operators" in capfd.readouterr().err
    assert not (tmp_path / "a.npy").exists()
    assert main([*words, "--max-memory", str(2**28)]) == 0
    with pytest.raises(SystemExit):
        main([*words, "--max-memory", "0"])
    assert "argument --max-memory: expected 1048576 … " in capfd.readouterr().err
