"""A training that torchrun started in several processes: the curve of one process, and one reason where it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from launch import launched, torchrun_command

from vae_export.cli import main
from vae_export.training.processes import Processes

ARGUMENTS = (
    *("--epochs", "4", "--batch-size", "233", "--latent", "4", "--hidden", "16", "--learning-rate", "3e-3"),
    *("--binarise", "stochastic", "--free-bits", "0.03", "--gradient-clip", "50", "--ema", "0.9", "--threads", "1"),
)
# What a process does, by the variable WHAT, and then the command of the arguments.
SCRIPT = """
import math, os, signal, sys
from vae_export.cli import main
from vae_export.training import descent, loop

what, rank = os.environ.get("WHAT", ""), int(os.environ["RANK"])
validate, step, rows = loop._Training._validate, descent.Descent.step, loop.Processes.rows


def killed(self, epoch):
    if epoch == 3 and what == f"process {rank} is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return validate(self, epoch)


def spoiled(self, batch, *rest):
    if what == f"process {rank} has no number":
        batch = batch._replace(x=batch.x * math.nan)
    if what == "parts of equal weight":
        batch = batch._replace(counted=batch.n // self._group.count)
    return step(self, batch, *rest)


def shared(self, n):
    return slice(0, n // self.count) if what == "all take the first rows" else rows(self, n)


loop._Training._validate, descent.Descent.step, loop.Processes.rows = killed, spoiled, shared
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def torchrun(tmp_path, digits_npy):
    """Train in a folder in so many processes; the result of torchrun."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(processes, folder, what="", source=digits_npy):
        arguments = ("train", "--data", str(source), "--out", str(tmp_path / folder), *ARGUMENTS)
        return launched(str(script), *arguments, processes=processes, WHAT=what)

    return run


def alone(source, folder):
    assert main(["train", "--data", str(source), "--out", str(folder), *ARGUMENTS]) == 0


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for line in lines for part in ("train", "validation") for value in line[part].values()]


def errors(done):
    # A bar may stand before it on its line.
    return re.findall(r"error: .*", done.stderr)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_the_rows_of_a_batch_are_divided_among_processes():
    for count in (1, 2, 3, 7):
        for n in (1, 2, 5, 100):
            rows = [row for rank in range(count) for row in range(n)[Processes(rank, count).rows(n)]]
            assert rows == list(range(n))


HELD = """
import os, sys
import torch
from torch import distributed
from vae_export.training.processes import Processes, joined

def plain(tensor):
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor

def taken_over(tensor):
    tensor = tensor.clone()
    group.take_over([tensor])
    return tensor

def held(function):
    tensor = torch.ones(3)
    count, alone = 0, sys.getrefcount(tensor)
    for _ in range(3000):
        tensor = function(torch.ones(3))
        count += sys.getrefcount(tensor) > alone
    return count

with joined() as group:
    # One write, which another process' does not come between.
    os.write(1, f"{held(plain)} {held(group.total)} {held(taken_over)}\\n".encode())
"""


def test_no_thread_holds_a_tensor_behind_a_call(tmp_path):
    """Such a thread ends a process whose Python ends meanwhile with SIGABRT."""
    script = tmp_path / "held.py"
    script.write_text(HELD)
    done = launched(str(script))
    assert done.returncode == 0, done.stderr
    counts = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(counts) == 2
    assert sum(plain for plain, _, _ in counts) > 0
    assert [each[1:] for each in counts] == [[0, 0], [0, 0]]


def test_two_processes_give_the_curve_of_one(torchrun, digits_npy, tmp_path):
    """The second batch has the last of the 234 rows, so one process has none."""
    done = torchrun(2, "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{tmp_path / 'two'}: finished"
    assert len(done.stdout.splitlines()) == 2
    assert "training on 2 processes, each on cpu, 1 thread" in done.stderr
    alone(digits_npy, tmp_path / "one")
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("what", ["parts of equal weight", "all take the first rows"])
def test_rows_that_are_shared_wrongly_are_seen(torchrun, digits_npy, tmp_path, what):
    assert torchrun(2, "two", what).returncode == 0
    alone(digits_npy, tmp_path / "one")
    assert curve(tmp_path / "two") != pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_stops_all_and_the_same_command_goes_on(torchrun, tmp_path, rank):
    assert torchrun(2, "whole").returncode == 0
    started = time.monotonic()
    done = torchrun(2, "run", f"process {rank} is killed")
    assert done.returncode != 0
    assert time.monotonic() - started < 120
    assert "Signal 9 (SIGKILL) received" in done.stderr
    # torchrun may end the other process before it has seen that it is alone.
    assert len(errors(done)) <= 1
    assert all(f"process {1 - rank} of 2: another one ended, and said no reason" in line for line in errors(done))
    assert not (tmp_path / "run" / "curve.png").exists()
    done = torchrun(2, "run")
    assert done.returncode == 0, done.stderr
    assert "finished, resumed from epoch 2" in done.stdout
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "run")[name])


@pytest.mark.long
def test_it_goes_on_with_another_number_of_processes(torchrun, digits_npy, tmp_path):
    alone(digits_npy, tmp_path / "one")
    assert torchrun(2, "run", "process 1 is killed").returncode != 0
    done = torchrun(3, "run")
    assert done.returncode == 0, done.stderr
    assert "resumed from epoch 2" in done.stdout
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_reason_is_told_once(torchrun, tmp_path, rank):
    done = torchrun(2, "run", f"process {rank} has no number")
    assert done.returncode != 0
    assert len(errors(done)) == 1
    assert "epoch 1, step 1: expected a finite loss, got nan" in errors(done)[0]
    assert "interrupted" not in done.stderr
    done = torchrun(2, "run", source=tmp_path / "missing.npy")
    assert done.returncode != 0
    assert len(errors(done)) == 1
    assert "missing.npy" in errors(done)[0]


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_an_interrupted_conversion_is_told_once(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time, torch\n\n\ndef rows():\n    for i in range(10**6):\n        time.sleep(0.02)\n"
        "        yield torch.tensor([i % 2, 0.5])\n"
    )
    arguments = ("train", "--data", "slow:rows", "--out", str(tmp_path / "run"), "--threads", "1")
    process = subprocess.Popen(
        [*torchrun_command(), "-m", "vae_export", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("run/.data.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    # As a terminal does.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert errors.count("interrupted\n") == 1
    assert not (tmp_path / "run").exists()
