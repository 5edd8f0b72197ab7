"""The local executor: make shards in this process, or in processes of this machine with one thread each."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ..errors import VaeError
from ..networks import prepare_graph
from ..prepared import Prepared
from ..vae import VAE, load, load_prepared
from .job import Job
from .shard import ShardResult, make_shard
from .store import Store


def usable_cores() -> int:
    """Return the number of cores that this process may use, by affinity and the quota of cgroup v2 or v1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = period = 0
    with contextlib.suppress(OSError, ValueError):
        limit, length = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        quota, period = (0, 0) if limit == "max" else (int(limit), int(length))
    if not quota:
        with contextlib.suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup/cpu")
            quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return max(1, min(cores, -(-quota // period))) if quota > 0 and period > 0 else cores


def make_shards(
    vae: VAE, store: Store, job: Job, numbers: Sequence[int], workers: int
) -> Generator[ShardResult, None, None]:
    """Make shards, in this process or in others.

    Yields:
        The result of each shard, as it is done.

    Raises:
        VaeError: a shard cannot be written, or a worker died.
    """
    if workers == 1:
        for number in numbers:
            yield make_shard(vae, store, job, number)
        return
    with _prepared(vae, job) as prepared:
        arguments = (str(vae.bundle.path), vae.digest, vae.device, store, job, prepared)
        yield from _make_in_pool(arguments, store, numbers, workers)


def _make_in_pool(
    arguments: tuple[Any, ...], store: Store, numbers: Sequence[int], workers: int
) -> Generator[ShardResult, None, None]:
    """Make shards in processes, which begin with `_start` of these arguments."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    for core in _cores(workers):
        cores.put(core)
    pool = ProcessPoolExecutor(workers, context, _start, (cores, *arguments))
    waiting = iter(numbers)
    pending: set[Future[ShardResult]] = set()
    try:
        while True:
            # Only a few shards are submitted ahead, so that memory does not grow with the job.
            for number in waiting:
                with _interrupts_held(), _main_hidden():
                    pending.add(pool.submit(_work, number))
                if len(pending) >= 2 * workers:
                    break
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise VaeError(
            f"{store}: a worker died, killed or out of memory; whole shards are kept: run the same command again to go "
            "on, with fewer workers or a smaller batch size if memory is short"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _prepared(vae: VAE, job: Job) -> Iterator[dict[str, Prepared]]:
    """Prepare the large graphs of a job, so that workers map their weights from one file instead of each its own."""
    components = {"reconstruct": ("encoder", "decoder"), "encode": ("encoder",)}.get(job.verb, ("decoder",))
    with contextlib.ExitStack() as stack:
        found: dict[str, Prepared | None] = {}
        # Without a place for temporary files each worker loads its own.
        with contextlib.suppress(OSError):
            make = tempfile.TemporaryDirectory(prefix="vae-runtime-", ignore_cleanup_errors=True)
            folder = stack.enter_context(make)
            for name in components if vae.device == "cpu" else ():
                found[name] = prepare_graph(vae.bundle, name, vae.variants[name], folder)
        yield {name: each for name, each in found.items() if each is not None}


def _cores(workers: int) -> list[int | None]:
    """Return the core of each worker; None where it may take any.

    A worker has two threads, of which the one that writes is mostly idle. Where there is a worker for every core, the
    system would move them between the cores; where there are fewer, a worker's second thread takes another core.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) == workers == usable_cores():
            return list(cores)
    return [None] * workers


# How many seconds a worker that was told to end may take to remove its temporary file.
_PATIENCE = 5.0
# The state of a worker process: its arguments, the loaded model, and whether a shard is under way.
_arguments: tuple[str, str, str, Store, Job, Mapping[str, Prepared]] | None = None
_vae: VAE | None = None
_at_work = False


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which a terminal sends to all: the parent tells them when to stop."""
    import signal

    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Start processes that do not run the caller's script again, which would call `generate` again.

    Every process that multiprocessing spawns runs the part of the script outside `if __name__ == "__main__":`, as long
    as it finds the script. Workers need this package alone.
    """
    main = sys.modules["__main__"]
    before: dict[str, Any] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        vars(main).pop("__file__", None)
        main.__spec__ = None
        yield
    finally:
        vars(main).update(before)


def _start(
    cores: Any, bundle: str, digest: str, device: str, store: Store, job: Job, prepared: Mapping[str, Prepared]
) -> None:  # fmt: skip
    """Prepare a worker process."""
    import multiprocessing
    import signal

    global _arguments
    # For platforms on which signals cannot be blocked while a process starts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # Workers of a killed parent would wait forever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    core = cores.get()
    if core is not None:
        # Another program may have taken the core from this process in the meantime.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
    # The model is loaded with the first shard: an error here would not reach the parent.
    _arguments = bundle, digest, device, store, job, prepared


def _end(*_: object) -> None:
    """End the process; a shard under way is dropped, and its temporary file removed."""
    import signal

    if _at_work:
        # The pool of a parent that ends sends the signal again, which must not cut the removal short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Raised in a callback of a library, the exception may get lost, and the parent would wait forever.
        end = threading.Timer(_PATIENCE, os._exit, (1,))
        end.daemon = True
        end.start()
        raise KeyboardInterrupt
    os._exit(1)


def _work(number: int) -> ShardResult:
    global _vae, _at_work
    assert _arguments is not None
    bundle, digest, device, store, job, prepared = _arguments
    try:
        _at_work = True
        if _vae is None and prepared:
            _vae = load_prepared(bundle, digest, job.variant, prepared)
        _vae = _vae or load(bundle, device=device, variant=job.variant, digest=digest)
        return make_shard(_vae, store, job, number)
    except KeyboardInterrupt:
        os._exit(1)
    finally:
        _at_work = False
