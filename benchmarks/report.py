"""What was measured → the tables of docs/benchmarks.md and its pictures."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_runtime.errors import InputError
from vae_runtime.files import write_atomic

PAGE, FIGURES = "benchmarks.md", "benchmarks.json"
FRAME = Path(__file__).parents[1] / "docs" / PAGE
NAIVE, OURS, INT8 = "naive", "ours-fp32", "ours-int8"
NOTHING = "Not measured in this run."
# Below, a median and its quartiles say nothing.
LEAST_ROUNDS = 3
TICKS = {"wall": (100, 200, 500, 1000, 2000, 5000), "memory": (50, 100, 200, 400)}
# Marks that are told apart without colour, by batch size.
MARKS = {1: "o", 8: "s", 64: "^", 512: "D"}

Found = Mapping[str, Any]


class Quartiles(NamedTuple):
    """Of a ratio or a time over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_digits(self.median)} ({_digits(self.low)}–{_digits(self.high)})"


class Results:
    """The rounds of one run, by what was done."""

    def __init__(self, found: Found) -> None:
        self._seconds: dict[tuple[str, int, str, int], list[Mapping[str, float]]] = {}
        for entry in found["rounds"]:
            key = (entry["model"], entry["threads"], entry["work"], entry["batch"])
            self._seconds.setdefault(key, []).append(entry["seconds"])

    def rounds(self) -> Iterable[Sequence[Mapping[str, float]]]:
        """The measurements of each piece of work."""
        return self._seconds.values()

    def batches(self, model: str, threads: int, work: str) -> list[int]:
        """The batch sizes that a work was measured at."""
        return sorted(batch for m, t, w, batch in self._seconds if (m, t, w) == (model, threads, work))

    def seconds(self, model: str, threads: int, work: str, batch: int, name: str) -> Quartiles | None:
        """One call's time."""
        rounds = self._seconds.get((model, threads, work, batch), [])
        return quartiles(each[name] for each in rounds if name in each)

    def ratio(self, model: str, threads: int, work: str, batch: int, name: str, to: str = NAIVE) -> Quartiles | None:
        """How many times as fast as another contender, within each round."""
        rounds = self._seconds.get((model, threads, work, batch), [])
        return quartiles(each[to] / each[name] for each in rounds if name in each and to in each)


def quartiles(values: Iterable[float]) -> Quartiles | None:
    """Median and quartiles, or None of nothing."""
    numbers = list(values)
    if not numbers:
        return None
    low, median, high = (float(each) for each in np.percentile(numbers, (25, 50, 75)))
    return Quartiles(median, low, high)


def write(found: Found, out: Path) -> None:
    """Write the page and its pictures.

    The page that is there keeps all but what stands between the marks; where none is, this repository's is taken.

    Raises:
        InputError: the page lacks a mark.
        VaeError: it cannot be written.
    """
    page = out / PAGE
    text = (page if page.is_file() else FRAME).read_text(encoding="utf-8")
    for name, make in SECTIONS.items():
        text = filled(text, name, make(found))
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for file, draw in (("bench-decode.png", decode_picture), ("bench-start.png", start_picture)):
        write_atomic(images / file, draw(found))
    write_atomic(page, text.encode())


def filled(text: str, name: str, content: str) -> str:
    """A page with the part between two marks replaced.

    Raises:
        InputError: it has no such marks.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of measured: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{PAGE}: {begin} and then {end} are expected once each; put them back")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def dumped(found: Found) -> str:
    """The raw figures as JSON, one measurement a line: a difference between two runs can be read."""
    parts = []
    for key, value in found.items():
        if isinstance(value, list) and value:
            lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], nothing: str = NOTHING) -> str:
    """A Markdown table, or a sentence where there is nothing to show."""
    body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body]) if body else nothing


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def _megabytes(size: float) -> str:
    return f"{_digits(size / 2**20)} MiB"


def _title(found: Found, model: str) -> str:
    return str(found["models"][model]["title"])


# What was to be reached.


class Target(NamedTuple):
    """One line: a figure, and what it should at least be, or at most."""

    work: str
    figure: Quartiles | None
    bound: float | None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bound; None where there is no figure or no bound."""
        if self.figure is None or self.bound is None:
            return None
        return self.figure.median <= self.bound if self.at_most else self.figure.median >= self.bound


