"""Write the tables and pictures of docs/benchmarks.md from the figures of a run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_runtime.errors import InputError
from vae_runtime.files import write_atomic
from vae_runtime.timing import quartiles

from .bounds import Bounds, limits_section
from .figures import (
    NAIVE,
    NOTHING,
    OURS,
    Found,
    Results,
    duration,
    generation_ratio,
    megabytes,
    name_of,
    shown,
    start_ratio,
    table,
    tile_ratio,
    title_of,
    turns_of,
    worker_ratio,
)
from .pictures import decode_picture, start_picture
from .summary import summary_picture, summary_section
from .targets import targets

PAGE, FIGURES = "benchmarks.md", "results.json"
ROOT = Path(__file__).parents[1]
FRAME = ROOT / "docs" / PAGE
# With fewer, a median and its quartiles mean nothing.
MIN_ROUNDS = 3


def places(out: Path | None) -> tuple[Path, Path]:
    """Return the folder of the page and the file of its figures: this repository's, or both in the folder given."""
    return (FRAME.parent, ROOT / "benchmarks" / FIGURES) if out is None else (out, out / FIGURES)


def write(found: Found, out: Path) -> None:
    """Write the page and its pictures.

    Only the parts of an existing page between the marks change; without a page, this repository's is the frame.

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
    for file, draw in PICTURES.items():
        write_atomic(images / file, draw(found))
    write_atomic(page, text.encode())


def filled(text: str, name: str, content: str, page: str = PAGE) -> str:
    """Return a page with the part between two marks replaced.

    Raises:
        InputError: the page lacks the marks.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of measured: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{page}: expected {begin} and then {end}, once each; put them back")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def dumped(found: Found) -> str:
    """Return the raw figures as JSON, one measurement a line, so that two runs can be compared."""
    parts = []
    for key, value in found.items():
        if isinstance(value, list) and value:
            lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# The targets.


def targets_section(found: Found) -> str:
    """Return the table of targets."""
    words = {True: "met", False: "**not met**", None: "–"}
    rows = []
    for line in targets(found):
        bound = "–" if line.bound is None else f"{'≤' if line.at_most else '≥'} {line.bound:g}"
        measured = shown(line.figure) if line.figure else "not measured"
        met = words[line.met] if line.bound is None or line.figure else "not measured"
        rows.append((line.work, bound, measured, met, line.note))
    judged = [line.met for line in targets(found) if line.bound is not None]
    summary = f"{judged.count(True)} of {len(judged)} met, {judged.count(None)} not measured."
    return summary + "\n\n" + table(("work", "target", "measured (quartiles)", "", "note"), rows)


# The machine, the models and the contenders.


def run_section(found: Found) -> str:
    """Return a table of the machine, and how busy it was."""
    about = found["machine"]
    loads = [entry["loadavg"][0] for entry in found["load"]]
    stolen = [entry["stolen"] for entry in found["load"]]
    free = [entry["free"] for entry in found["load"]]
    rows = [
        ("date", found["date"]),
        ("processor", f"{about['processor']}, {about['processors']} logical; {', '.join(about['flags'])}"),
        ("memory", megabytes(about.get("memory", 0))),
        ("system", f"{about['system']} {about['architecture']}, Python {about['python']}"),
        ("rounds", f"{_rounds(found)}, {1000 * found['slot']:g} ms for each contender in each"),
        ("load average", f"{min(loads):.1f} – {max(loads):.1f}, this program included" if loads else "unknown"),
        ("free memory", f"at least {100 * min(free):.0f} %" if free else "unknown"),
        ("time the hypervisor gave to others", f"at most {100 * max(stolen):.1f} %" if stolen else "unknown"),
    ]
    trial = ""
    if found["quick"]:
        trial = "**A quick run, to try the program: its figures mean nothing.**\n\n"
    elif min((len(rounds) for rounds in Results(found).rounds()), default=0) < MIN_ROUNDS:
        trial = f"**A trial of fewer than {MIN_ROUNDS} rounds: its figures are unreliable.**\n\n"
    return trial + table(("", ""), rows)


