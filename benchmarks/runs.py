"""One run of the comparison: its models, environments and processes, and what was found."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import write_atomic

from . import environments
from .contender import Unavailable
from .contenders import CONTENDERS
from .machine import machine
from .models import build
from .processes import Died, Process
from .worker import MIN_PSNR, TOLERANCE

ROOT = environments.ROOT


class Run:
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
            "min_psnr": MIN_PSNR,
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
            "hosts": [],
            "javascript": [],
            "tiles": [],
        }

    def skip(self, contender: str, reason: str, **where: Any) -> None:
        """Leave a contender out, of everything or of some work, and say why."""
        entry = {"contender": contender, **where, "reason": self.plain(reason)}
        if entry not in self.found["skipped"]:
            self.found["skipped"].append(entry)
            place = " ".join(str(value) for value in where.values())
            say(f"{contender} {place}: skipped: {entry['reason']}".replace(" :", ":"))

    def plain(self, text: str) -> str:
        """Return the text without the path of this checkout, which means nothing to the reader."""
        for folder in (str(self.data), str(ROOT), str(Path.home())):
            text = text.replace(folder + os.sep, "").replace(folder, "")
        return text

    def make_models(self) -> None:
        """Train and export the models that are missing."""
        for name in self.options.models:
            try:
                self.found["models"][name] = build(name, self.data / name, self.options.mnist)
            except VaeError as error:
                raise VaeError(f"{name}: {error}") from error
        if not self.found["models"]:
            raise InputError("models: expected at least one, got none")

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
                    env=self.environment(2),
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
                reason = self.plain(f"conversion failed: {reason}")
                self.skip(name, reason, model=model)
            write_atomic(mark, json.dumps({"key": key, "reason": reason}).encode())

    def worker(self, name: str, threads: int, python: Path) -> Process:
        """Start a process that answers for a contender, in an environment's interpreter.

        Raises:
            Died: it cannot begin.
        """
        command = [str(python), "-m", "benchmarks.worker", name, str(threads)]
        return Process(command, ROOT, self.environment(threads))

    def environment(self, threads: int) -> dict[str, str]:
        """Return the variables of a process that may use so many threads."""
        count = str(threads)
        return {
            **os.environ,
            # Every worker times with this checkout's timing core, which needs numpy alone.
            "PYTHONPATH": str(ROOT / "runtime"),
            # pip compiles what it installs; this checkout's modules are compiled by the first process that may.
            "PYTHONDONTWRITEBYTECODE": "",
            "OMP_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "TORCHINDUCTOR_CACHE_DIR": str(self.data / "inductor"),
        }

    @staticmethod
    def _packages(python: Path, roots: Sequence[str]) -> dict[str, list[Any]]:
        packages = environments.installed(environments.site_packages(python), roots)
        if "vae-runtime" in packages:
            # Installed in place, where its own list has no files.
            files = [path for path in (ROOT / "runtime" / "vae_runtime").glob("*") if path.is_file()]
            packages["vae-runtime"] = packages["vae-runtime"][0], sum(path.stat().st_size for path in files)
        return {name: list(about) for name, about in sorted(packages.items())}

    def skipped(self, name: str, model: str) -> bool:
        """Return whether a contender was left out of a model."""
        return any(
            entry["contender"] == name and entry.get("model", model) == model and "work" not in entry
            for entry in self.found["skipped"]
        )

    def start(self, name: str, threads: int) -> None:
        """Start a contender's process; it opens models when it is their turn."""
        python = self.pythons[name] if name in self.pythons else self.pythons["naive"]
        try:
            self.processes[name, threads] = self.worker(name, threads, python)
        except Died as error:
            self.drop(name, threads, str(error))

    def drop(self, name: str, threads: int, reason: str) -> None:
        """Continue without a process that died."""
        process = self.processes.pop((name, threads), None)
        if process is not None:
            process.close()
        self.skip(name, reason, threads=threads)


def say(text: str) -> None:
    """Print the progress of the run."""
    print(text, file=sys.stderr, flush=True)
