"""Graphs that take one row: every call gives the rows that graphs with a free batch give, at any batch size."""

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import session as module
from vae_runtime.bench import bench
from vae_runtime.bundle import open_bundle
from vae_runtime.cli.main import main
from vae_runtime.document import KNOWN_FIELDS, parse
from vae_runtime.errors import BundleError
from vae_runtime.manifest import COMPONENTS
from vae_runtime.session import RowSession, Session

PER_TEST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHOICES = [("encoder",), ("decoder",), COMPONENTS]


def equal(a, b):
    return a.dtype == b.dtype and np.array_equal(a, b)


def observations(n):
    return np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)


def answers(vae, n, batch_size):
    """What each method gives for `n` rows."""
    x, more = observations(n), {"batch_size": batch_size}
    q = vae.encode(x, **more)
    yield from (q.mean, q.logvar, q.std, vae.reconstruct(x, **more), vae.decode(x, **more))
    yield from vae.decoder_outputs(x, **more).values()
    yield vae.sample(n, seed=1, **more)
    yield vae.sample(n, seed=1, observe=True, **more)
    yield vae.score(x, seed=1, k=3).log_likelihood
    yield from chain(vae.stream(n, seed=1, batch_size=batch_size or 5))


def disagreements(one, other, n, batch_size):
    pairs = zip(answers(one, n, batch_size), answers(other, n, batch_size), strict=True)
    return [number for number, pair in enumerate(pairs) if not equal(*pair)]


@pytest.fixture
def pair(small_bundle):
    """Load a bundle whose graphs take one row, and the same with a free batch."""

    def load(batch_of_one=COMPONENTS, kind="gaussian"):
        folders = small_bundle(kind, name="rows", batch_of_one=batch_of_one), small_bundle(kind, name="free")
        return [vae_runtime.load(folder) for folder in folders]

    return load


@pytest.mark.parametrize("batch_of_one", CHOICES, ids="-".join)
def test_any_batch_size_gives_the_same_rows(pair, batch_of_one):
    rows, free = pair(batch_of_one)
    assert rows.manifest.batch_of_one == batch_of_one

    @given(n=st.integers(1, 70), batch_size=st.none() | st.integers(1, 80))
    @PER_TEST
    def holds(n, batch_size):
        assert disagreements(rows, free, n, batch_size) == []

    holds()


def test_graphs_of_several_outputs_too(pair):
    rows, free = pair(kind="bernoulli")
    x = np.array([[0, 1, 1], [1, 0, 0]], np.float32)
    assert equal(rows.decoder_outputs(x)["logits"], x)
    assert equal(rows.score(x, seed=0).elbo, free.score(x, seed=0).elbo)


def test_conditions_and_codes_too(codes_bundle):
    vaes = [vae_runtime.load(codes_bundle(name, batch)) for name, batch in (("rows", COMPONENTS), ("free", ()))]
    x = np.random.default_rng(0).random((9, 3), np.float32) * 4
    labels = {"label": np.arange(9) % 3}
    codes = [vae.encode(x, conditions=labels).mode() for vae in vaes]
    assert equal(*codes)
    assert len(np.unique(codes[0], axis=0)) > 3
    assert equal(*(vae.decode(codes[0], conditions=labels, batch_size=4) for vae in vaes))


@pytest.mark.parametrize("wrong", ["reversed", "first", "short"])
def test_a_wrong_loop_is_seen(pair, monkeypatch, wrong):
    rows, free = pair()
    divided = module._rows

    def wrongly(arrays):
        parts = list(divided(arrays))
        return {"reversed": parts[::-1], "first": parts[:1] * len(parts), "short": parts[:-1] or parts}[wrong]

    assert vae_runtime.verify(rows.bundle.path).passed
    # Arrays that a graph writes into are divided by it too, which would undo an order.
    monkeypatch.setattr(RowSession, "run_into", lambda self, feeds, into: [
        np.copyto(into[name], part) for name, part in zip(into, self.run(list(into), feeds), strict=True)
    ])  # fmt: skip
    assert disagreements(rows, free, 3, None) == []
    monkeypatch.setattr(module, "_rows", wrongly)
    if wrong == "short":
        with pytest.raises(ValueError, match="broadcast"):
            rows.decode(observations(3))
    else:
        assert disagreements(rows, free, 3, None) != []
    assert not vae_runtime.verify(rows.bundle.path).passed


