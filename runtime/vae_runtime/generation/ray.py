"""The cluster executor: shards made by actors of a Ray cluster; docs/offline-generation.md is the description."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import pickle
import platform
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..bundle import MANIFEST, SUMS, Bundle
from ..devices import onnxruntime_version
from ..errors import BundleError, InputError, VaeError
from ..vae import VAE, load
from .job import Job, machine
from .local import usable_cores
from .samples import JOB
from .shard import Made, generate_shard
from .store import Store, open_store

__all__ = ["run"]

# Seconds: until an address answers, and until an actor starts where none is at work.
_ANSWER, _START = 10, 120
# A shard whose actor died as often is what kills them.
_MOST_DEATHS = 5
# Bytes of a local cluster's object store, beside the bundle.
_OBJECTS = 2**27


def run(
    vae: VAE, store: Store, job: Job, numbers: Sequence[int], workers: int | None, address: str | None,
    warn: Callable[[str], object] | None,
) -> Generator[Made, None, None]:  # fmt: skip
    """Make shards on a Ray cluster.

    Args:
        vae: what makes them; its bundle travels to the nodes.
        store: where they are kept, seen by all nodes.
        job: which they are of.
        numbers: of the shards.
        workers: actors, each of one CPU or one GPU; None takes as many as the cluster has of these.
        address: of a cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"; None takes the one this process is connected
            to, that of RAY_ADDRESS, or starts one here for the time of the call.
        warn: called with what is not wrong, but should be known.

    Yields:
        Of each shard, as it is done, what `generate_shard` gives.

    Raises:
        InputError: the address is of another form.
        VaeError: Ray or the cluster is missing, a node differs or does not see the store, or a shard cannot be written.
    """
    content = _packed(vae, store, job)
    with _connected(address, workers, len(content)) as ray, _marker(store) as marker:
        resources = ray.cluster_resources()
        each = {"num_cpus": 1}
        if vae.device.startswith("cuda") and resources.get("GPU"):
            each = {"num_cpus": 1, "num_gpus": 1}
        count = workers or int(resources.get("GPU" if "num_gpus" in each else "CPU", 1)) or 1
        # Ray starts an actor again for ever, wherever there is room.
        Actor = ray.remote(_Worker).options(max_restarts=-1, **each)
        # With each call, not to the constructor: Ray does not promise to have them still when it starts an actor again.
        # In a list the content is not fetched for each call, but where it is needed.
        arguments = _versions(), marker, "num_gpus" in each, [ray.put(content)]
        actors = [Actor.remote() for _ in range(min(count, len(numbers)))]
        yield from _shared_out(ray, actors, arguments, store, job, numbers, warn)


def _shared_out(
    ray: Any, actors: list[Any], arguments: tuple[Any, ...], store: Store, job: Job, numbers: Sequence[int],
    warn: Callable[[str], object] | None,
) -> Generator[Made, None, None]:  # fmt: skip
    """Give each actor that is free the next shard, until all are done."""
    waiting, lost = iter(numbers), list[int]()
    deaths, kinds = collections.Counter[int](), {job.machine["processor"]}
    idle: list[Any] = []
    # What an actor is about to answer: whether it is ready, or the rows of a shard.
    at_work: dict[Any, tuple[Any, int | None]] = {_ready(actor, arguments): (actor, None) for actor in actors}
    try:
        while True:
            while idle and (number := lost.pop() if lost else next(waiting, None)) is not None:
                actor = idle.pop()
                at_work[actor.make.remote(number, *arguments)] = actor, number
            making = any(number is not None for _, number in at_work.values())
            if idle and not making:
                return
            done, _ = ray.wait(list(at_work), timeout=None if making else _START)
            if not done:
                raise VaeError(
                    f"no worker could start within {_START} seconds: each takes one CPU, and one GPU on cuda; of "
                    f"{_listed(ray.cluster_resources())} are free: {_listed(ray.available_resources())}; wait until "
                    "others are done, add nodes, or see the cluster's logs; the same command goes on"
                )
            actor, number = at_work.pop(done[0])
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise _as_told(error.cause, job, number) from None
            except ray.exceptions.RayError as error:
                if number is None:
                    raise VaeError(
                        f"a worker could not be started: {_line(error)}; every node needs vae-runtime[cpu,ray] "
                        f"{__version__} and the same Python and Ray"
                    ) from None
                deaths[number] += 1
                if deaths[number] == _MOST_DEATHS:
                    raise VaeError(
                        f"{store}/{job.name(number)}: {_MOST_DEATHS} workers died over it, killed or out of memory; "
                        "run the same command again to go on, or into another folder with a smaller batch size"
                    ) from None
                # Ray would keep the shard for this actor, which may wait for room that never comes.
                lost.append(number)
                at_work[_ready(actor, arguments)] = actor, None
                continue
            idle.append(actor)
            if number is not None:
                yield answer
            elif answer["processor"] not in kinds and warn is not None:
                kinds.add(answer["processor"])
                warn(
                    f"node {answer['node']}: its processor is {answer['processor']}, {job.machine['processor']} here: "
                    "latents are the same bits anywhere, decoded values only on the same kind of processor"
                )
    finally:
        # A worker that is killed in the middle of a shard leaves a temporary file.
        under_way = [future for future, (_, number) in at_work.items() if number is not None]
        ends = [*under_way, *(actor.end.remote() for actor in idle)]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=_START)
        for actor in actors:
            ray.kill(actor)
        for number in deaths:
            _remove_unfinished(store, job.name(number))


def _ready(actor: Any, arguments: tuple[Any, ...]) -> Any:
    """The answer of an actor once it has started, and started again as often as it takes."""
    return actor.ready.options(max_task_retries=-1).remote(*arguments)


def _remove_unfinished(store: Store, name: str) -> None:
    """Remove what was being written of a shard by an actor that died."""
    place = store.path(name)
    if place is not None:
        for left in place.parent.glob(f".{place.stem}.*.tmp"):
            left.unlink(missing_ok=True)


class _Worker:
    """An actor: a session, and the shards it makes. One that Ray started again has to begin anew."""

    _begun: tuple[VAE, Store, Job] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def _begin(self, versions: dict[str, str], marker: str, gpu: bool, content: list[Any]) -> tuple[VAE, Store, Job]:
        node, here = platform.node(), _versions()
        differences = [f"{name} {here.get(name)} there, {value} here" for name, value in versions.items()
                       if here.get(name) != value]  # fmt: skip
        if differences:
            raise VaeError(f"node {node}: {'; '.join(differences)}; install the same on every node")
        # Only now: another version's pickle may mean something else.
        import ray

        store, job, path, device, files = pickle.loads(ray.get(content[0]))
        if store.read(marker) is None:
            raise VaeError(
                f"{store}: node {node} does not see what was just written there; give a folder that all nodes share at "
                "the same path, or a remote store"
            )
        if gpu:
            # Of the GPUs of the node Ray shows this process its own.
            device = "cuda"
        try:
            vae = load(path, device=device, variant=job.variant, digest=job.digest)
        except BundleError:
            self._folder = tempfile.TemporaryDirectory(prefix="vae-runtime-bundle-")
            for name, data in files.items():
                place = Path(self._folder.name, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            vae = load(self._folder.name, device=device, variant=job.variant, digest=job.digest)
        return vae, store, job

    def ready(self, *arguments: Any) -> dict[str, str]:
        """What this actor runs on, once it can make shards."""
        self._begun = self._begun or self._begin(*arguments)
        return {"node": platform.node(), "processor": machine(self._begun[0].device)["processor"]}

    def make(self, number: int, *arguments: Any) -> Made:
        """Make a shard."""
        self._begun = self._begun or self._begin(*arguments)
        return generate_shard(*self._begun, number)

    def end(self) -> None:
        """Leave nothing on the node."""
        if self._folder is not None:
            self._folder.cleanup()


def _versions() -> dict[str, str]:
    """What the bytes of a shard depend on, of what is installed."""
    return {"vae-runtime": __version__, "onnxruntime": onnxruntime_version(), "numpy": np.__version__}


def _packed(vae: VAE, store: Store, job: Job) -> bytes:
    """What an actor needs, the files of the bundle that may be run among it."""
    bundle: Bundle = vae.bundle
    paths = {SUMS, MANIFEST, *(latent.prior.file for latent in bundle.manifest.latents)}
    for variant in bundle.manifest.variants:
        if variant.executor == "ort":
            paths |= {variant.path, variant.data_path}
    files = {path: bundle.files.read(SUMS) if path == SUMS else bundle.read(path) for path in paths if path is not None}
    path = store.path(JOB)
    # An actor has another working directory.
    there = store if path is None else open_store(path.absolute().parent)
    return pickle.dumps((there, job, str(bundle.path.absolute()), vae.device, files))


@contextlib.contextmanager
def _marker(store: Store) -> Iterator[str]:
    """The name of a file of this call alone."""
    # As of a temporary file: where this call is killed, the next one removes it.
    name = f".{JOB}.{secrets.token_hex(8)}.tmp"
    store.write(name, name.encode())
    try:
        yield name
    finally:
        store.remove(name)


@contextlib.contextmanager
def _connected(address: str | None, workers: int | None, size: int) -> Iterator[Any]:
    """Ray, connected to a cluster for the time of the call."""
    try:
        import ray
    except ImportError as error:
        raise VaeError(f"Ray is not installed ({error}); pip install 'vae-runtime[ray]'") from None
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise InputError(f"address: this process is connected to a Ray cluster already; leave out {address!r}")
        yield ray
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if where == "local":
        options = {
            "num_cpus": workers or usable_cores(),
            "include_dashboard": False,
            "object_store_memory": _OBJECTS + 2 * size,
        }
    else:
        _require_answer(where)
    try:
        with _surroundings_kept():
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **options)
    # Ray ends the process, of all things, where it gets no answer.
    except (Exception, SystemExit) as error:
        raise VaeError(
            f"address: no Ray cluster could be {'started' if where == 'local' else 'reached'} at {where}: "
            f"{_line(error)}; give that of a cluster that runs, with the same Python and Ray, or none for a local one"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Try the port: Ray itself takes minutes to find that there is none."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"address: auto, HOST:PORT or ray://HOST:PORT is expected, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except OSError as error:
        raise VaeError(
            f"address: {address} does not answer: {error}; give that of a cluster that runs (`ray start --head` prints "
            "it), or none for a local one"
        ) from None


@contextlib.contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Have Ray start without statistics of its use, which it would send home, and without a SIGTERM of its own."""
    name = "RAY_USAGE_STATS_ENABLED"
    before, handler = os.environ.get(name), signal.getsignal(signal.SIGTERM)
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _as_told(cause: BaseException, job: Job, number: int | None) -> BaseException:
    """What went wrong in an actor, without Ray's account of it."""
    if isinstance(cause, VaeError):
        return cause
    if isinstance(cause, (OSError, MemoryError)):
        place = "a worker" if number is None else job.name(number)
        return VaeError(f"{place}: {type(cause).__name__}: {_line(cause)}; the same command goes on")
    return cause


def _line(error: BaseException) -> str:
    """What an error says, in a line that one can read."""
    return (" ".join(str(error).split()) or type(error).__name__)[:500].rstrip(".")


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
