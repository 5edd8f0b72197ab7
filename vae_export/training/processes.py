"""The processes that share a training: those that torchrun started, or this one alone."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vae_runtime.errors import error_line

from ..errors import TrainingError

_Value = TypeVar("_Value")

# A process may wait long for the first one to read data. One that ends is seen at once, whatever this is.
_PATIENCE = datetime.timedelta(days=1)
_trainings = itertools.count()
# Seconds within which torchrun ends the other processes, once one has failed.
_END = 60


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen by one of them. Each of them makes the same calls in the same order."""

    rank: int = 0
    """Number of this one."""
    count: int = 1
    local_rank: int = 0
    """Number of this one on its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return this process' part of the rows of a batch; empty where there are fewer rows than processes."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes: the same bits on each."""
        if self.count > 1:
            tensor = tensor.clone()
            with _let_go(tensor):
                distributed.all_reduce(tensor)
        return tensor

    def from_first(self, value: _Value) -> _Value:
        """Return what the first process gave as `value`."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        for tensor in tensors if self.count > 1 else ():
            with _let_go(tensor):
                distributed.broadcast(tensor, src=0)


@contextlib.contextmanager
def _let_go(tensor: Tensor) -> Iterator[None]:
    """Stay in the block until gloo's threads have let go of a tensor.

    They may do so after the call that used it has returned, and take Python's lock for it. Where Python has ended
    meanwhile, that ends the process with SIGABRT.
    """
    before = sys.getrefcount(tensor)
    yield
    while tensor.device.type == "cpu" and sys.getrefcount(tensor) > before:
        time.sleep(0)


def started_first() -> bool:
    """Return whether this process is the first of a training, or alone."""
    return not _are_several() or os.environ["RANK"] == "0"


def started_by(arguments: Sequence[str]) -> str:
    """Return the command line with these arguments of `vae-export`, as it started this training."""
    if not _are_several():
        return shlex.join(["vae-export", *arguments])
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    machines = int(os.environ["WORLD_SIZE"]) // each
    nodes = ["--nnodes", str(machines)] if machines > 1 else []
    return shlex.join(["torchrun", *nodes, "--nproc-per-node", str(each), "-m", "vae_export", *arguments])


def _are_several() -> bool:
    # Some builds of PyTorch come without.
    started = distributed.is_available() and distributed.is_torchelastic_launched()
    return started and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes that torchrun started, if it did, for the time of the block.

    Where several fail, as one does whose partner ended, the first failure is raised in its process. The others wait for
    torchrun to end them, and end with `SystemExit`, so that a reason is told once.

    Raises:
        TrainingError: another process ended without a word.
    """
    if not _are_several():
        yield Processes()
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    shared, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    # The store stays; what an earlier training of these processes left in it must not be read.
    store = PrefixStore(f"training {next(_trainings)}", shared)
    processes = Processes(rank, count, int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield processes
    except Exception as error:
        if _failed_first(store, rank):
            if _is_lost(error):
                # gloo adds a general explanation.
                reason = error_line(error).partition(". This is typically")[0]
                raise TrainingError(
                    f"process {rank} of {count}: another one ended, and said no reason here: {reason}; the same "
                    "command goes on from the last epoch"
                ) from error
            raise
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_END)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        if processes.is_first and not store.check(["failed"]):
            raise
        raise SystemExit(1) from None
    distributed.destroy_process_group()


def _failed_first(store: Any, rank: int) -> bool:
    """Note in the store, which torchrun holds, that this process failed; return whether none did before."""
    try:
        first: bytes = store.compare_set("failed", "", str(rank))
    except RuntimeError:  # torchrun has ended
        return True
    return first == str(rank).encode()


def _is_lost(error: Exception) -> bool:
    """Return whether an error is that of a connection to another process."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL"))
    )
