"""Generation on a Ray cluster: the same bytes as here, whatever dies."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vae_runtime.errors import InputError, VaeError
from vae_runtime.generation import machine
from vae_runtime.generation import ray as executor
from vae_runtime.generation.run import generate

ray = pytest.importorskip("ray", reason="the executor of clusters needs Ray")
from ray.cluster_utils import Cluster  # noqa: E402

# Ray itself opens files and leaves them open until the process ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

# Twelve shards, the last cut short.
JOB = {"n": 3000, "seed": 7, "dtype": "uint8", "batch_size": 64, "shard_size": 256}
WORDS = ["-n", "3000", "--seed", "7", "--dtype", "uint8", "--batch-size", "64", "--shard-size", "256"]
NODE = {"num_cpus": 1, "object_store_memory": 10**8}


def content(folder):
    """Every shard and its bytes."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name.startswith("shard-")}


@pytest.fixture(scope="module")
def mnist(root):
    return root / "models" / "mnist"


@pytest.fixture(scope="module")
def undisturbed(mnist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "samples"
    generate(mnist, folder, **JOB, workers=1)
    return folder


def begun(start):
    """Start a node; Ray gives it 30 seconds, which do not suffice on a busy machine."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with one CPU each, simulated on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = begun(lambda: Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False}))
        begun(lambda: found.add_node(**NODE))
        yield found
        found.shutdown()


@pytest.fixture
def on_cluster(nodes, mnist, tmp_path):
    """Generate on the cluster."""

    def run(**change):
        arguments = {"executor": "ray", "address": nodes.address, **JOB, **change}
        return generate(arguments.pop("bundle", mnist), arguments.pop("out", tmp_path / "s"), **arguments)

    yield run
    assert not ray.is_initialized()
    if (tmp_path / "s").exists():
        assert not hidden(tmp_path / "s")


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(each) for each in found.split()]


def workers_of(node):
    """The actors that a node of the cluster runs."""
    (raylet,) = node.all_processes["raylet"]
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(raylet.process.pid)}
    return [pid for pid, line in words.items() if line.startswith(b"ray::_Worker")]


def kill_workers(nodes, count=0):
    """Kill every actor once so many have begun; gives how many."""
    limit = time.monotonic() + 30
    while len(victims := [pid for node in nodes.list_all_nodes() for pid in workers_of(node)]) < count:
        assert time.monotonic() < limit
        time.sleep(0.05)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return len(victims)


class Once:
    """For `progress`: do something after the first shard."""

    def __init__(self, act):
        self.act = act
        self.calls = []

    def __call__(self, done, n):
        self.calls.append((done, n))
        if len(self.calls) == 1:
            self.result = self.act()


@pytest.mark.long
def test_the_same_bytes_and_calls_of_progress_and_a_word_on_another_processor(
    on_cluster, tmp_path, undisturbed, monkeypatch
):
    here = {**machine._software_and_processor(), "processor": "abacus"}
    monkeypatch.setattr(machine, "_software_and_processor", lambda: here)
    calls, warned = [], []
    samples = on_cluster(progress=lambda *call: calls.append(call), warn=warned.append)
    assert len(samples) == 3000
    assert content(tmp_path / "s") == content(undisturbed)
    assert len(calls) == 12
    assert calls[-1] == (3000, 3000)
    assert len(warned) == 1
    assert "abacus here" in warned[0]


@pytest.mark.long
def test_a_part_of_another_format_made_on_a_cluster_and_the_rest_here(on_cluster, mnist, tmp_path):
    pytest.importorskip("safetensors", reason="the format safetensors needs its library")
    warned, words = [], {**JOB, "format": "safetensors", "workers": 1, "n": 1000}
    assert on_cluster(**words, part=(2, 2), warn=warned.append) is None
    assert warned == []
    generate(mnist, tmp_path / "s", **words, part=(1, 2))
    generate(mnist, tmp_path / "here", **words)
    assert len(content(tmp_path / "s")) == 8
    assert content(tmp_path / "s") == content(tmp_path / "here")


@pytest.mark.long
def test_actors_that_are_killed_lose_nothing(on_cluster, nodes, tmp_path, undisturbed):
    # The first shard may be there before the second worker.
    killed = Once(lambda: kill_workers(nodes, 2))
    on_cluster(progress=killed)
    assert killed.result == 2
    assert content(tmp_path / "s") == content(undisturbed)
    assert [done for done, _ in killed.calls] == sorted({done for done, _ in killed.calls})
    assert killed.calls[-1] == (3000, 3000)


@pytest.mark.long
def test_a_node_that_is_killed_loses_nothing(on_cluster, nodes, tmp_path, undisturbed):
    node = nodes.list_all_nodes()[1]
    killed = Once(lambda: nodes.remove_node(node, allow_graceful=False))
    try:
        on_cluster(progress=killed)
    finally:
        nodes.add_node(**NODE)
    assert content(tmp_path / "s") == content(undisturbed)
    assert killed.calls[-1] == (3000, 3000)


@pytest.mark.long
def test_a_shard_that_kills_its_workers_ends_the_call(on_cluster, nodes, mnist, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(executor, "_MAX_DEATHS", 1)
    with pytest.raises(VaeError, match=r"shard-\d+\.npy: 1 workers died while making it"):
        on_cluster(progress=lambda *_: kill_workers(nodes))
    generate(mnist, tmp_path / "s", **JOB, workers=1)
    assert not hidden(tmp_path / "s")
    assert content(tmp_path / "s") == content(undisturbed)


@pytest.mark.long
def test_a_bundle_that_nodes_do_not_have_travels(on_cluster, mnist, tmp_path, undisturbed, monkeypatch):
    bundle = Path(shutil.copytree(mnist, tmp_path / "bundle"))
    packed = executor._packed

    def pack_and_remove(*arguments):
        content = packed(*arguments)
        shutil.rmtree(bundle)
        return content

    monkeypatch.setattr(executor, "_packed", pack_and_remove)
    before = set(Path(tempfile.gettempdir()).glob("vae-runtime-bundle-*"))
    on_cluster(bundle=bundle)
    assert content(tmp_path / "s") == content(undisturbed)
    assert set(Path(tempfile.gettempdir()).glob("vae-runtime-bundle-*")) == before


@pytest.mark.long
def test_other_versions_on_a_node_are_refused(on_cluster, tmp_path, monkeypatch):
    versions = {**executor._versions(), "numpy": "1.0"}
    monkeypatch.setattr(executor, "_versions", lambda: versions)
    with pytest.raises(VaeError, match=r"^node \S+: numpy [\d.]+ there, 1\.0 here; install the same on every node$"):
        on_cluster()
    assert not (tmp_path / "s").exists()


@pytest.mark.long
def test_a_folder_that_nodes_do_not_see_is_refused(on_cluster, tmp_path, monkeypatch):
    words = r": node \S+ does not see this folder's files; give a folder that all nodes share"
    marker = executor.marker
    monkeypatch.setattr(executor, "marker", lambda store: contextlib.nullcontext(".nowhere"))
    with pytest.raises(VaeError, match=f"^{tmp_path}/s{words}"):
        on_cluster()
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(executor, "marker", marker)
    pytest.importorskip("fsspec", reason="the store memory:// needs fsspec")
    with pytest.raises(VaeError, match=f"^memory://{tmp_path.name}{words}"):
        on_cluster(out=f"memory://{tmp_path.name}")


@pytest.mark.long
def test_a_shard_that_cannot_be_written_is_told_once(on_cluster, tmp_path):
    (tmp_path / "s" / "shard-00000003.npy" / "in-the-way").mkdir(parents=True)
    (tmp_path / "s" / "job.json").write_text("{}")
    with pytest.raises(InputError, match="another job is in this folder"):
        on_cluster()
    (tmp_path / "s" / "job.json").unlink()
    shutil.move(tmp_path / "s" / "shard-00000003.npy", tmp_path / "aside")
    with pytest.raises(VaeError) as told:
        on_cluster(progress=Once(lambda: shutil.move(tmp_path / "aside", tmp_path / "s" / "shard-00000003.npy")))
    assert str(told.value).startswith(f"{tmp_path}/s/shard-00000003.npy: ")
    assert "ray" not in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.long
def test_no_room_is_told_and_then_used(mnist, nodes, tmp_path, undisturbed, monkeypatch):
    """In a program that is connected to the cluster itself, and stays so."""

    class Busy:
        def ready(self):
            return True

    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        busy = [ray.remote(Busy).options(num_cpus=1).remote() for _ in range(2)]
        assert all(ray.get([actor.ready.remote() for actor in busy]))
        monkeypatch.setattr(executor, "_START_SECONDS", 1)
        # Ray may still count a node that another test has ended.
        words = "no worker could start within 1 seconds: each takes one CPU, .* of [23] CPU, 0 GPU, free are 0 CPU"
        with pytest.raises(VaeError, match=words):
            generate(mnist, tmp_path / "s", **JOB, executor="ray")
        monkeypatch.undo()
        ray.kill(busy.pop())
        with pytest.raises(InputError, match="this process is connected to a Ray cluster already"):
            generate(mnist, tmp_path / "s", **JOB, executor="ray", address=nodes.address)
        # The cluster has space for one of two actors.
        generate(mnist, tmp_path / "s", **JOB, executor="ray", address="auto")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert content(tmp_path / "s") == content(undisturbed)


def start(bundle, folder, *words):
    """The command in a session of its own."""
    command = [str(Path(sys.executable).with_name("vae-runtime")), "generate", str(bundle), *WORDS, "--executor", "ray"]
    return subprocess.Popen(
        [*command, "--out", str(folder), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True,
    )  # fmt: skip


def wait_for_shards(process, folder, count=1):
    while len(list(folder.glob("shard-*.json"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def settled(folder):
    """The number of shards once the actors of a killed command, which may be finishing one each, have ended."""
    counts = [0]
    while len(counts) < 4 or len(set(counts[-4:])) > 1:
        counts.append(len(list(folder.glob("shard-*.json"))))
        time.sleep(0.5)
    return counts[-1]


@pytest.mark.long
def test_the_command_goes_on_after_it_was_killed(mnist, nodes, tmp_path, undisturbed):
    folder = tmp_path / "s"
    with start(mnist, folder, "--address", nodes.address) as process:
        wait_for_shards(process, folder)
        process.kill()
    there = settled(folder)
    assert 0 < there < 12
    with start(mnist, folder, "--address", nodes.address) as process:
        wait_for_shards(process, folder, there + 1)
        process.terminate()
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 143
    assert stdout == ""
    assert stderr.endswith("samples are complete; run the same command again to go on\ninterrupted\n")
    assert not hidden(folder)
    there = len(list(folder.glob("shard-*.json")))
    assert there < 12
    with start(mnist, folder, "--address", nodes.address, "--json") as process:
        wait_for_shards(process, folder, there + 1)
        kill_workers(nodes)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert stderr == ""
    assert [json.loads(line)["samples"] for line in stdout.splitlines()] == [3000]
    assert content(folder) == content(undisturbed)
    assert not hidden(folder)


def members(session):
    """The command lines of the processes of a session."""
    found = subprocess.run(["ps", "-o", "args=", "--sid", str(session)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "<defunct>" not in line]


@pytest.mark.long
def test_a_local_cluster_ends_with_the_command(mnist, tmp_path, undisturbed):
    folder = tmp_path / "s"
    with start(mnist, folder, "-n", "10000000", "--workers", "2") as process:
        wait_for_shards(process, folder)
        assert len(members(process.pid)) > 3
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "samples are complete; run the same command again to go on\ninterrupted\n" in stderr
    assert len(stderr.splitlines()) == 2
    assert not hidden(folder)
    assert not members(process.pid)
    first = undisturbed / "shard-00000000.npy"
    assert (folder / first.name).read_bytes() == first.read_bytes()


@pytest.mark.slow
def test_a_local_cluster_ends_when_the_command_is_killed(mnist, tmp_path, undisturbed):
    folder = tmp_path / "s"
    with start(mnist, folder, "--workers", "2") as process:
        wait_for_shards(process, folder)
        process.kill()
    # Ray's agents take a minute to see that they are alone; the others end at once.
    for _ in range(300):
        left = [
            words for words in members(process.pid) if re.search("^ray::_Worker|/raylet/raylet |/gcs_server ", words)
        ]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    generate(mnist, folder, **JOB, workers=1)
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:1",
            "error: --address: 127.0.0.1:1 does not answer: .*refused; give the address of a running cluster",
        ),
        ("ray://127.0.0.1:1", "error: --address: ray://127.0.0.1:1 does not answer"),
        ("nowhere", "error: --address: expected auto, HOST:PORT or ray://HOST:PORT, got 'nowhere'"),
        ("https://127.0.0.1:1", "error: --address: expected auto, HOST:PORT or ray://HOST:PORT"),
        ("127.0.0.1:99999", "error: --address: expected auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster(mnist, tmp_path, capfd, address, words):
    from vae_runtime.cli.main import main

    arguments = ["generate", str(mnist), *WORDS, "--executor", "ray", "--address", address, "--out", f"{tmp_path}/s"]
    if "does not answer" in words:
        assert main(arguments) == 1
    else:
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
    told = capfd.readouterr()
    assert told.out == ""
    line = told.err.splitlines()[-1]
    assert re.search(words, line)
    assert os.listdir(tmp_path) == []


def test_sigterm_while_ray_starts_is_no_failure_of_the_address(mnist, tmp_path, monkeypatch):
    def init(*_, **__):
        # Ray's own handler, in place while it starts, does this.
        sys.exit(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            generate(mnist, tmp_path / "s", **JOB, executor="ray")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_arguments_and_a_missing_library_are_told(mnist, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="executor: expected local or ray, got 'dask'"):
        generate(mnist, tmp_path / "s", **JOB, executor="dask")
    with pytest.raises(InputError, match="address: expected one with the executor ray alone"):
        generate(mnist, tmp_path / "s", **JOB, address="auto")
    assert not (tmp_path / "s").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VaeError, match=r"Ray is not installed .*; pip install 'vae-runtime\[ray\]'"):
        generate(mnist, tmp_path / "s", **JOB, executor="ray")


@pytest.mark.slow
def test_actors_and_nodes_killed_at_thirty_random_moments_lose_nothing(on_cluster, nodes, mnist, tmp_path):
    many = {"n": 60_000}
    generate(mnist, tmp_path / "undisturbed", **{**JOB, **many}, workers=2)
    chance, kills = random.Random(1), 0

    def progress(done, n):
        nonlocal kills
        if kills < 30 and chance.random() < 0.2:
            kills += 1
            if kills % 10 == 0:
                nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)
                nodes.add_node(**NODE)
            else:
                victims = [pid for node in nodes.list_all_nodes() for pid in workers_of(node)]
                if victims:
                    os.kill(chance.choice(victims), signal.SIGKILL)

    on_cluster(**many, progress=progress)
    assert kills == 30
    assert content(tmp_path / "s") == content(tmp_path / "undisturbed")