def _rounds(found: Found) -> str:
    """Return how often each piece of work was measured, at least and at most."""
    counts = [len(rounds) for rounds in Results(found).rounds()]
    return f"{min(counts)} – {max(counts)} of each piece of work" if counts else "none"


def models_section(found: Found) -> str:
    """Return tables of the models and their variants."""
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
    """Return a table of the contenders: their versions, and the form of the model that each runs."""
    rows = []
    for about in found["contenders"].values():
        packages = [name for name in about["packages"] if name in SHOWN]
        versions = ", ".join(f"{name} {about['packages'][name][0]}" for name in packages)
        rows.append((about["title"], versions, about["given"]))
    return table(("contender", "versions", "what it runs"), rows)


SHOWN = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "numpy")


# The measurements.


def work_section(found: Found) -> str:
    """Return a table for each model and work: contenders and the limits, by number of threads and batch size."""
    results, bounds, parts = Results(found), Bounds(found), []
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
                        cells.append(duration(value.median) if value else "–")
                    else:
                        cells.append(shown(results.ratio(model, threads, work, batch, name)))
                if set(cells) != {"–"}:
                    rows.append((name_of(found, name), *cells))
            for form in ("fp32", "int8"):
                if form == "fp32" or bounds.has(model, work, form):
                    limits = [bounds.ratio(results, model, *where, form) for where in _places(work, columns)]
                    rows.append((f"limit, {form}", *(shown(each) if each else "not measured" for each in limits)))
            parts.append(f"### {title_of(found, model)}: {work}\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOTHING


def _places(work: str, columns: Sequence[tuple[int, int]]) -> list[tuple[int, str, int]]:
    return [(threads, work, batch) for threads, batch in columns]


def sampling_section(found: Found) -> str:
    """Return tables of sampling and of noise alone."""
    results, rows = Results(found), []
    words = {"sample": "a fresh seed", "next": "consecutive", "stream": "one generator"}
    for model in found["models"]:
        for work, word in words.items():
            for batch in results.batches(model, 1, work):
                naive = results.seconds(model, 1, work, batch, NAIVE)
                ratio = results.ratio(model, 1, work, batch, OURS)
                if naive and ratio:
                    rows.append((title_of(found, model), word, str(batch), duration(naive.median), shown(ratio)))
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
    """Return a table of the cold start, memory and size of each contender."""
    rows = []
    for name, about in found["contenders"].items():
        taken = [entry["contenders"][name] for entry in found["cold"] if name in entry["contenders"]]
        size = sum(each[1] for each in about["packages"].values())
        cells = ["–"] * 4
        if taken:
            wall, cpu, memory = (quartiles(each[key] for each in taken) for key in ("wall", "cpu", "memory"))
            ratio = start_ratio(found, name, "wall")
            if wall and cpu and memory:
                cells = [duration(wall.median), shown(ratio), duration(cpu.median), megabytes(memory.median)]
        rows.append((about["title"], *cells, megabytes(size), str(len(about["packages"]))))
    head = ("contender", "first sample after", "time × naive", "processor time", "peak memory", "installed", "packages")
    return table(head, rows)


def workers_section(found: Found) -> str:
    """Return a table of one worker, two workers, and one with two threads; idle and busy."""
    rows = []
    for model, batch, loops in sorted({(e["model"], e["batch"], e["loops"]) for e in found["workers"]}):
        entries = [
            e["rates"] for e in found["workers"] if (e["model"], e["batch"], e["loops"]) == (model, batch, loops)
        ]
        one = float(np.median([rates["one"] for rates in entries]))
        rows.append(
            (
                title_of(found, model), str(batch), str(loops), f"{one:,.0f}",
                shown(worker_ratio(found, model, batch, loops, "two", "one")),
                shown(worker_ratio(found, model, batch, loops, "wide", "one")),
                shown(worker_ratio(found, model, batch, loops, "two", "wide")),
            )
        )  # fmt: skip
    head = ("model", "batch", "busy loops", "one thread, per second", "two workers, × one thread",
            "two threads, × one thread", "two workers, × two threads")  # fmt: skip
    return table(head, rows)


def hosts_section(found: Found) -> str:
    """Return a table of Python and C: the start, memory, one sample, and sizes."""
    entries = found.get("hosts", [])
    if not entries:
        return "Not measured in this run."
    names = {"naive": "naive ONNX Runtime in Python", "ours-fp32": "vae-runtime in Python", "c": "vae-runtime in C"}
    calls = {"naive": "session.run", "ours-fp32": "vae.sample", "c": "vae_sample"}
    rows = []
    for name, title in names.items():
        wall, cpu, memory, sample = (
            float(np.median([entry["hosts"][name][key] for entry in entries]))
            for key in ("wall", "cpu", "memory", "sample")
        )
        rows.append((title, duration(wall), duration(cpu), megabytes(memory), f"{duration(sample)}: {calls[name]}"))
    sizes = entries[-1]["sizes"]
    text = table(("program", "first sample after", "processor time", "peak memory", "one sample"), rows)
    load = float(np.median([entry["load"] for entry in entries]))
    return (
        f"{text}\n\nThe library in C takes {sizes['c'] / 1024:.0f} KiB, 128 of them the noise's table; ONNX Runtime's "
        f"{megabytes(sizes['onnxruntime'])}. {len(entries)} rounds, {entries[0]['model']}; the "
        f"machine's load was {load:.1f}."
    )


def javascript_section(found: Found) -> str:
    """Return a sentence on the noise in JavaScript."""
    rounds = found.get("javascript", [])
    if not rounds:
        return "Not measured in this run."
    ours, theirs = (float(np.median([each[name] for each in rounds])) for name in ("noise", "random"))
    faster = quartiles(each["random"] / each["noise"] for each in rounds)
    return (
        f"A number takes {ours:.1f} ns, one of `Math.random` with the Box–Muller transform {theirs:.1f} ns: vnoise-1 "
        f"is {shown(faster)} times as fast, in {len(rounds)} rounds."
    )


def generation_section(found: Found) -> str:
    """Return tables of samples to files beside a loop that only decodes, of phases, and of starts."""
    rates, parts, starts = [], [], []
    for model in dict.fromkeys(turn["model"] for turn in found.get("generation", [])):
        title = title_of(found, model)
        for kind, workers, words in GENERATED:
            value = generation_ratio(found, model, kind, workers)
            if value is not None:
                rate = np.median([turn["rate"] for turn in turns_of(found, model, kind, workers)])
                rates.append((title, words, f"{rate:,.0f}", shown(value)))
        spent = [turn["seconds"] for turn in turns_of(found, model, "files", 1)]
        total = sum(sum(seconds.values()) for seconds in spent)
        shares = [sum(seconds.get(phase, 0.0) for seconds in spent) / max(total, 1e-9) for phase in PHASES]
        parts.append((title, *(f"{100 * share:.0f} %" for share in shares)))
        command = _median_of(turns_of(found, model, "start", 1), "seconds")
        first = _median_of(turns_of(found, model, "ray", 2), "first")
        memory = _median_of(turns_of(found, model, "files", 2), "memory")
        disk = _median_of(turns_of(found, model, "disk", 1), "rate")
        starts.append(
            (
                title,
                f"{command:.2f} s" if command else "not measured",
                f"{first:.1f} s" if first else "not measured",
                megabytes(memory or 0),
                f"{(disk or 0) / 1e6:,.0f} MB/s",
            )
        )
    if not rates:
        return "Not measured in this run."
    head = ("model", "two batches, from the start of the command to its end", "Ray: first file after",
            "memory of a worker", "disk: write and sync")  # fmt: skip
    tables = (
        table(("model", "what", "samples a second", "× decoding alone, same workers"), rates),
        "How one worker spends its time:",
        table(("model", *PHASES), parts),
        table(head, starts),
    )
    return "\n\n".join(tables)


def _median_of(turns: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return float(np.median([turn[key] for turn in turns])) if turns else None


# Each kind of generation with its number of workers and its label; then the phases of a worker's time.
GENERATED = (
    ("decode", 1, "decoding alone, 1 worker"), ("files", 1, "to files, 1 worker"),
    ("decode", 2, "decoding alone, 2 workers"), ("files", 2, "to files, 2 workers"),
    ("native", 1, "to files, native core, 1 worker"), ("native", 2, "to files, native core, 2 workers"),
    ("ray", 2, "to files, Ray, 2 workers"),
)  # fmt: skip
PHASES = ("noise", "decode", "convert", "write")


def tiles_section(found: Found) -> str:
    """Return a table of decoding a large picture, undivided and in tiles."""
    cells = found.get("tiles", [])
    if not cells:
        return NOTHING
    rows = []
    for way in dict.fromkeys(cell["way"] for cell in cells):
        here = [cell for cell in cells if cell["way"] == way]
        seconds, peak = (float(np.median([cell[key] for cell in here])) for key in ("seconds", "peak"))
        ratios = [shown(tile_ratio(found, way, what)) for what in ("seconds", "peak")]
        rows.append((way, duration(seconds), ratios[0], f"{peak:,.0f} MiB", ratios[1]))
    head = ("way", "seconds", "× diffusers", "peak memory", "× diffusers")
    busy = 100 * float(np.median([cell["busy"] for cell in cells]))
    rounds = len({cell["round"] for cell in cells})
    return (
        f"{cells[0]['model']}, {cells[0]['size']}², 2 threads, rounds: {rounds}; other programs used {busy:.0f} % of "
        f"the processors before the cells (median).\n\n{table(head, rows)}"
    )


def skipped_section(found: Found) -> str:
    """Return a table of who was left out of what, and why; reasons that differ only in figures appear once."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in found["skipped"]:
        alike.setdefault((entry["contender"], re.sub(r"[0-9.]+", "0", entry["reason"])), []).append(entry)
    rows = []
    for (name, _), entries in alike.items():
        reason, several = entries[0]["reason"], len({entry["reason"] for entry in entries}) > 1
        where = ", ".join(dict.fromkeys(map(_where, entries)))
        rows.append((name_of(found, name), where, f"{reason}; similar for the others" if several else reason))
    return table(("contender", "left out of", "reason"), rows, "No contender was left out.")


def _where(entry: Mapping[str, Any]) -> str:
    parts = [entry.get("model"), entry.get("work"), f"batch {entry['batch']}" if "batch" in entry else None]
    parts.append(f"{entry['threads']} threads" if entry.get("threads", 1) > 1 else None)
    return " ".join(part for part in parts if part) or "everything"


PICTURES = {
    "bench-summary.png": summary_picture,
    "bench-decode.png": decode_picture,
    "bench-start.png": start_picture,
}
SECTIONS = {
    "summary": summary_section,
    "targets": targets_section,
    "run": run_section,
    "models": models_section,
    "contenders": contenders_section,
    "work": work_section,
    "sampling": sampling_section,
    "start": start_section,
    "workers": workers_section,
    "hosts": hosts_section,
    "javascript": javascript_section,
    "generation": generation_section,
    "tiles": tiles_section,
    "limits": limits_section,
    "skipped": skipped_section,
}


def main() -> None:
    """Write the page again from its figures: `python -m benchmarks.report [FOLDER]`."""
    out, figures = places(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    write(json.loads(figures.read_text(encoding="utf-8")), out)


if __name__ == "__main__":
    main()
