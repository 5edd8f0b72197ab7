"""Measure every contender on every model; write docs/benchmarks.json and, from it, the page beside it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument
from vae_runtime.errors import InputError, VaeError, require_integer, require_number
from vae_runtime.files import write_atomic

from . import environments, generation, report
from .contenders import CONTENDERS, Unavailable
from .models import COMPARED, MODELS, build, write_limits
from .processes import Died, Process
from .worker import LEAST_PSNR, TOLERANCE

ROOT = environments.ROOT
# Latents drawn at once where the rate of noise is measured: 4 million numbers.
NOISE_ROWS = 2**18
# Work that takes all contenders together longer than so many seconds is measured in so many rounds, the rest in all.
LONG, ROUNDS_OF_LONG = 2.0, 3
# Share of the machine's memory that is left to others: work that would take it is left out.
KEPT_FREE = 0.2
BATCHES_OF_WORKERS = (1, 64)
MODELS_OF_WORKERS = ("mlp", "mnist", "transposed", "tiny")
BUSY_LOOPS = 4
MODELS_OF_GENERATION = ("mlp", "mnist", "tiny")
# Each takes a minute.
MOST_OF_GENERATION = 5
PARTS = ("comparison", "generation")


class Cell(NamedTuple):
    """Work that all contenders do in turn."""

    model: str
    threads: int
    work: str
    batch: int


class Bench:
    """One run: its options, its processes, and what was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.data = Path(options.data).resolve()
        self.slot = 0.005 if options.quick else 0.04
        self.random = random.Random(0)
        self.processes: dict[tuple[str, int], Process] = {}
        self.pythons: dict[str, Path] = {}
        self.found: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "quick": options.quick,
            "machine": machine(),
            "tolerance": TOLERANCE,
            "min_psnr": LEAST_PSNR,
            "slot": self.slot,
            "models": {},
            "contenders": {},
            "skipped": [],
            "parity": [],
            "load": [],
            "rounds": [],
            "cold": [],
            "limits": [],
            "workers": [],
            "generation": [],
        }

    def skip(self, contender: str, reason: str, **where: Any) -> None:
        """Leave a contender out, of everything or of some work, and say why."""
        entry = {"contender": contender, **where, "reason": self._plain(reason)}
        if entry not in self.found["skipped"]:
            self.found["skipped"].append(entry)
            place = " ".join(str(value) for value in where.values())
            say(f"{contender} {place}: skipped: {entry['reason']}".replace(" :", ":"))

    def _plain(self, text: str) -> str:
        """Without the place of this checkout, which is nothing to the reader."""
        for folder in (str(self.data), str(ROOT), str(Path.home())):
            text = text.replace(folder + os.sep, "").replace(folder, "")
        return text

    def make_models(self) -> None:
        """Train and export what is not there yet."""
        for name in self.options.models:
            try:
                self.found["models"][name] = build(name, self.data / name, self.options.mnist)
            except VaeError as error:
                raise VaeError(f"{name}: {error}") from error
        if not self.found["models"]:
            raise InputError("models: at least one is expected, got none")

    def make_environments(self) -> None:
        """Install contenders, and let them convert the models."""
        for name in self.options.contenders:
            contender = CONTENDERS[name]
            try:
                python = environments.python_of(contender.environment, here=self.options.quick)
                self.pythons[name] = python
                if contender.converter:
                    self._convert(name, environments.python_of(contender.converter))
            except (VaeError, OSError) as error:
                self.skip(name, str(error))
                self.pythons.pop(name, None)
                continue
            for model in self.found["models"]:
                try:
                    contender(str(self.data / model), 1, ()).check()
                except Unavailable as error:
                    why = [text for text in self.found["models"][model]["refused"] if contender.precision in text]
                    self.skip(name, "; ".join([str(error), *why]), model=model)
            self.found["contenders"][name] = {
                "title": contender.title,
                "given": contender.given,
                "exact": contender.exact,
                "packages": self._packages(python, contender.packages),
            }

    def _convert(self, name: str, python: Path) -> None:
        for model, about in self.found["models"].items():
            folder = self.data / model
            mark = folder / f"converted-{name}.json"
            key = {
                "weights": about["weights"],
                "batches": list(about["batches"]),
                "by": list(environments.REQUIREMENTS[CONTENDERS[name].converter]),
            }
            if mark.is_file():
                before = json.loads(mark.read_text(encoding="utf-8"))
                if before["key"] == key:
                    if before["reason"]:
                        self.skip(name, before["reason"], model=model)
                    continue
            say(f"{name}: converting {model}")
            batches = ",".join(str(batch) for batch in about["batches"])
            command = [str(python), "-m", "benchmarks.worker", "convert", name, str(folder), batches]
            reason = None
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=self._environment(2),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=1200,
                )
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
            except subprocess.TimeoutExpired:
                reason = "not converted within 20 minutes"
            if reason:
                reason = self._plain(f"conversion failed: {reason}")
                self.skip(name, reason, model=model)
            write_atomic(mark, json.dumps({"key": key, "reason": reason}).encode())

    def _environment(self, threads: int) -> dict[str, str]:
        count = str(threads)
        return {
            **os.environ,
            "PYTHONPATH": "",
            "OMP_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "TORCHINDUCTOR_CACHE_DIR": str(self.data / "inductor"),
        }

    @staticmethod
    def _packages(python: Path, roots: Sequence[str]) -> dict[str, list[Any]]:
        found = environments.installed(environments.site_packages(python), roots)
        if "vae-runtime" in found:
            # Installed in place, where its own list has no files.
            files = [path for path in (ROOT / "runtime" / "vae_runtime").glob("*") if path.is_file()]
            found["vae-runtime"] = found["vae-runtime"][0], sum(path.stat().st_size for path in files)
        return {name: list(about) for name, about in sorted(found.items())}

    def skipped(self, name: str, model: str) -> bool:
        """Whether a contender has nothing to do with a model."""
        return any(
            entry["contender"] == name and entry.get("model", model) == model and "work" not in entry
            for entry in self.found["skipped"]
        )

    def start(self, name: str, threads: int) -> None:
        """Start a contender's process; it opens models when it is their turn."""
        python = self.pythons[name] if name in self.pythons else self.pythons["naive"]
        try:
            process = Process(
                [str(python), "-m", "benchmarks.worker", name, str(threads)], ROOT, self._environment(threads)
            )
            self.processes[name, threads] = process
        except Died as error:
            self.drop(name, threads, str(error))

    def drop(self, name: str, threads: int, reason: str) -> None:
        """Go on without a process that died."""
        process = self.processes.pop((name, threads), None)
        if process is not None:
            process.close()
        self.skip(name, reason, threads=threads)

    def _order(self, process: Process, patience: float = 600, **order: Any) -> dict[str, Any]:
        answer = process.ask(order, patience)
        if "error" in answer:
            raise VaeError(answer["error"])
        return answer

    def cells(self) -> list[Cell]:
        """All that is to be measured, whoever can."""
        cells = []
        for name in self.found["models"]:
            model = MODELS[name]
            cells += [Cell(name, 1, work, batch) for work in model.work for batch in model.batches]
            if "sample" in model.work and name in ("mlp", "mlp50", "tiny"):
                cells += [Cell(name, 1, work, batch) for work in ("next", "stream") for batch in model.batches[:2]]
            cells += [Cell(name, 2, "decode", batch) for batch in model.wide]
            if name in ("mlp", "tiny"):
                cells.append(Cell(name, 1, "noise", NOISE_ROWS if name == "mlp" else 2**10))
        return [cell for cell in cells if cell.threads in self.options.threads]

    def prepare(self, cells: Sequence[Cell]) -> dict[Cell, list[str]]:
        """Hold every contender against PyTorch; those that pass, by the work that they may be measured on.

        The cells are of one model and number of threads.
        """
        fit: dict[Cell, list[str]] = {cell: [] for cell in cells}
        model, threads = cells[0].model, cells[0].threads
        say(f"{model}, {threads} thread{'s' if threads > 1 else ''}: comparing with PyTorch")
        for name in [name for name, count in self.processes if count == threads]:
            if self.skipped(name, model):
                continue
            try:
                self._order(self.processes[name, threads], do="open", folder=str(self.data / model))
                for cell in cells:
                    if self._passes(name, cell):
                        fit[cell].append(name)
            except Died as error:
                self.drop(name, threads, str(error))
                fit = {cell: [each for each in names if each != name] for cell, names in fit.items()}
            except VaeError as error:
                self.skip(name, str(error), model=model)
        return {cell: names for cell, names in fit.items() if names}

    def _passes(self, name: str, cell: Cell) -> bool:
        if cell.work in ("next", "stream", "noise") and name not in ("naive", "ours-fp32"):
            return False
        if cell.work != "decode" and CONTENDERS[name].decodes_only:
            return False
        where = {"model": cell.model, "work": cell.work, "batch": cell.batch, "threads": cell.threads}
        free = available_memory()
        if free < KEPT_FREE:
            text = f"{free:.0%} of the machine's memory are free, {KEPT_FREE:.0%} are left to others"
            self.skip(name, text, **where)
            return False
        process, folder = self.processes[name, cell.threads], str(self.data / cell.model)
        try:
            parity = self._order(process, do="prepare", folder=folder, work=cell.work, batch=cell.batch)
        except Died:
            raise
        except VaeError as error:
            self.skip(name, str(error), **where)
            return False
        self.found["parity"].append({"contender": name, **where, **parity})
        if not parity["passed"]:
            self.skip(name, _not_comparable(parity, CONTENDERS[name].exact), **where)
        return bool(parity["passed"])

    def close(self, model: str, threads: int) -> None:
        """Let all contenders give back what they hold of a model."""
        for (name, count), process in list(self.processes.items()):
            if count == threads:
                try:
                    self._order(process, do="close", folder=str(self.data / model))
                except Died as error:
                    self.drop(name, threads, str(error))

    def rounds(self, fit: Mapping[Cell, list[str]], minutes: float = 0) -> None:
        """Measure all cells so many times, the long ones less often, the others again while there is time."""
        end = time.monotonic() + 60 * minutes
        costs: dict[Cell, float] = {}
        number = 0
        while number < self.options.rounds or (time.monotonic() < end and not self.options.quick):
            before, begin = _stolen(), time.monotonic()
            cells = [cell for cell in fit if number < ROUNDS_OF_LONG or costs[cell] < LONG]
            if not cells:
                break
            self.random.shuffle(cells)
            for cell in cells:
                if number >= self.options.rounds and time.monotonic() > end:
                    break
                costs[cell] = self._round(number, cell, fit[cell])
            group = {"model": next(iter(fit)).model, "threads": next(iter(fit)).threads, "free": available_memory()}
            self.found["load"].append(
                {"round": number, **group, "loadavg": list(os.getloadavg()), "stolen": _share(before, _stolen())}
            )
            say(f"round {number + 1}: {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.1f}")
            number += 1

    def _round(self, number: int, cell: Cell, names: Sequence[str]) -> float:
        begin = time.monotonic()
        seconds = {}
        for name in self.random.sample(names, len(names)):
            process = self.processes.get((name, cell.threads))
            if process is None:
                continue
            order: dict[str, Any] = {"folder": str(self.data / cell.model), "work": cell.work, "batch": cell.batch}
            try:
                answer = self._order(process, do="measure", seconds=self.slot, **order)
            except Died as error:
                self.drop(name, cell.threads, str(error))
            except VaeError as error:
                self.skip(name, str(error), **cell._asdict())
            else:
                seconds[name] = _rounded(answer["median"])
        self.found["rounds"].append({"round": number, **cell._asdict(), "seconds": seconds})
        return time.monotonic() - begin

    def workers(self) -> None:
        """Two workers of one thread, one of two and one of one, with idle and with busy processors."""
        pair = "ours-fp32"
        if (pair, 1) not in self.processes or (pair, 2) not in self.processes:
            self.skip(pair, "it takes a process with one thread and one with two", work="two workers")
            return
        first, wide = self.processes[pair, 1], self.processes[pair, 2]
        command = [str(self.pythons[pair]), "-m", "benchmarks.worker", pair, "1"]
        second = Process(command, ROOT, self._environment(1))
        groups = {"one": [first], "two": [first, second], "wide": [wide]}
        models = [name for name in self.found["models"] if name in MODELS_OF_WORKERS]
        cells = [(m, b) for m in models for b in BATCHES_OF_WORKERS if b in MODELS[m].batches and b in MODELS[m].wide]
        seconds = 0.02 if self.options.quick else 0.3
        try:
            for model, batch in cells:
                folder = str(self.data / model)
                self._order(second, do="open", folder=folder)
                for process in (first, wide):
                    self._order(process, do="open", folder=folder)
                for process in (first, second, wide):
                    parity = self._order(process, do="prepare", folder=folder, work="decode", batch=batch)
                    if not parity["passed"]:
                        raise VaeError(f"{model}, batch {batch}: {_not_comparable(parity, exact=True)}")
            for number in range(self.options.rounds):
                for loops in (0, BUSY_LOOPS):
                    with _busy(loops):
                        for model, batch in self.random.sample(cells, len(cells)):
                            rates = {}
                            for group in self.random.sample(sorted(groups), len(groups)):
                                order = {"folder": str(self.data / model), "work": "decode", "batch": batch}
                                for process in groups[group]:
                                    process.tell({"do": "measure", "seconds": seconds, **order})
                                # The mean, not the median: a stalled call is what a busy machine costs.
                                answers = [process.answer(600) for process in groups[group]]
                                for answer in answers:
                                    if "error" in answer:
                                        raise VaeError(answer["error"])
                                rates[group] = _rounded(sum(batch / answer["mean"] for answer in answers))
                            entry = {"round": number, "model": model, "batch": batch, "loops": loops, "rates": rates}
                            self.found["workers"].append(entry)
        finally:
            second.close()

    def limits(self) -> None:
        """What the machine could do: matrix products and reading memory, the best of several measurements."""
        if "naive" not in self.pythons:
            return
        folder = self.data / "limits"
        write_limits(folder)
        sizes, small, large = ((64,), 2**12, 2**14) if self.options.quick else ((256, 512, 1024), 2**19, 2**26)
        amounts = [(work, size) for work in ("sgemm-numpy", "sgemm-ort") for size in sizes]
        for threads in self.options.threads:
            process = Process(
                [str(self.pythons["naive"]), "-m", "benchmarks.worker", "limits", str(threads)], ROOT,
                self._environment(threads),
            )  # fmt: skip
            try:
                self._order(process, do="open", folder=str(folder))
                for work, amount in (*amounts, ("read", small), ("read", large)):
                    self._order(process, do="prepare", folder=str(folder), work=work, batch=amount)
                    order: dict[str, Any] = {"folder": str(folder), "work": work, "batch": amount}
                    answers = [
                        self._order(process, do="measure", seconds=4 * self.slot, **order)
                        for _ in range(self.options.rounds)
                    ]
                    best = min(answer["least"] for answer in answers)
                    done = 2 * amount**3 if work != "read" else 4 * amount
                    entry = {"threads": threads, "work": work, "amount": amount, "per_second": _rounded(done / best)}
                    self.found["limits"].append(entry)
            finally:
                process.close()

    def cold(self) -> None:
        """From process start to the first sample, each contender in turn."""
        model = next((name for name in self.found["models"] if name in ("mlp", "tiny")), None)
        if model is None:
            return
        slow: set[str] = set()
        latent = tuple(self.found["models"][model]["latent_shape"])
        for number in range(1 if self.options.quick else 3 * self.options.rounds):
            names = [n for n in self.pythons if not self.skipped(n, model) and (n not in slow or number < 3)]
            taken = {}
            for name in self.random.sample(names, len(names)):
                try:
                    taken[name] = self._first(name, str(self.data / model), latent)
                except VaeError as error:
                    self.skip(name, str(error), model=model, work="first sample")
                    slow.add(name)
                    continue
                if taken[name]["wall"] > 1:
                    slow.add(name)
            self.found["cold"].append({"round": number, "model": model, "contenders": taken})

    def _first(self, name: str, folder: str, latent: tuple[int, ...]) -> dict[str, float]:
        ready, write = os.pipe()
        code = f"from benchmarks.contenders import first; first({name!r}, {folder!r}, {latent!r}, {write})"
        begin = time.monotonic()
        with subprocess.Popen(
            [str(self.pythons[name]), "-c", code], cwd=ROOT, env=self._environment(1), pass_fds=[write],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            os.close(write)
            try:
                answered = select.select([ready], [], [], 120)[0]
                mark = os.read(ready, 1) if answered else b""
                wall = time.monotonic() - begin
                if not answered:
                    raise subprocess.TimeoutExpired(name, 120)
                said = process.communicate(timeout=120)[1].decode(errors="replace").strip().splitlines()
                if not mark or process.returncode:
                    raise VaeError(
                        re.sub(r"^[\w.]+: ", "", said[-1])[:300] if said else f"exit status {process.returncode}"
                    )
                return {"wall": _rounded(wall), **json.loads(os.read(ready, 4096))}
            except subprocess.TimeoutExpired:
                process.kill()
                raise VaeError("no sample within 120 seconds") from None
            finally:
                os.close(ready)

    def generation(self) -> None:
        """Samples to files, by processes of this machine and by Ray."""
        models = [name for name in self.options.models if name in MODELS_OF_GENERATION]
        if not models:
            return
        ray: Path | None = None
        if not self.options.quick:
            try:
                ray = environments.python_of("ray")
            except (VaeError, OSError) as error:
                self.skip("ray", str(error), work="samples to files")
        bundles = {name: self.data / name / "bundle" for name in models}
        rounds = 1 if self.options.quick else min(self.options.rounds, MOST_OF_GENERATION)
        python = environments.python_of("runtime", here=self.options.quick)
        self.found["generation"] = generation.measure(
            bundles, rounds, python, ray, self._environment(1), say, quick=self.options.quick
        )

    def run(self) -> dict[str, Any]:
        """The parts that are wanted, in order; what was found.

        Raises:
            VaeError: no model could be made, or samples could not be written to files.
        """
        self.make_models()
        if "comparison" in self.options.parts:
            self.compare()
        if "generation" in self.options.parts:
            self.generation()
        return self.found

    def compare(self) -> None:
        """Every contender on every model."""
        self.make_environments()
        try:
            # Before the others are there: nothing else of ours is in the machine's memory.
            self.cold()
            self.limits()
            for threads in self.options.threads:
                for name in self.pythons:
                    self.start(name, threads)
            groups: dict[tuple[str, int], list[Cell]] = {}
            for cell in self.cells():
                groups.setdefault((cell.model, cell.threads), []).append(cell)
            for (model, threads), cells in groups.items():
                fit = self.prepare(cells)
                if fit:
                    self.rounds(fit, self.options.minutes / len(groups))
                self.close(model, threads)
            try:
                self.workers()
            except VaeError as error:
                self.skip("ours-fp32", str(error), work="two workers")
        finally:
            for process in self.processes.values():
                process.close()


def machine() -> dict[str, Any]:
    """What the measurements were taken on."""
    about: dict[str, Any] = {
        "system": platform.system(), "architecture": platform.machine(), "python": platform.python_version(),
        "processors": os.cpu_count(), "processor": platform.processor(), "flags": [],
    }  # fmt: skip
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        about["processor"] = fields.get("model name", about["processor"])
        wanted = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni"}
        about["flags"] = sorted(wanted & set(fields.get("flags", "").split()))
        memory = Path("/proc/meminfo").read_text(encoding="ascii").split()
        about["memory"] = int(memory[1]) * 1024
    return about


def available_memory() -> float:
    """The share of the machine's memory that is free for new work; 1 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = {line.split(":")[0]: int(line.split()[1]) for line in file}
        return _rounded(fields["MemAvailable"] / fields["MemTotal"])
    except (OSError, KeyError, ValueError):
        return 1.0


def _stolen() -> tuple[int, int]:
    """Ticks that a hypervisor gave to others, and all ticks; zeros where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(each) for each in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7], sum(ticks)


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    return _rounded((after[0] - before[0]) / max(1, after[1] - before[1]))