def targets(found: Found) -> list[Target]:
    """Every line of what was to be reached, with what this run measured."""
    results = Results(found)
    models = [name for name in found["models"] if results.batches(name, 1, "decode")]

    def ratio(model: str, work: str, batch: int, name: str = OURS, to: str = NAIVE) -> Quartiles | None:
        return results.ratio(model, 1, work, batch, name, to)

    def lowest(to: str) -> tuple[Quartiles | None, str]:
        found_here = [
            (value, f"lowest of all: {_title(found, model)}, batch {batch}")
            for model in models
            for batch in results.batches(model, 1, "decode")
            if (value := ratio(model, "decode", batch, to=to)) is not None
        ]
        return min(found_here, key=lambda each: each[0].median, default=(None, ""))

    def others(model: str, name: str, but: int, to: str = NAIVE) -> str:
        more = [
            f"batch {batch}: {_digits(value.median)}"
            for batch in results.batches(model, 1, "decode")
            if batch != but and (value := ratio(model, "decode", batch, name, to)) is not None
        ]
        return ", ".join(more)

    lines = []
    for to, bound in ((NAIVE, 0.97), ("compile", 1.0), ("executorch", 1.0), ("litert", 1.0)):
        value, note = lowest(to)
        lines.append(Target(f"decode, fp32, any model and batch: × {_name(found, to)}", value, bound, note=note))
    for to, bound in ((NAIVE, 1.12), ("litert", 1.0)):
        value = ratio("mlp", "decode", 1, to=to)
        lines.append(Target(f"MLP decode, batch 1, fp32: × {_name(found, to)}", value, bound))
    lines += [
        Target("MLP sample, 16 latents, batch 1, a fresh seed: × naive", ratio("mlp", "sample", 1), 0.85),
        Target("the same with 50 latents", ratio("mlp50", "sample", 1), None),
        Target("consecutive indices of one seed: × naive with default_rng(seed)", ratio("mlp", "next", 1), 1.4),
        Target("the same with 50 latents", ratio("mlp50", "next", 1), None),
        Target("the same, × naive with one generator that is kept", ratio("mlp", "stream", 1), None),
        Target("MLP reconstruct, batch 1: × two naive sessions", ratio("mlp", "reconstruct", 1), 1.25,
               note=_beside(found, ratio("mlp", "reconstruct", 1, "litert"), "litert")),
    ]  # fmt: skip
    for to in (NAIVE, "openvino-f32"):
        value = ratio("nearest", "decode", 1, to=to)
        more = others("nearest", OURS, 1, to)
        lines.append(Target(f"nearest-upsample decode, batch 1: × {_name(found, to)}", value, 1.9, note=more))
    differences = [
        entry["difference"]
        for entry in found["parity"]
        if (entry["contender"], entry["model"], entry["work"]) == (OURS, "nearest", "decode")
    ]
    worst = Quartiles(*[max(differences)] * 3) if differences else None
    lines.append(Target("the same: largest difference from PyTorch's answers", worst, 1e-5, at_most=True))
    lines.append(Target("AutoencoderKL decode, batch 1: × naive", ratio("kl", "decode", 1), 1.05))
    for batch, bound in ((1, 1.8), (64, 2.8)):
        lines.append(Target(f"int8, MLP decode, batch {batch}: × naive", ratio("mlp", "decode", batch, INT8), bound))
    for model, what, bound in (("transposed", "ConvTranspose", 1.7), ("nearest", "nearest-upsample", 3.3)):
        value = ratio(model, "decode", 1, INT8)
        lines.append(Target(f"int8, {what} decode, batch 1: × naive", value, bound, note=others(model, INT8, 1)))
    lines += _noise_targets(found, results) + _start_targets(found) + _worker_targets(found)
    lines += _generation_targets(found)
    return lines


def _name(found: Found, contender: str) -> str:
    return str(found["contenders"].get(contender, {}).get("title", contender))


def _beside(found: Found, value: Quartiles | None, name: str) -> str:
    return f"{_name(found, name)}: {_digits(value.median)}" if value else ""


