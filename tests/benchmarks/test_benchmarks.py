"""The comparison runs from end to end on a tiny model, and refuses what it must not count."""

import json
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import comparison, report, streams, tiles
from benchmarks.bounds import Bounds
from benchmarks.capacity import BUSY_LOOPS
from benchmarks.contender import Unavailable
from benchmarks.contenders import CONTENDERS, Naive
from benchmarks.figures import Results, generation_ratio, host_ratio, shown
from benchmarks.processes import Died, Process
from benchmarks.runs import ROOT, Run
from benchmarks.summary import CASES
from benchmarks.targets import Target, targets
from benchmarks.worker import TOLERANCE, Worker, compared
from vae_runtime.errors import InputError
from vae_runtime.timing import Quartiles

HERE = ("eager", "naive", "ours-fp32")


@pytest.fixture
def data_copy(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "data"))


def options(data, out, *more):
    return ["--quick", "--models", "tiny", "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """The folder that a quick run has written into."""
    out = tmp_path_factory.mktemp("docs")
    parts = ("--parts", ",".join(part for part in program.PARTS if part != "tiles"))
    assert program.main(options(data, out, *parts, "--contenders", ",".join([*HERE, "ours-int8"]))) == 0
    return out


@pytest.fixture
def found(finished):
    return json.loads((finished / report.FIGURES).read_text(encoding="utf-8"))


@pytest.fixture
def bench(data, tmp_path):
    """A run that has not begun, of the naive contender alone and with one thread."""
    given = options(data, tmp_path, "--contenders", "naive", "--threads", "1", "--rounds", "1")
    bench = Run(program.parser().parse_args(given))
    yield bench
    for process in bench.processes.values():
        process.close()


@pytest.mark.long
def test_a_quick_run_measures_every_contender_at_every_work(found):
    cells = {(entry["model"], entry["threads"], entry["work"], entry["batch"]) for entry in found["rounds"]}
    assert {(1, work, batch) for _, *rest in cells for threads, work, batch in [rest] if threads == 1} >= {
        (1, work, batch) for work in ("decode", "encode", "reconstruct", "sample") for batch in (1, 8)
    }
    for entry in found["rounds"]:
        expected = {"naive", "ours-fp32"} if entry["work"] in ("next", "stream", "noise") else set(HERE)
        assert set(entry["seconds"]) == expected
        assert all(0 < seconds < 60 for seconds in entry["seconds"].values())
    assert {entry["round"] for entry in found["load"]} == {0, 1, 2}
    skipped = [entry for entry in found["skipped"] if entry.get("work") != "other languages"]
    assert skipped == [{"contender": "ours-int8", "model": "tiny", "reason": "the bundle has no variant int8"}]


@pytest.mark.long
def test_every_answer_was_compared_before_it_was_timed(found):
    compared_ = {(e["contender"], e["work"], e["batch"], e["threads"]) for e in found["parity"] if e["passed"]}
    for entry in found["rounds"]:
        for name in entry["seconds"]:
            assert (name, entry["work"], entry["batch"], entry["threads"]) in compared_
    assert all(entry["difference"] <= TOLERANCE for entry in found["parity"] if entry.get("difference"))


@pytest.mark.long
def test_a_run_measures_cold_starts_workers_and_limits(found):
    for entry in found["cold"]:
        assert set(entry["contenders"]) == set(HERE)
        for taken in entry["contenders"].values():
            assert taken["memory"] > 2**20
            assert taken["wall"] > 0 < taken["cpu"]
    assert {entry["loops"] for entry in found["workers"]} == {0, BUSY_LOOPS}
    assert all(set(entry["rates"]) == {"one", "two", "wide"} for entry in found["workers"])
    assert {entry["work"] for entry in found["limits"]} == {"sgemm-numpy", "sgemm-ort", "int8-ort", "read"}
    about = found["models"]["tiny"]
    # Two layers of the decoder: a product and a sum for each weight.
    assert about["decode_flops"] == 2 * (8 * 64 + 64 * 128 + 128 * 64)
    assert about["encode_flops"] == 2 * (64 * 128 + 128 * 64 + 64 * 16)
    packages = found["contenders"]["naive"]["packages"]
    assert packages["onnxruntime"][1] > 2**20 < packages["numpy"][1]


@pytest.mark.long
def test_samples_are_written_to_files_and_decoding_alone_is_beside_them(found):
    kinds = {(turn["kind"], turn["workers"]) for turn in found["generation"]}
    assert kinds == {("decode", 1), ("decode", 2), ("files", 1), ("files", 2), ("start", 1), ("disk", 1)}
    for turn in found["generation"]:
        assert turn["seconds" if turn["kind"] == "start" else "rate"]
    files = next(turn for turn in found["generation"] if turn["kind"] == "files")
    assert set(files["seconds"]) == set(report.PHASES)
    assert generation_ratio(found, "tiny", "decode", 2).median == 1
    assert "to files, 2 workers" in report.generation_section(found)
    assert report.generation_section({**found, "generation": []}) == "Not measured in this run."


def made_up():
    """The figures of a run: one model, four contenders, two batches, three rounds, and rates for easy sums."""
    seconds = {"naive": 4e-3, "ours-fp32": 2e-3, "ours-int8": 1e-3, "litert": 1.6e-3}
    exact = {"naive": True, "ours-fp32": True, "ours-int8": False, "litert": True}
    about = {"title": "MLP", "decode_flops": 10**6, "decoder_bytes": 4 * 10**6, "encode_flops": 2 * 10**6}
    return {
        "models": {"mlp": {**about, "encoder_bytes": 10**6, "variants": [
            {"component": "decoder", "variant": "int8", "size": 10**6},
        ]}},
        "contenders": {name: {"title": name.upper(), "exact": value} for name, value in exact.items()},
        "rounds": [
            {"model": "mlp", "threads": 1, "work": work, "batch": batch, "round": number, "seconds": seconds}
            for number in range(3) for batch in (1, 64) for work in ("decode", "reconstruct")
        ],
        "limits": [
            {"threads": 1, "work": "sgemm-numpy", "amount": 256, "per_second": 1e9},
            {"threads": 1, "work": "sgemm-ort", "amount": 256, "per_second": 2e9},
            {"threads": 1, "work": "int8-ort", "amount": 256, "per_second": 8e9},
            {"threads": 1, "work": "read", "amount": 2**18, "per_second": 8e9},
            {"threads": 1, "work": "read", "amount": 2**20, "per_second": 4e9},
            {"threads": 1, "work": "read", "amount": 2**26, "per_second": 1e9},
        ],
        "cold": [{"contenders": {"naive": {"wall": 0.3}, "ours-fp32": {"wall": 0.2}}}] * 3,
    }  # fmt: skip


def test_the_least_time_is_that_of_the_products_or_of_reading_the_weights():
    found = made_up()
    bounds, results = Bounds(found), Results(found)
    # The best product, and the read whose amount is nearest to the weights.
    assert bounds.parts("mlp", 1, "decode", 1) == pytest.approx((0.5e-3, 1e-3))
    assert bounds.parts("mlp", 1, "decode", 64) == pytest.approx((32e-3, 1e-3))
    assert bounds.parts("mlp", 1, "decode", 1, "int8") == pytest.approx((0.125e-3, 0.125e-3))
    assert bounds.parts("mlp", 1, "reconstruct", 1) == pytest.approx((1.5e-3, 1e-3 + 0.125e-3))
    assert bounds.ratio(results, "mlp", 1, "decode", 1).median == pytest.approx(4.0)
    text = report.work_section(found)
    assert "| limit, fp32 | 4 (4–4) | 0.125 (0.125–0.125) |" in text
    assert text.count("| limit, int8 |") == 1
    assert "| MLP | 1 | 1 ms | reading weights | 25 % | 50 % | 12 % |" in report.limits_section(found)


def test_figures_of_an_older_run_have_no_limits():
    found = made_up()
    found["limits"] = [entry for entry in found["limits"] if entry["work"] != "int8-ort"]
    del found["models"]["mlp"]["encode_flops"]
    bounds = Bounds(found)
    assert bounds.parts("mlp", 1, "decode", 1) is not None
    for work, threads, form in (("reconstruct", 1, "fp32"), ("decode", 2, "fp32"), ("decode", 1, "int8")):
        assert bounds.parts("mlp", threads, work, 1, form) is None
    assert "| limit, int8 | not measured | not measured |" in report.work_section(found)
    assert "| MLP | 1 | 1 ms | reading weights | 25 % | 50 % | – |" in report.limits_section(found)


def test_the_page_opens_with_what_is_fastest():
    rows = report.summary_section(made_up()).splitlines()[2:]
    assert len(rows) == len(CASES) == 10
    assert rows[0] == "| MLP, decode one | LITERT: 2.5 | 2 | OURS-INT8: 4 | 4 | 4 |"
    assert rows[2] == "| MLP, sample one, a fresh seed | not measured | – | – | – | – |"
    assert rows[4] == "| 28×28 convolutions, decode one | not measured | – | – | – | – |"
    assert rows[9] == "| from the start of Python to the first sample | OURS-FP32: 1.5 | 1.5 | – | – | – |"
    nothing = {**made_up(), "models": {}, "cold": []}
    assert all("not measured" in row for row in report.summary_section(nothing).splitlines()[2:])


def test_the_figures_that_ship_make_every_part_of_the_page(root):
    found = json.loads((root / "benchmarks" / report.FIGURES).read_text(encoding="utf-8"))
    for name, section in report.SECTIONS.items():
        assert section(found), name


def test_c_is_compared_with_python_in_each_round():
    def taken(wall, memory, sample):
        return {"wall": wall, "cpu": wall, "memory": memory, "sample": sample}

    hosts = {"naive": taken(0.2, 2**26, 3e-5), "ours-fp32": taken(0.2, 2**26, 2e-5), "c": taken(0.05, 2**25, 1e-5)}
    entry = {"round": 0, "model": "Tiny", "sizes": {"c": 2**18, "onnxruntime": 2**24}, "load": 1.5, "hosts": hosts}
    found = {"hosts": [entry, entry]}
    text = report.hosts_section(found)
    assert "| vae-runtime in C | 50.0 ms | 50.0 ms | 32.0 MiB | 10.0 µs: vae_sample |" in text
    assert "256 KiB" in text
    assert "2 rounds, Tiny; the machine's load was 1.5." in text
    assert host_ratio(found, "c", "ours-fp32", "wall").median == 0.25
    assert report.hosts_section({}) == "Not measured in this run."


def test_the_noise_of_javascript_is_compared_in_each_round():
    found = {
        "javascript": [
            {"noise": 20.0, "random": 30.0},
            {"noise": 40.0, "random": 80.0},
            {"noise": 20.0, "random": 40.0},
        ]
    }
    text = report.javascript_section(found)
    assert "A number takes 20.0 ns" in text
    assert "40.0 ns: vnoise-1 is 2 (1.75–2) times as fast, in 3 rounds." in text
    assert report.javascript_section({}) == "Not measured in this run."


@pytest.mark.long
def test_a_part_that_is_left_out_keeps_its_figures(data, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "docs"))
    figures = out / report.FIGURES
    before = json.loads(figures.read_text(encoding="utf-8"))
    figures.write_text(json.dumps({**before, "date": "then", "generation": []}), encoding="utf-8")
    assert program.main(options(data, out, "--parts", "generation")) == 0
    after = json.loads(figures.read_text(encoding="utf-8"))
    assert after["date"] == "then"
    assert after["rounds"] == before["rounds"]
    assert len(after["generation"]) == len(before["generation"])


SMALL = "AutoencoderKL (8, 16), to try the program"


@pytest.mark.long
def test_the_benchmark_of_streams_compares_every_way(tmp_path, capsys, monkeypatch):
    words = ["--filters", "2", "--rounds", "2", "--chunks", "1,20", "--out", str(tmp_path)]
    assert streams.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| decode_stream", "1"], ["| decode, all until now again", "20"], ["| decode_stream", "20"],
        ["| decode, once all are there", "50"],
    ]  # fmt: skip
    monkeypatch.setattr(streams, "TOLERANCE", -1.0)
    assert streams.main(words) == 1
    assert "expected the answer of decode" in capsys.readouterr().err


@pytest.mark.long
def test_the_benchmark_of_tiles_compares_every_way(tmp_path, capsys, monkeypatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    words = ["--models", SMALL, "--sizes", "32,64", "--data", str(tmp_path / "data")]
    assert tiles.main([*words, "--out", str(tmp_path / "a")]) == 0
    assert f"| {SMALL} | vae-runtime, blended tiles |" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "tiles.json").read_text(encoding="utf-8"))
    assert found["skipped"] == []
    assert [cell["way"] for cell in found["cells"]] == 2 * [
        "diffusers", "diffusers, its tiles", "diffusers, its tiles halved",
        "vae-runtime", "vae-runtime, blended tiles", "vae-runtime, blended tiles halved",
    ]  # fmt: skip
    assert all(cell["seconds"] > 0 and 20 < cell["peak"] < 4000 for cell in found["cells"])
    # Too little memory is a reason to skip; another answer is a failure.
    monkeypatch.setattr(tiles, "TOLERANCE", 0.0)
    assert tiles.main([*words, "--out", str(tmp_path / "b")]) == 1
    assert "expected the answer of diffusers, got one that differs by" in capsys.readouterr().err
    kept = json.loads((tmp_path / "b" / "tiles.json").read_text(encoding="utf-8"))
    assert [cell["way"] for cell in kept["cells"]] == [
        "diffusers", "diffusers, its tiles", "diffusers, its tiles halved",
    ]  # fmt: skip
    assert tiles.main([*words, "--memory", "0.05", "--out", str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.count("- Skipped: ") == 12


def test_the_table_of_tiles_shows_what_was_skipped():
    cell = {"model": SMALL, "way": "vae-runtime", "size": 512, "seconds": 1.25, "peak": 1234, "difference": 2e-6}
    skipped = {**{key: cell[key] for key in ("model", "way")}, "size": 1024, "reason": "no answer within 3 seconds"}
    lines = tiles.table({"threads": 2, "busy": [0.1, 0.2, 0.9], "cells": [cell], "skipped": [skipped]}).splitlines()
    assert "other programs used 20 % of the processors" in lines[0]
    assert lines[4] == f"| {SMALL} | vae-runtime | 1,234 | 1.25 | – | – | 2e-06 from diffusers |"
    assert lines[-1] == f"- Skipped: {SMALL}, vae-runtime, 1024²: no answer within 3 seconds"


def test_a_large_picture_is_set_beside_diffusers():
    ways = {"diffusers": (4.0, 800), "vae-runtime": (2.0, 600), "vae-runtime, blended tiles halved": (5.0, 300)}
    cells = [
        {"model": tiles.LARGE, "size": 512, "way": way, "round": number, "seconds": seconds * (number + 1),
         "peak": peak, "busy": 0.25, "difference": None}
        for number in range(3) for way, (seconds, peak) in ways.items()
    ]  # fmt: skip
    section = report.tiles_section({"tiles": cells})
    assert "rounds: 3; other programs used 25 % of the processors" in section
    assert "| vae-runtime | 4 s | 0.5 (0.5–0.5) | 600 MiB | 0.75 (0.75–0.75) |" in section
    assert report.tiles_section({}) == "Not measured in this run."


@pytest.mark.long
def test_the_page_says_what_the_figures_say(finished, found):
    page = (finished / report.PAGE).read_text(encoding="utf-8")
    ratios = [
        entry["seconds"]["naive"] / entry["seconds"]["ours-fp32"]
        for entry in found["rounds"]
        if (entry["work"], entry["batch"], entry["threads"]) == ("decode", 8, 1)
    ]
    low, median, high = np.percentile(ratios, (25, 50, 75))
    assert shown(Quartiles(median, low, high)) in page
    assert "A quick run" in page
    for contender in found["contenders"].values():
        assert contender["given"] in page
    for name in report.PICTURES:
        assert (finished / "images" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_page_is_made_of_the_figures_alone(finished, found, tmp_path):
    report.write(found, tmp_path)
    again = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert again == (finished / report.PAGE).read_text(encoding="utf-8")
    for entry in found["rounds"]:
        entry["seconds"] = {name: 2 * seconds for name, seconds in entry["seconds"].items()}
    report.write(found, tmp_path)
    assert (tmp_path / report.PAGE).read_text(encoding="utf-8") != again


@pytest.mark.long
def test_figures_name_no_place_of_this_machine(finished, data):
    text = (finished / report.FIGURES).read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert str(data) not in text


@pytest.mark.long
def test_wrong_numbers_are_refused_and_not_timed(data_copy, tmp_path, capsys):
    import onnx
    from onnx import numpy_helper

    path = data_copy / "tiny" / "decoder.onnx"
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, path)
    given = options(data_copy, tmp_path, "--contenders", "naive,ours-fp32", "--threads", "1", "--rounds", "1")
    assert program.main(given) == 0
    found = json.loads((tmp_path / report.FIGURES).read_text(encoding="utf-8"))
    decoded = [entry for entry in found["rounds"] if entry["work"] in ("decode", "reconstruct")]
    assert decoded
    assert all(set(entry["seconds"]) == {"ours-fp32"} for entry in decoded)
    encoded = [entry for entry in found["rounds"] if entry["work"] == "encode"]
    assert all(set(entry["seconds"]) == {"naive", "ours-fp32"} for entry in encoded)
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert "not comparable: its numbers differ from PyTorch's" in page
    assert "naive tiny decode 1 1: skipped: not comparable" in capsys.readouterr().err


@pytest.mark.long
def test_a_contender_that_dies_is_left_out_with_its_last_words(bench, tmp_path):
    bench.make_models()
    bench.make_environments()
    dying = tmp_path / "dying"
    dying.write_text(f"#!{sys.executable}\nprint('{{}}', flush=True)\ninput()\nraise SystemExit('out of luck')\n")
    dying.chmod(0o755)
    bench.pythons["torchscript"] = dying
    bench.start("naive", 1)
    bench.start("torchscript", 1)
    cell = comparison.Cell("tiny", 1, "decode", 1)
    assert comparison.prepare(bench, [cell]) == {cell: ["naive"]}
    (entry,) = bench.found["skipped"]
    assert entry == {
        "contender": "torchscript",
        "threads": 1,
        "reason": "the process ended (exit status 1): out of luck",
    }
    assert "out of luck" in report.skipped_section(bench.found)


@pytest.mark.long
def test_a_contender_that_dies_between_its_turns_ends_no_run(bench):
    bench.make_models()
    bench.make_environments()
    bench.start("naive", 1)
    cell = comparison.Cell("tiny", 1, "decode", 1)
    fit = comparison.prepare(bench, [cell])
    bench.processes["naive", 1]._process.kill()
    comparison.rounds(bench, fit)
    (entry,) = bench.found["skipped"]
    assert entry["reason"].startswith("the process ended (signal 9)")
    assert [each["seconds"] for each in bench.found["rounds"]] == [{}]


@pytest.mark.long
def test_work_that_would_take_the_last_memory_is_left_out(bench, monkeypatch):
    bench.make_models()
    bench.make_environments()
    bench.start("naive", 1)
    cell = comparison.Cell("tiny", 1, "decode", 1)
    monkeypatch.setattr(comparison, "available_memory", lambda: 0.1)
    assert comparison.prepare(bench, [cell]) == {}
    (entry,) = bench.found["skipped"]
    assert entry["reason"] == "10% of the machine's memory is free, 20% is left to others"
    monkeypatch.setattr(comparison, "available_memory", lambda: 0.3)
    assert comparison.prepare(bench, [cell]) == {cell: ["naive"]}


@pytest.mark.long
def test_a_model_that_is_closed_is_held_no_longer(data):
    folder = str(data / "tiny")
    worker = Worker("naive", 1)
    worker.open(folder)
    assert worker.prepare(folder, "decode", 1)["passed"]
    kept = weakref.ref(worker._models[folder])
    assert worker.close(folder) == {}
    assert kept() is None
    assert "error" in worker.answer({"do": "measure", "folder": folder, "work": "decode", "batch": 1, "seconds": 0.01})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('no such thing')", "exit status 1.*no such thing"),
        ("print('hello', flush=True); input()", "expected a line of JSON, got hello"),
        ("input()", "no answer within 2 seconds"),
        ("""print('{"error": "no graph"}', flush=True); input()""", "no graph"),
    ],
)
def test_a_process_that_cannot_begin_says_why(code, reason, tmp_path):
    with pytest.raises(Died, match=reason):
        Process([sys.executable, "-c", code], tmp_path, {}, patience=2)


def test_answers_are_compared_by_difference_or_by_noise():
    expected = np.linspace(0, 1, 100, dtype=np.float32)
    assert compared([(expected, expected)], exact=True) == {"passed": True, "difference": 0.0, "psnr": None}
    near, far = expected.copy(), expected.copy()
    near[3] += 0.5 * TOLERANCE
    far[3] += 2 * TOLERANCE
    assert compared([(near, expected)], exact=True)["passed"]
    assert not compared([(far, expected)], exact=True)["passed"]
    assert not compared([(near, expected), (far, expected)], exact=True)["passed"]
    # 20 dB is a tenth of the range.
    assert compared([(expected + np.float32(0.01), expected)], exact=False)["passed"]
    coarse = compared([(expected + np.float32(0.1), expected)], exact=False)
    assert not coarse["passed"]
    assert coarse["psnr"] == pytest.approx(20, abs=0.01)
    assert not compared([(np.full_like(expected, np.nan), expected)], exact=True)["passed"]
    assert not compared([(np.full_like(expected, np.nan), expected)], exact=False)["passed"]
    for wrong in (expected[:5], expected.astype(np.float64)):
        with pytest.raises(Unavailable, match=r"expected float32 \[100\]"):
            compared([(wrong, expected)], exact=True)


@pytest.mark.long
def test_samples_that_are_not_of_their_noise_are_refused(data, monkeypatch):
    class Careless(Naive):
        def draw(self, batch, seed):
            return np.random.default_rng().standard_normal((batch, *self.latent), dtype=np.float32)

    def passes(kind):
        monkeypatch.setitem(CONTENDERS, "naive", kind)
        worker = Worker("naive", 1)
        worker.open(str(data / "tiny"))
        return worker.prepare(str(data / "tiny"), "sample", 8)["passed"]

    assert passes(Naive)
    assert not passes(Careless)


@pytest.mark.long
def test_few_bits_are_judged_over_many_rows(data, monkeypatch):
    class Coarse(Naive):
        exact = False

        def open(self, component, batch):
            run = super().open(component, batch)
            return lambda value: [answer + np.float32(self.off) for answer in run(value)]

    def parity(off, batch):
        monkeypatch.setitem(CONTENDERS, "naive", type("Off", (Coarse,), {"off": off}))
        worker = Worker("naive", 1)
        worker.open(str(data / "tiny"))
        return worker.prepare(str(data / "tiny"), "decode", batch)

    assert parity(0.01, 1)["passed"]
    assert not parity(0.1, 1)["passed"]
    assert parity(0.01, 1)["psnr"] == pytest.approx(parity(0.01, 8)["psnr"], abs=1e-3)


@pytest.mark.long
def test_targets_are_judged_by_their_figures(found):
    def line(seconds):
        for entry in found["rounds"]:
            entry["seconds"] = {"naive": 1.0, "ours-fp32": seconds}
        return targets(found)[0]

    assert line(1.0).met is True
    assert line(1.2).met is False
    found["rounds"] = []
    assert line(1.0).met is None
    at_most = Target("", Quartiles(1.2, 1.1, 1.3), 1.3, at_most=True)
    assert at_most.met is True
    assert at_most._replace(bound=1.1).met is False


@pytest.mark.long
def test_a_run_of_few_rounds_is_called_a_trial(found):
    found["quick"] = False
    assert "A trial" not in report.run_section(found)
    found["rounds"] = [entry for entry in found["rounds"] if entry["round"] == 0]
    assert "A trial of fewer than 3 rounds" in report.run_section(found)


def test_a_page_without_its_marks_is_refused():
    page = "before\n<!-- measured: run -->\nold\n<!-- end of measured: run -->\nafter\n"
    assert "old" not in report.filled(page, "run", "new")
    assert report.filled(report.filled(page, "run", "new"), "run", "old") == page
    for damaged in (page.replace("end of", ""), page + page, ""):
        with pytest.raises(InputError, match="put them back"):
            report.filled(damaged, "run", "new")


def test_the_page_that_ships_has_every_mark(root):
    page = (root / "docs" / report.PAGE).read_text(encoding="utf-8")
    for name in report.SECTIONS:
        assert f"<!-- measured: {name} -->" in page


@pytest.mark.parametrize(
    "arguments",
    [
        ["--contenders", "naive,fastest"],
        ["--models", "large"],
        ["--threads", "3"],
        ["--rounds", "0"],
        ["--minutes", "-1"],
    ],
)
def test_arguments_that_cannot_be_are_misuse(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        program.main(arguments)
    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err