def _rounded(value: float) -> float:
    """Four digits: more would be noise, and the file is kept."""
    return float(f"{value:.4g}")


def _not_comparable(parity: Mapping[str, Any], exact: bool) -> str:
    if exact:
        return f"not comparable: its numbers differ from PyTorch's by {parity['difference']:.2g}"
    return f"not comparable: PSNR {parity['psnr'] or 0:.1f} dB against PyTorch, {LEAST_PSNR:g} dB are expected"


@contextlib.contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Keep the processors busy with so many endless loops."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(loops)]
    try:
        if running:
            time.sleep(0.2)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def say(text: str) -> None:
    """Tell how far the run is."""
    print(text, file=sys.stderr, flush=True)


def _names(what: str, known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise InputError(f"{what}: of {', '.join(known)} is expected, got {name!r}")
        return names

    return argument(read)


def _threads(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.isdigit()]
    if not counts or any(count not in (1, 2) for count in counts):
        raise InputError(f"threads: 1, 2 or 1,2 is expected, got {text!r}")
    return counts


def _least(name: str, low: float, kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise InputError(f"{name}: a number is expected, got {text!r}") from None
        return require_number(name, value, low, 1e6) if kind is float else require_integer(name, value, int(low), 10**6)

    return argument(read)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(command=_run)
    parser.add_argument(
        "--contenders", type=_names("contenders", list(CONTENDERS)), default=list(CONTENDERS), metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)}; joined by commas (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=_names("models", list(MODELS)), default=list(COMPARED), metavar="NAMES",
        help=f"of {', '.join(MODELS)}; joined by commas (default: all but tiny)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=_names("parts", PARTS), default=list(PARTS), metavar="NAMES",
        help="of comparison, generation (default: both); the page keeps the figures of a part that is left out",
    )  # fmt: skip
    parser.add_argument("--threads", type=argument(_threads), default=[1, 2], help="1, 2 or 1,2 (default)")
    parser.add_argument("--mnist", help="the folder with MNIST's IDX files; without it scikit-learn's digits stand in")
    parser.add_argument(
        "--minutes", type=_least("minutes", 0, float), default=7.0, help="go on with rounds for so long (default 7)"
    )
    parser.add_argument(
        "--rounds", type=_least("rounds", 1, int), default=5, help="rounds of everything, at least (default 5)"
    )
    parser.add_argument("--quick", action="store_true", help="three short rounds, to try the program")
    parser.add_argument("--data", default=ROOT / "out" / "bench", help="where models are kept (default out/bench)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs", help="the folder of benchmarks.md and .json (default docs)"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.quick:
        options.rounds = min(options.rounds, 3)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(f"{options.out}: cannot be made: {error.strerror}; choose another place") from error
    found = Bench(options).run()
    figures = options.out / report.FIGURES
    if len(options.parts) < len(PARTS) and figures.is_file():
        before = json.loads(figures.read_text(encoding="utf-8"))
        found = (
            {**before, "generation": found["generation"]}
            if "generation" in options.parts
            else {**found, "generation": before.get("generation", [])}
        )
    write_atomic(figures, report.dumped(found).encode())
    report.write(found, options.out)
    say(f"{options.out / 'benchmarks.md'}: written")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    return run(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