def _noise_targets(found: Found, results: Results) -> list[Target]:
    rate, slower = None, None
    for batch in results.batches("mlp", 1, "noise"):
        count = batch * int(np.prod(found["models"]["mlp"]["latent_shape"]))
        taken = results.seconds("mlp", 1, "noise", batch, OURS)
        rate = taken and Quartiles(*(count / each / 1e6 for each in (taken.median, taken.high, taken.low)))
        slower = results.ratio("mlp", 1, "noise", batch, NAIVE, OURS)
    return [
        Target("noise, large n: million normals per second", rate, 60),
        Target("noise, large n: time × that of numpy's Philox", slower, 1.3, at_most=True),
    ]


def _start_ratio(found: Found, name: str, what: str) -> Quartiles | None:
    rounds = [entry["contenders"] for entry in found["cold"]]
    return quartiles(each[name][what] / each[NAIVE][what] for each in rounds if name in each and NAIVE in each)


def _start_targets(found: Found) -> list[Target]:
    litert = _beside(found, _start_ratio(found, "litert", "wall"), "litert")
    return [
        Target("cold start to the first sample: time × naive", _start_ratio(found, OURS, "wall"), 0.9, True, litert),
        Target("the same in processor time", _start_ratio(found, OURS, "cpu"), None),
        Target("peak memory: × naive", _start_ratio(found, OURS, "memory"), 1.1, at_most=True),
    ]


def _worker_ratio(found: Found, model: str, batch: int, loops: int, group: str, to: str) -> Quartiles | None:
    return quartiles(
        entry["rates"][group] / entry["rates"][to]
        for entry in found["workers"]
        if (entry["model"], entry["batch"], bool(entry["loops"])) == (model, batch, bool(loops))
    )


def _worker_targets(found: Found) -> list[Target]:
    lines = []
    for model, what, bound in (("mlp", "MLP", 1.1), ("mnist", "conv", 1.25), ("transposed", "ConvTranspose", 1.25)):
        value = _worker_ratio(found, model, 64, 0, "two", "wide")
        note = _digits(one.median) if (one := _worker_ratio(found, model, 1, 0, "two", "wide")) else ""
        work = f"two workers of one thread, {what}, batch 64: × one session of two"
        lines.append(Target(work, value, bound, note=f"batch 1: {note}" if note else ""))
    cells = {(entry["model"], entry["batch"]) for entry in found["workers"]}
    for group, what, least in (("two", "two workers of one thread", 0.9), ("wide", "one session of two threads", None)):
        loaded = [
            (value, f"lowest of all: {_title(found, model)}, batch {batch}")
            for model, batch in sorted(cells)
            if (value := _worker_ratio(found, model, batch, 1, group, "one")) is not None
        ]
        value, note = min(loaded, key=lambda each: each[0].median, default=(None, ""))
        lines.append(Target(f"under four busy loops, {what}: × one session of one thread", value, least, note=note))
    return lines


def targets_section(found: Found) -> str:
    """The table of what was to be reached."""
    words = {True: "met", False: "**not met**", None: "–"}
    rows = []
    for line in targets(found):
        bound = "–" if line.bound is None else f"{'≤' if line.at_most else '≥'} {line.bound:g}"
        measured = str(line.figure) if line.figure else "not measured"
        met = words[line.met] if line.bound is None or line.figure else "not measured"
        rows.append((line.work, bound, measured, met, line.note))
    judged = [line.met for line in targets(found) if line.bound is not None]
    summary = f"{judged.count(True)} of {len(judged)} met, {judged.count(None)} not measured."
    return summary + "\n\n" + table(("work", "target", "measured (quartiles)", "", "beside it"), rows)


# What it was measured on, and with.


def run_section(found: Found) -> str:
    """The machine, and how busy it was."""
    about = found["machine"]
    loads = [entry["loadavg"][0] for entry in found["load"]]
    stolen = [entry["stolen"] for entry in found["load"]]
    free = [entry["free"] for entry in found["load"]]
    rows = [
        ("date", found["date"]),
        ("processor", f"{about['processor']}, {about['processors']} logical; {', '.join(about['flags'])}"),
        ("memory", _megabytes(about.get("memory", 0))),
        ("system", f"{about['system']} {about['architecture']}, Python {about['python']}"),
        ("rounds", f"{_rounds(found)}, {1000 * found['slot']:g} ms for each contender in each"),
        ("load average", f"{min(loads):.1f} – {max(loads):.1f}, this program included" if loads else "unknown"),
        ("memory that was free", f"at least {100 * min(free):.0f} %" if free else "unknown"),
        ("time that the hypervisor gave to others", f"at most {100 * max(stolen):.1f} %" if stolen else "unknown"),
    ]  # fmt: skip
    trial = ""
    if found["quick"]:
        trial = "**A quick run, to try the program: its figures mean nothing.**\n\n"
    elif min((len(rounds) for rounds in Results(found).rounds()), default=0) < LEAST_ROUNDS:
        trial = f"**A trial of less than {LEAST_ROUNDS} rounds: its figures are not to be relied on.**\n\n"
    return trial + table(("", ""), rows)


