"""What `bench` gives, not how fast anything is."""

import json
import re
import shutil

import numpy as np
import pytest

from vae_runtime import BundleError, InputError, VaeError
from vae_runtime import bench as bench_module
from vae_runtime.bench import WORK, bench
from vae_runtime.cli import main as cli
from vae_runtime.packing import pack
from vae_runtime.places import SUMS, format_sums


def quickly(path, **options):
    return bench(path, **{"batches": (1, 3), "rounds": 2, "variants": ["fp32"], **options})


def sign(bundle):
    """List the hashes of what is there."""
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name != SUMS]
    (bundle / SUMS).write_bytes(format_sums((p.relative_to(bundle).as_posix(), p.read_bytes()) for p in files))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(bench_module, "_SECONDS", 0.001)


def test_every_work_and_batch_is_timed_in_every_round(digits):
    found = quickly(digits, variants=None)
    assert {(t.work, t.batch, t.contender) for t in found.timings} == {
        (work, batch, name) for work in WORK for batch in (1, 3) for name in ("plain", "fp32", "fp16", "int8")
    }
    for timing in found.timings:
        assert len(timing.seconds) == len(timing.ratios) == 2
        assert all(seconds > 0 for seconds in timing.seconds)
    assert found.left_out == ()


def test_ratios_are_of_the_same_round(digits):
    timings = {(t.work, t.batch, t.contender): t for t in quickly(digits).timings}
    for (work, batch, _), timing in timings.items():
        plain = timings[work, batch, "plain"]
        assert timing.ratios == tuple(a / b for a, b in zip(plain.seconds, timing.seconds, strict=True))


def test_the_same_input_gives_the_same_answer(digits):
    for timing in quickly(digits).timings:
        if timing.contender == "plain" or timing.work == "sample":
            assert timing.difference is None
        else:
            assert timing.difference <= 1e-5


def test_a_difference_is_seen(digits, monkeypatch):
    decode = bench_module.VAE.decode
    monkeypatch.setattr(
        bench_module.VAE, "decode", lambda vae, *given, **more: decode(vae, *given, **more) + np.float32(0.5)
    )
    found = {t.contender: t for t in quickly(digits, work=["decode"], batches=[1]).timings}
    assert found["fp32"].difference == pytest.approx(0.5, abs=1e-4)


def test_an_answer_of_another_shape_is_refused(digits, monkeypatch):
    decode = bench_module.VAE.decode
    monkeypatch.setattr(bench_module.VAE, "decode", lambda vae, *given, **more: decode(vae, *given, **more)[:, :, 1:])
    with pytest.raises(VaeError, match=r"decode in fp32: expected \[1, 1, 8, 8\] .*, got \[1, 1, 7, 8\]"):
        quickly(digits, work=["decode"])


def test_threads_are_timed_each(digits):
    found = quickly(digits, threads=(1, 2), work=["decode"], batches=[1])
    assert [(t.threads, t.contender) for t in found.timings] == [(1, "plain"), (1, "fp32"), (2, "plain"), (2, "fp32")]


def test_conditions_are_given_to_both(root):
    found = quickly(root / "models" / "digits-conditional", batches=[2])
    assert {t.work for t in found.timings} == set(WORK)
    assert all(t.difference is None or t.difference <= 1e-5 for t in found.timings)


@pytest.mark.usefixtures("external_data")
def test_weights_beside_a_graph_are_found(weighted_bundle):
    found = quickly(weighted_bundle(), work=["decode"])
    assert [t.difference for t in found.timings if t.contender == "fp32"] == [0.0, 0.0]


def test_several_latents_are_given_by_name(levels_bundle):
    found = quickly(levels_bundle(), batches=[1])
    assert {t.work for t in found.timings} == {"decode", "sample", "encode"}
    assert found.left_out == ("reconstruct was left out: several latents take more than two sessions",)


