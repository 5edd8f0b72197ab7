"""What the folders of tests share. PyTorch is imported inside the fixtures alone: tests/runtime runs without it."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vae_runtime.places import SUMS, format_sums

ROOT = Path(__file__).parents[1]
# Noise is Python's own, whatever is installed; the tests of the native core hold its bits against that.
os.environ["VAE_RUNTIME_NATIVE"] = "0"

# A shell starts what it puts in the background deaf to Ctrl-C, and so would the processes be that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tests share the cores with each other; a second thread for such small arrays costs more than it gives."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def python():
    """Run Python in a fresh process, warnings being errors."""

    def run(*arguments, cwd=ROOT, timeout=300, **options):
        command = [sys.executable, "-W", "error", *map(str, arguments)]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
        options = {"capture_output": True, "encoding": "utf-8", "check": False, **options}
        return subprocess.run(command, cwd=cwd, env=environment, timeout=timeout, **options)

    return run


@pytest.fixture
def call_main(capfd):
    """Call the `main` of a command in this process, and return what a shell would see of it, as `python` does.

    What only a process of its own shows stays with `python`: imports, signals, encodings, closed streams, limits.
    """

    def call(main, *arguments, cwd=ROOT):
        capfd.readouterr()
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []  # With pytest's there, the command would add none.
        try:
            with contextlib.chdir(cwd):
                status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        finally:
            root.handlers = handlers
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def corpus(python):
    """Run each of so many cases of a corpus in a process of its own, and return the result that it prints last."""

    def run(module, every, timeout):
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])}
        done = python("-m", module, every, env=environment, timeout=timeout)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def command():
    """Run the command `vae-export` in a fresh process, warnings being errors."""

    def run(*arguments, timeout=300, env=(), **options):
        command = [str(Path(sys.executable).with_name("vae-export")), *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", **dict(env)}
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False, timeout=timeout, env=environment, **options
        )

    return run


@pytest.fixture(scope="session")
def fresh_export(command, tiny_run, tmp_path_factory):
    """`vae-export export` of `tiny_run` in every format, in a process of its own; once for each name."""
    done = {}

    def export(name, hash_seed):
        if name not in done:
            bundle = tmp_path_factory.mktemp(name) / "bundle"
            arguments = ("export", tiny_run, "--out", bundle, "--formats", "onnx,torchscript,pt2")
            done[name] = command(*arguments, env={"PYTHONHASHSEED": str(hash_seed)})
            done[name].bundle = bundle
        return done[name]

    return export


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run on the real digits, finished after two epochs. To be read only."""
    from vae_export import DataConfig, ModelConfig, TrainConfig, train

    run = tmp_path_factory.mktemp("tiny") / "run"
    train(run, ModelConfig(latent=4, hidden=(32, 16)), TrainConfig(epochs=2, threads=1), DataConfig(), progress=False)
    return run


@pytest.fixture(scope="session")
def tiny_exported(tiny_run, tmp_path_factory):
    """`tiny_run`, exported in every format."""
    from vae_export import export
    from vae_export.graphs.graph import FORMATS

    return export(tiny_run, tmp_path_factory.mktemp("tiny") / "bundle", formats=tuple(FORMATS))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_exported):
    """The bundle of `tiny_run`, with every format. To be read only."""
    return tiny_exported.path


@pytest.fixture(scope="session")
def tiny_adapted(tiny_run):
    """The pure functions of `tiny_run`."""
    from vae_export.sources import run_source
    from vae_export.understand.state import unchanged
    from vae_export.understood import understand_source

    source = run_source(tiny_run, None, None)
    with unchanged(source.model):
        return understand_source(source)


@pytest.fixture(scope="session")
def tiny_graphs(tiny_exported):
    """The graphs of `tiny_bundle` by "component/variant"."""
    from vae_export.parity.bundle import read_graph
    from vae_runtime.bundle import open_bundle

    bundle = open_bundle(tiny_exported.path)
    graphs = [read_graph(bundle, variant) for variant in bundle.manifest.variants]
    return {f"{graph.component}/{graph.variant}": graph for graph in graphs}


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    """A copy of `tiny_bundle` to alter."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def resign():
    """Make the hashes of a bundle right again, as one who alters it on purpose would."""

    def make_right(folder):
        paths = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
        files = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]
        (folder / SUMS).write_bytes(format_sums(files))

    return make_right