def _rounds(found: Found) -> str:
    """How often each piece of work was measured, least and most."""
    counts = [len(rounds) for rounds in Results(found).rounds()]
    return f"{min(counts)} – {max(counts)} of each piece of work" if counts else "none"


def models_section(found: Found) -> str:
    """What was compared."""
    rows = []
    for about in found["models"].values():
        elbo = "–" if about["elbo"] is None else f"{about['elbo']:.1f} nats ({about['of']})"
        rows.append(
            (
                about["title"],
                about["data"],
                elbo,
                f"{about['parameters'] / 1e6:.2f} M",
                f"{about['decode_flops'] / 1e6:.1f} M",
            )
        )
    text = table(("model", "trained on", "test ELBO", "parameters", "operations of one decode"), rows)
    measured = [
        (
            about["title"],
            f"{each['component']}/{each['variant']}",
            each["method"],
            f"{each['size'] / 2**20:.2f} MiB",
            _figure(each, "psnr", "dB"),
            _figure(each, "elbo_change", "nats"),
        )
        for about in found["models"].values()
        for each in about["variants"]
    ]
    head = ("model", "variant", "how", "size", "PSNR against fp32", "change of the ELBO")
    return text + "\n\n" + table(head, measured, "No bundle has another variant than fp32.")


def _figure(about: Mapping[str, Any], name: str, unit: str) -> str:
    return "–" if about.get(name) is None else f"{about[name]:.3g} {unit}"


def contenders_section(found: Found) -> str:
    """Who took part, and what each was given."""
    rows = []
    for about in found["contenders"].values():
        wanted = [name for name in about["packages"] if name in SHOWN]
        versions = ", ".join(f"{name} {about['packages'][name][0]}" for name in wanted)
        rows.append((about["title"], versions, about["given"]))
    return table(("contender", "versions", "was given"), rows)


SHOWN = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "numpy")


# Work.