def test_without_a_prior_samples_are_left_out(codes_bundle):
    found = quickly(codes_bundle(), batches=[1])
    assert {t.work for t in found.timings} == {"decode", "encode", "reconstruct"}
    (reason,) = found.left_out
    assert "standard normal prior" in reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches: expected at least one number, got none"),
        ({"batches": (0,)}, "batches: expected 1 …"),
        ({"threads": (1.5,)}, "threads: expected an integer"),
        ({"threads": (2000,)}, "threads: expected 1 … 1024, got 2000"),
        ({"work": ("dream",)}, "work: expected some of decode, sample, encode, reconstruct, got dream"),
        ({"work": ()}, "got none"),
        ({"rounds": 0}, "rounds: expected 1 …"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_arguments_are_refused_by_name(digits, options, message):
    with pytest.raises(InputError, match=message):
        quickly(digits, **options)


def test_a_variant_that_is_not_there_is_refused(digits):
    with pytest.raises(BundleError, match="no variant 'int3'"):
        quickly(digits, variants=["int3"])


def test_a_damaged_graph_is_refused_before_it_is_timed(bundle_copy):
    path = bundle_copy / "decoder" / "fp32" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        quickly(bundle_copy)


def test_a_damaged_bundle_is_refused(bundle_copy):
    (bundle_copy / "encoder" / "fp32" / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        quickly(bundle_copy, batches=[1])


def test_a_variant_that_gives_wrong_numbers_is_not_timed(bundle_copy):
    """Its graph is another variant's, and the list of hashes says so: only the golden vectors know."""
    decoder = bundle_copy / "decoder"
    (decoder / "fp16" / "model.onnx").write_bytes((decoder / "int8" / "model.onnx").read_bytes())
    sign(bundle_copy)
    found = quickly(bundle_copy, variants=None, batches=[1])
    assert {t.contender for t in found.timings} == {"plain", "fp32", "int8"}
    (reason,) = found.left_out
    assert reason.startswith("fp16 was left out: decoder/fp16 x does not verify: ")
    (decoder / "fp32" / "model.onnx").write_bytes((decoder / "int8" / "model.onnx").read_bytes())
    sign(bundle_copy)
    with pytest.raises(BundleError, match="decoder/fp32 x"):
        quickly(bundle_copy, batches=[1])


@pytest.mark.usefixtures("external_data")
def test_weights_beside_a_graph_are_found_in_an_archive(weighted_bundle, tmp_path):
    pack(weighted_bundle(), tmp_path / "small.zip")
    assert quickly(tmp_path / "small.zip", batches=[1], work=["decode"], variants=None).timings


@pytest.mark.parametrize("only", ["decoder", "encoder"])
def test_packs_of_one_component_are_timed(root, tmp_path, only):
    pack(root / "models" / "digits-conditional", tmp_path / "small.zip", only=[only])
    found = quickly(tmp_path / "small.zip", batches=[1])
    assert {t.work for t in found.timings} == ({"decode", "sample"} if only == "decoder" else {"encode"})
    assert all("was left out when this bundle was packed" in reason for reason in found.left_out)
    with pytest.raises(VaeError, match="nothing could be timed; reconstruct was left out"):
        quickly(tmp_path / "small.zip", work=["reconstruct"])


def test_the_command_prints_a_table(digits, capsys):
    assert cli.main(["bench", str(digits), "--batch", "1,2", "--rounds", "2", "--variant", "fp32"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"decode +2 +1 +\S+ (µs|ms) +\S+ \(\S+–\S+\)", out)
    assert "processors, load" in out


def test_the_command_prints_json(digits, capsys):
    assert cli.main(["bench", str(digits), "--batch", "1", "--rounds", "2", "--variant", "fp32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {timing["contender"] for timing in found["timings"]} == {"plain", "fp32"}
    assert all(len(timing["seconds"]) == 2 for timing in found["timings"])


def test_the_command_says_what_is_wrong(digits, tmp_path, capsys):
    assert cli.main(["bench", str(digits), "--variant", "int3"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    assert cli.main(["bench", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    for arguments in (["--batch", "0"], ["--batch", "many"], ["--threads", "0"], ["--rounds", "0"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["bench", str(digits), *arguments])
        assert exit_.value.code == 2