@pytest.mark.parametrize("says", [True, False])
def test_a_graph_has_the_batch_that_the_manifest_says(small_bundle, edit_manifest, says):
    folder = small_bundle(batch_of_one=() if says else COMPONENTS)

    def change(document):
        ours = document["additional_metadata"]["vae"]
        if says:
            ours["batch_of_one"] = ["decoder"]
        else:
            del ours["batch_of_one"]

    edit_manifest(folder, change)
    expected = "[1, 3]" if says else "[batch, 3]"
    with pytest.raises(BundleError, match=f"expected float32 {expected}".replace("[", r"\[")):
        vae_runtime.load(folder)


def test_few_rows_take_bound_calls_of_one_row(pair):
    rows, free = pair()
    assert [vae._networks.mean.max_rows for vae in (rows, free)] == [1, 512]
    assert equal(rows.sample(1, seed=3), free.sample(1, seed=3))
    assert equal(rows.reconstruct(observations(1)), free.reconstruct(observations(1)))


def test_an_ordinary_bundle_opens_ordinary_sessions(pair):
    rows, free = pair(("decoder",))
    kinds = [[type(vae._networks.session(name)) for name in COMPONENTS] for vae in (rows, free)]
    assert kinds == [[Session, RowSession], [Session, Session]]


def test_results_may_stay_on_the_device(pair):
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime.OrtValue, "__dlpack__"):
        pytest.skip("this ONNX Runtime has no DLPack")
    rows, _ = pair()
    for n in (1, 5):
        for size in (None, 2):
            value = rows.sample(n, seed=1, on_device=True, batch_size=size)
            assert equal(np.from_dlpack(value), rows.sample(n, seed=1))


def test_many_samples_on_disk_are_those_of_a_free_batch(pair, tmp_path):
    rows, free = pair()
    job = {"n": 50, "seed": 4, "batch_size": 8, "shard_size": 16, "workers": 1}
    made = [vae_runtime.generate(vae.bundle.path, tmp_path / name, **job) for name, vae in (("a", rows), ("b", free))]
    assert equal(*(np.asarray(samples[:]) for samples in made))
    assert vae_runtime.verify_samples(tmp_path / "a", rows.bundle.path, shards=2).passed


def test_a_benchmark_runs_its_plain_session_row_by_row(pair):
    rows, _ = pair()
    result = bench(rows.bundle.path, batches=(1, 3), rounds=1, variants=["fp32"])
    assert {(timing.work, timing.batch) for timing in result.timings} >= {("decode", 3), ("encode", 3)}
    assert {timing.difference for timing in result.timings if timing.difference is not None} == {0.0}


def test_info_says_so_and_packing_keeps_it(pair, tmp_path, capsys):
    rows, free = pair(("decoder",))
    assert main(["info", str(rows.bundle.path)]) == 0
    assert "decoder: the graphs take one row, so a batch runs row by row" in capsys.readouterr().out
    assert main(["info", str(free.bundle.path)]) == 0
    assert "one row" not in capsys.readouterr().out
    vae_runtime.pack(rows.bundle.path, tmp_path / "packed.zip", only=["decoder"])
    packed = vae_runtime.load(tmp_path / "packed.zip")
    assert packed.manifest.batch_of_one == ("decoder",)
    assert equal(packed.sample(5, seed=2), rows.sample(5, seed=2))


def test_a_reader_that_does_not_know_it_refuses_the_bundle(pair, monkeypatch):
    rows, free = pair()
    text = (rows.bundle.path / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["additional_metadata"]["vae"]["must_understand"] == ["batch_of_one"]
    assert "must_understand" not in (free.bundle.path / "manifest.json").read_text(encoding="utf-8")
    monkeypatch.setattr("vae_runtime.document.KNOWN_FIELDS", KNOWN_FIELDS - {"batch_of_one"})
    with pytest.raises(BundleError, match=r'must_understand: .* got "batch_of_one"; this bundle is newer'):
        parse(text)
    assert open_bundle(free.bundle.path).manifest.batch_of_one == ()
