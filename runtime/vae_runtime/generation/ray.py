"""The cluster executor: make shards by actors of a Ray cluster. docs/offline-generation.md describes it."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import pickle
import platform
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..bundle import MANIFEST, Bundle
from ..devices import onnxruntime_version
from ..errors import BundleError, InputError, VaeError, error_line
from ..places import SUMS
from ..vae import VAE, load
from .folder import marker, remove_unfinished, shard_name
from .job import Job
from .local import usable_cores
from .machine import describe_machine
from .request import cluster_host
from .shard import ShardResult, make_shard
from .store import Store

# How long an address may take to answer, and an actor to start where none is at work.
_ANSWER_SECONDS, _START_SECONDS = 10, 120
# A shard whose actors die as often is what kills them.
_MAX_DEATHS = 5
# Bytes of a local cluster's object store, apart from the bundle.
_OBJECTS = 2**27


def make_shards(
    vae: VAE, store: Store, job: Job, numbers: Sequence[int], workers: int | None, address: str | None,
    warn: Callable[[str], object] | None,
) -> Generator[ShardResult, None, None]:  # fmt: skip
    """Make shards on a Ray cluster.

    Args:
        vae: the model; its bundle is sent to the nodes.
        store: the place of the shards, which all nodes see.
        job: the job of the shards.
        numbers: the numbers of the shards.
        workers: the number of actors, of one CPU or one GPU each; None takes all of the cluster.
        address: "auto", "HOST:PORT" or "ray://HOST:PORT"; None takes the cluster that this process is connected to,
            or RAY_ADDRESS, or starts a cluster of this machine for the time of the call.
        warn: called with the text of each warning.

    Yields:
        The result of each shard, as it is done.

    Raises:
        InputError: the address has another form.
        VaeError: Ray or the cluster is missing, a node differs or does not see the store, or a shard cannot be written.
    """
    content = _packed(vae, store, job)
    with _connected(address, workers, len(content)) as ray, marker(store) as marker_name:
        resources = ray.cluster_resources()
        on_gpu = vae.device.startswith("cuda") and bool(resources.get("GPU"))
        count = workers or int(resources.get("GPU" if on_gpu else "CPU", 1)) or 1
        # Ray starts an actor again forever, wherever it finds free resources.
        Actor = ray.remote(_Worker).options(max_restarts=-1, num_cpus=1, num_gpus=1 if on_gpu else None)
        # These go with each call, not to the constructor: Ray may have lost them when it starts an actor again. In a
        # list the content is only fetched when an actor asks for it.
        arguments = _versions(), marker_name, on_gpu, [ray.put(content)]
        actors = [Actor.remote() for _ in range(min(count, len(numbers)))]
        yield from _Dispatch(ray, actors, arguments, store, job, warn).results(numbers)


class _Dispatch:
    """Gives each actor that is idle the next shard, until all are done.

    An actor that dies is started again, and its shard goes to another one.
    """

    def __init__(
        self, ray: Any, actors: list[Any], arguments: tuple[Any, ...], store: Store, job: Job,
        warn: Callable[[str], object] | None,
    ) -> None:  # fmt: skip
        self._ray, self._actors, self._arguments = ray, actors, arguments
        self._store, self._job, self._warn = store, job, warn
        self._processors = {job.machine["processor"]}
        self._deaths = collections.Counter[int]()
        # The shards of actors that died.
        self._lost: list[int] = []
        self._idle: list[Any] = []
        # For each call under way, the actor and the number of its shard; None while the actor starts.
        self._pending: dict[Any, tuple[Any, int | None]] = {}

    def results(self, numbers: Sequence[int]) -> Generator[ShardResult, None, None]:
        """Make shards; yield the result of each."""
        waiting = iter(numbers)
        try:
            for actor in self._actors:
                self._start(actor)
            while True:
                while self._idle and (number := self._lost.pop() if self._lost else next(waiting, None)) is not None:
                    actor = self._idle.pop()
                    self._pending[actor.make.remote(number, *self._arguments)] = actor, number
                making = any(number is not None for _, number in self._pending.values())
                if self._idle and not making:
                    return
                result = self._next(None if making else _START_SECONDS)
                if result is not None:
                    yield result
        finally:
            self._end()

    def _start(self, actor: Any) -> None:
        """Ask an actor to get ready; Ray starts it again as often as necessary."""
        ready = actor.ready.options(max_task_retries=-1).remote(*self._arguments)
        self._pending[ready] = actor, None

    def _next(self, timeout: int | None) -> ShardResult | None:
        """Take the next answer of an actor; return the result, if it is that of a shard."""
        done, _ = self._ray.wait(list(self._pending), timeout=timeout)
        if not done:
            raise VaeError(
                f"no worker could start within {timeout} seconds: each takes one CPU, and one GPU on cuda; of "
                f"{_listed(self._ray.cluster_resources())}, free are {_listed(self._ray.available_resources())}; wait "
                "until other jobs end, add nodes, or read the cluster's logs; then run the same command again"
            )
        actor, number = self._pending.pop(done[0])
        try:
            answer = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            raise _without_ray(error.cause, self._job, number) from None
        except self._ray.exceptions.RayError as error:
            self._restart(actor, number, error)
            return None
        self._idle.append(actor)
        if number is not None:
            return ShardResult(*answer)
        self._compare_processor(**answer)
        return None

    def _restart(self, actor: Any, number: int | None, error: Exception) -> None:
        """Note the death of an actor, and give its shard back."""
        if number is None:
            raise VaeError(
                f"a worker could not be started: {_reason(error)}; every node needs vae-runtime[cpu,ray] "
                f"{__version__} and the same Python and Ray"
            ) from None
        self._deaths[number] += 1
        if self._deaths[number] == _MAX_DEATHS:
            raise VaeError(
                f"{self._store}/{shard_name(self._job, number)}: {_MAX_DEATHS} workers died while making it, killed "
                "or out of "
                "memory; run the same command again to go on, or into another folder with a smaller batch size"
            ) from None
        # Ray would keep the shard for this actor, which may wait for resources that never come.
        self._lost.append(number)
        self._start(actor)

    def _compare_processor(self, node: str, processor: str) -> None:
        """Warn of the first actor on another kind of processor."""
        if processor not in self._processors and self._warn is not None:
            self._processors.add(processor)
            self._warn(
                f"node {node}: its processor is {processor}, {self._job.machine['processor']} here: latents are the "
                "same bits on every machine, decoded values only on the same kind of processor"
            )

    def _end(self) -> None:
        """Let the shards under way end, and end the actors."""
        # An actor that is killed while it writes a shard leaves a temporary file.
        under_way = [answer for answer, (_, number) in self._pending.items() if number is not None]
        ends = [*under_way, *(actor.end.remote() for actor in self._idle)]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=_START_SECONDS)
        for actor in self._actors:
            self._ray.kill(actor)
        for number in self._deaths:
            remove_unfinished(self._store, self._job, number)


class _Worker:
    """An actor that makes shards. After a restart by Ray it loads the model again."""

    _begun: tuple[VAE, Store, Job] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def _begin(self, versions: dict[str, str], marker: str, gpu: bool, content: list[Any]) -> tuple[VAE, Store, Job]:
        node, versions_here = platform.node(), _versions()
        differences = [f"{name} {versions_here.get(name)} there, {value} here" for name, value in versions.items()
                       if versions_here.get(name) != value]  # fmt: skip
        if differences:
            raise VaeError(f"node {node}: {'; '.join(differences)}; install the same on every node")
        # Only after the versions agree: a pickle of another version may mean something else.
        import ray

        store, job, path, device, files = pickle.loads(ray.get(content[0]))
        if store.read(marker) is None:
            raise VaeError(
                f"{store}: node {node} does not see this folder's files; give a folder that all nodes share at the "
                "same "
                "path, or a remote store"
            )
        if gpu:
            # Ray shows this process its own GPU alone.
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
        """Load the model, and return the node and its processor."""
        self._begun = self._begun or self._begin(*arguments)
        return {"node": platform.node(), "processor": describe_machine(self._begun[0].device)["processor"]}

    def make(self, number: int, *arguments: Any) -> ShardResult:
        """Make a shard."""
        self._begun = self._begun or self._begin(*arguments)
        return make_shard(*self._begun, number)

    def end(self) -> None:
        """Remove the files of this actor from the node."""
        if self._folder is not None:
            self._folder.cleanup()


def _versions() -> dict[str, str]:
    """Return the versions of the packages that the bytes of a shard depend on."""
    return {"vae-runtime": __version__, "onnxruntime": onnxruntime_version(), "numpy": np.__version__}


def _packed(vae: VAE, store: Store, job: Job) -> bytes:
    """Return what an actor needs, pickled, with the files of the bundle that ONNX Runtime may run."""
    bundle: Bundle = vae.bundle
    paths = {SUMS, MANIFEST, *(latent.prior.file for latent in bundle.manifest.latents)}
    for variant in bundle.manifest.variants:
        if variant.executor == "ort":
            paths |= set(variant.paths)
    files = {path: bundle.files.read(SUMS) if path == SUMS else bundle.read(path) for path in paths if path is not None}
    return pickle.dumps((store.absolute(), job, str(bundle.path.absolute()), vae.device, files))


@contextlib.contextmanager
def _connected(address: str | None, workers: int | None, size: int) -> Iterator[Any]:
    """Connect to a cluster for the time of the call; yield the module ray."""
    try:
        import ray
    except ImportError as error:
        raise VaeError(f"Ray is not installed ({error}); pip install 'vae-runtime[ray]'") from None
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise InputError(
                f"address: expected none, as this process is connected to a Ray cluster already, got {address!r}; "
                "leave it out"
            )
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
        with _environment_kept():
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **options)
    # Without an answer Ray ends the process.
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            # Ray's own handler of the signal got it.
            signal.raise_signal(signal.SIGTERM)
        raise VaeError(
            f"address: no Ray cluster could be {'started' if where == 'local' else 'reached'} at {where}: "
            f"{_reason(error)}; give the address of a running cluster with the same Python and Ray, or none for a "
            "local one"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Try to connect: Ray itself takes minutes to notice that nothing answers."""
    host = cluster_host(address)
    if host is None:
        return
    try:
        socket.create_connection(host, _ANSWER_SECONDS).close()
    except OSError as error:
        raise VaeError(
            f"address: {address} does not answer: {error}; give the address of a running cluster (`ray start --head` "
            "prints it), or none for a local one"
        ) from None


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Keep Ray from sending usage statistics, and from replacing the handler of SIGTERM."""
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


def _without_ray(cause: BaseException, job: Job, number: int | None) -> BaseException:
    """Return the error of an actor without Ray's traceback."""
    if isinstance(cause, VaeError):
        return cause
    if isinstance(cause, (OSError, MemoryError)):
        place = "a worker" if number is None else shard_name(job, number)
        return VaeError(f"{place}: {type(cause).__name__}: {_reason(cause)}; run the same command again to go on")
    return cause


def _reason(error: BaseException) -> str:
    return error_line(error).rstrip(".")


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