def work_section(found: Found) -> str:
    """For each model and work a table: contenders by number of threads and batch size."""
    results, parts = Results(found), []
    for model in found["models"]:
        for work in ("decode", "encode", "reconstruct", "sample"):
            columns = [(threads, batch) for threads in (1, 2) for batch in results.batches(model, threads, work)]
            if not columns:
                continue
            head = ["", *(f"{threads} thread{'s' * (threads > 1)}, batch {batch}" for threads, batch in columns)]
            rows = []
            for name in [NAIVE, *(each for each in found["contenders"] if each != NAIVE)]:
                cells = []
                for threads, batch in columns:
                    if name == NAIVE:
                        value = results.seconds(model, threads, work, batch, name)
                        cells.append(_time(value.median) if value else "–")
                    else:
                        cells.append(str(results.ratio(model, threads, work, batch, name) or "–"))
                if set(cells) != {"–"}:
                    rows.append((_name(found, name), *cells))
            parts.append(f"### {_title(found, model)}: {work}\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOTHING


def sampling_section(found: Found) -> str:
    """Where noise comes from, and what it costs."""
    results, rows = Results(found), []
    words = {"sample": "a fresh seed", "next": "consecutive", "stream": "one generator"}
    for model in found["models"]:
        for work, word in words.items():
            for batch in results.batches(model, 1, work):
                naive = results.seconds(model, 1, work, batch, NAIVE)
                ratio = results.ratio(model, 1, work, batch, OURS)
                if naive and ratio:
                    rows.append((_title(found, model), word, str(batch), _time(naive.median), str(ratio)))
    head = ("model", "seeds", "batch", "naive ONNX Runtime", "vae-runtime fp32, × naive")
    text = table(head, rows)
    noise = []
    for model in found["models"]:
        for batch in results.batches(model, 1, "noise"):
            count = batch * int(np.prod(found["models"][model]["latent_shape"]))
            for name, what in ((OURS, "vnoise-1, vae.prior"), (NAIVE, "numpy, Generator(Philox) in float32")):
                value = results.seconds(model, 1, "noise", batch, name)
                if value:
                    noise.append((what, f"{count:,}", f"{count / value.median / 1e6:.1f}"))
    return text + "\n\n" + table(("noise", "numbers at once", "million per second, one thread"), noise)


def start_section(found: Found) -> str:
    """Cold start, memory and size of each contender."""
    rows = []
    for name, about in found["contenders"].items():
        taken = [entry["contenders"][name] for entry in found["cold"] if name in entry["contenders"]]
        size = sum(each[1] for each in about["packages"].values())
        cells = ["–"] * 4
        if taken:
            wall, cpu, memory = (quartiles(each[key] for each in taken) for key in ("wall", "cpu", "memory"))
            ratio = _start_ratio(found, name, "wall")
            if wall and cpu and memory:
                cells = [_time(wall.median), str(ratio or "–"), _time(cpu.median), _megabytes(memory.median)]
        rows.append((about["title"], *cells, _megabytes(size), str(len(about["packages"]))))
    head = ("contender", "first sample after", "time × naive", "processor time", "peak memory", "installed", "packages")
    return table(head, rows)


def workers_section(found: Found) -> str:
    """One worker, two workers, one with two threads; idle and busy."""
    rows = []
    for model, batch, loops in sorted({(e["model"], e["batch"], e["loops"]) for e in found["workers"]}):
        entries = [
            e["rates"] for e in found["workers"] if (e["model"], e["batch"], e["loops"]) == (model, batch, loops)
        ]
        one = float(np.median([rates["one"] for rates in entries]))
        rows.append(
            (
                _title(found, model), str(batch), str(loops), f"{one:,.0f}",
                str(_worker_ratio(found, model, batch, loops, "two", "one")),
                str(_worker_ratio(found, model, batch, loops, "wide", "one")),
                str(_worker_ratio(found, model, batch, loops, "two", "wide")),
            )
        )  # fmt: skip
    head = ("model", "batch", "busy loops", "one thread, per second", "two workers, × one thread",
            "two threads, × one thread", "two workers, × two threads")  # fmt: skip
    return table(head, rows)


def generation_section(found: Found) -> str:
    """Samples to files beside a loop that only decodes; where the time goes; what the disk takes."""
    rates, parts, starts = [], [], []
    for model in dict.fromkeys(turn["model"] for turn in found.get("generation", [])):
        title = _title(found, model)
        for kind, workers, words in GENERATED:
            value = _generated(found, model, kind, workers)
            if value is not None:
                rate = np.median([turn["rate"] for turn in _turns(found, model, kind, workers)])
                rates.append((title, words, f"{rate:,.0f}", str(value)))
        spent = [turn["seconds"] for turn in _turns(found, model, "files", 1)]
        whole = sum(sum(seconds.values()) for seconds in spent)
        shares = [sum(seconds.get(phase, 0.0) for seconds in spent) / max(whole, 1e-9) for phase in PHASES]
        parts.append((title, *(f"{100 * share:.0f} %" for share in shares)))
        command = _median_of(_turns(found, model, "start", 1), "seconds")
        first = _median_of(_turns(found, model, "ray", 2), "first")
        memory = _median_of(_turns(found, model, "files", 2), "memory")
        disk = _median_of(_turns(found, model, "disk", 1), "rate")
        starts.append(
            (
                title,
                f"{command:.2f} s" if command else "not measured",
                f"{first:.1f} s" if first else "not measured",
                _megabytes(memory or 0),
                f"{(disk or 0) / 1e6:,.0f} MB/s",
            )
        )
    if not rates:
        return "Not measured in this run."
    head = ("model", "two batches, from the start of the command to its end", "Ray: first file after",
            "memory of a worker", "the disk: written and synced")  # fmt: skip
    tables = (
        table(("model", "what", "samples a second", "× decoding alone, same workers"), rates),
        "Where the time of one worker goes:",
        table(("model", *PHASES), parts),
        table(head, starts),
    )
    return "\n\n".join(tables)


def _turns(found: Found, model: str, kind: str, workers: int) -> list[Mapping[str, Any]]:
    which = (model, kind, workers)
    return [turn for turn in found["generation"] if (turn["model"], turn["kind"], turn["workers"]) == which]


def _median_of(turns: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return float(np.median([turn[key] for turn in turns])) if turns else None


# What is counted: its kind, its workers, its words; and the parts of a worker's time.
GENERATED = (
    ("decode", 1, "decoding alone, 1 worker"), ("files", 1, "to files, 1 worker"),
    ("decode", 2, "decoding alone, 2 workers"), ("files", 2, "to files, 2 workers"),
    ("ray", 2, "to files, Ray, 2 workers"),
)  # fmt: skip
PHASES = ("noise", "decode", "convert", "write")


def _generated(
    found: Found, model: str, kind: str, workers: int, to: tuple[str, int] | None = None
) -> Quartiles | None:
    """Samples a second of one way relative to another of the same round; without another, to decoding alone."""
    other = to or ("decode", workers)
    rates = {
        (turn["round"], turn["kind"], turn["workers"]): turn["rate"]
        for turn in found.get("generation", [])
        if turn["model"] == model and "rate" in turn
    }
    return quartiles(
        rate / rates[number, *other]
        for (number, *which), rate in rates.items()
        if tuple(which) == (kind, workers) and (number, *other) in rates
    )


def _generation_targets(found: Found) -> list[Target]:
    turns = found.get("generation", [])
    starts = quartiles(turn["seconds"] for turn in turns if turn["kind"] == "start")
    memory = quartiles(turn["memory"] / 1e6 for turn in turns if (turn["kind"], turn["workers"]) == ("files", 2))
    conv = "mnist"
    return [
        Target("samples to files, conv, two workers: × decoding alone", _generated(found, conv, "files", 2), 0.9),
        Target("samples to files, MLP, two workers: × decoding alone", _generated(found, "mlp", "files", 2), 0.75),
        Target("two workers: × one, conv", _generated(found, conv, "files", 2, ("files", 1)), 1.8),
        Target("Ray: × processes of this machine, conv", _generated(found, conv, "ray", 2, ("files", 2)), 0.75),
        Target("generate, from the start of the command to the end, two batches: seconds", starts, 2, at_most=True),
        Target("memory of a worker, MB", memory, 120, at_most=True),
    ]


def limits_section(found: Found) -> str:
    """What the machine could do at best, and what share of it each decoder reaches."""
    rates = {(e["threads"], e["work"], e["amount"]): e["per_second"] for e in found["limits"]}
    rows = [
        (f"{work}, {amount}×{amount}" if work != "read" else f"read {_megabytes(4 * amount)}", str(threads),
         f"{rate / 1e9:.1f} {'G operations' if work != 'read' else 'GB'}/s")
        for (threads, work, amount), rate in rates.items()
    ]  # fmt: skip
    text = table(("rate", "threads", "measured"), rows)
    products = [rate for (threads, work, _), rate in rates.items() if threads == 1 and work != "read"]
    reads = {4 * amount: rate for (threads, work, amount), rate in rates.items() if threads == 1 and work == "read"}
    if not products or not reads:
        return text
    results, shares = Results(found), []
    for model, about in found["models"].items():
        # Weights that a cache holds are read from there at every call but the first.
        nearest = min(reads, key=lambda size: abs(np.log(size / about["decoder_bytes"])))
        for batch in results.batches(model, 1, "decode"):
            operations = batch * about["decode_flops"] / max(products)
            reading = about["decoder_bytes"] / reads[nearest]
            limit = max(operations, reading)
            cells = []
            for name in (NAIVE, OURS, INT8):
                value = results.seconds(model, 1, "decode", batch, name)
                cells.append(f"{100 * limit / value.median:.0f} %" if value else "–")
            bound = "operations" if operations > reading else "reading weights"
            shares.append((about["title"], str(batch), _time(limit), bound, *cells))
    head = ("decode, one thread", "batch", "least time", "bound by", "naive", "vae-runtime fp32", "vae-runtime int8")
    return text + "\n\n" + table(head, shares)


def skipped_section(found: Found) -> str:
    """Who was left out of what, and why; reasons that differ in their figures alone are said once."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in found["skipped"]:
        alike.setdefault((entry["contender"], re.sub(r"[0-9.]+", "0", entry["reason"])), []).append(entry)
    rows = []
    for (name, _), entries in alike.items():
        reason, several = entries[0]["reason"], len({entry["reason"] for entry in entries}) > 1
        where = ", ".join(dict.fromkeys(map(_where, entries)))
        rows.append((_name(found, name), where, f"{reason}; the others alike" if several else reason))
    return table(("contender", "left out of", "reason"), rows, "Nobody was left out of anything.")


def _where(entry: Mapping[str, Any]) -> str:
    parts = [entry.get("model"), entry.get("work"), f"batch {entry['batch']}" if "batch" in entry else None]
    parts.append(f"{entry['threads']} threads" if entry.get("threads", 1) > 1 else None)
    return " ".join(part for part in parts if part) or "everything"


SECTIONS = {
    "targets": targets_section,
    "run": run_section,
    "models": models_section,
    "contenders": contenders_section,
    "work": work_section,
    "sampling": sampling_section,
    "start": start_section,
    "workers": workers_section,
    "generation": generation_section,
    "limits": limits_section,
    "skipped": skipped_section,
}


# Pictures: black and grey, told apart by marks, hatches and words.


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    # Without the date and the version of the library, the same figures give the same file.
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def decode_picture(found: Found) -> bytes:
    """A panel for each model: speed relative to naive, a mark for each batch size."""
    from matplotlib.figure import Figure

    results = Results(found)
    models = [name for name in found["models"] if results.batches(name, 1, "decode")]
    timed = {name for entry in found["rounds"] for name in entry["seconds"]}
    names = [name for name in found["contenders"] if name != NAIVE and name in timed][::-1]
    columns = min(2, max(1, len(models)))
    rows = max(1, -(-len(models) // columns))
    figure = Figure(figsize=(5.5 * columns, 0.9 + rows * (1.1 + 0.27 * len(names))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, model in zip(axes, models, strict=False):
        for batch in results.batches(model, 1, "decode"):
            points = [(results.ratio(model, 1, "decode", batch, name), row) for row, name in enumerate(names)]
            drawn = [(value.median, row) for value, row in points if value]
            panel.plot(
                [x for x, _ in drawn], [y for _, y in drawn], MARKS.get(batch, "x"), color="black", linestyle="none",
                markerfacecolor="white" if batch > 1 else "black", markersize=6, label=f"batch {batch}",
            )  # fmt: skip
            if batch == 1:
                for x, y in drawn:
                    panel.annotate(f"{x:.2f}", (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        panel.axvline(1, color="grey", linestyle="--", linewidth=1)
        panel.set_xscale("log")
        panel.set_xticks(ticks := [0.25, 0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_yticks(range(len(names)), [_name(found, name) for name in names], fontsize=8)
        panel.set_ylim(-0.6, len(names) - 0.2)
        panel.grid(axis="x", linewidth=0.3)
        panel.set_title(_title(found, model), fontsize=9)
    for panel in axes[len(models) :]:
        panel.set_axis_off()
    if models:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    figure.supxlabel(
        "decode with one thread: speed relative to naive\nONNX Runtime (dashed), right is faster", fontsize=9
    )
    return _png(figure)


def start_picture(found: Found) -> bytes:
    """Points: milliseconds and peak memory until the first sample."""
    from matplotlib.figure import Figure

    names = [name for name in found["contenders"] if any(name in entry["contenders"] for entry in found["cold"])][::-1]
    figure = Figure(figsize=(11, 1 + 0.3 * max(1, len(names))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, scale, words in zip(
        panels, ("wall", "memory"), (1e3, 1 / 2**20), ("ms to the first sample", "MiB at most until then"), strict=True
    ):
        values = [
            float(np.median([e["contenders"][name][key] for e in found["cold"] if name in e["contenders"]])) * scale
            for name in names
        ]
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            # Ours are filled.
            face = "black" if name.startswith("ours") else "white"
            panel.plot(value, row, "o", color="black", markerfacecolor=face, markersize=7)
            panel.annotate(f"{value:.0f}", (value, row), (7, -3), textcoords="offset points", fontsize=8)
        panel.set_xscale("log")
        panel.margins(x=0.15)
        panel.set_yticks(range(len(names)), [_name(found, name) for name in names], fontsize=8)
        panel.set_xticks(ticks := TICKS[key], [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(linewidth=0.3)
        panel.set_title(words, fontsize=9)
    return _png(figure)


def main() -> None:
    """Write the page again from the figures that are there: `python -m benchmarks.report [FOLDER]`."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FRAME.parent
    write(json.loads((out / FIGURES).read_text(encoding="utf-8")), out)


if __name__ == "__main__":
    main()
