"""The report of a run as a page: what it shows, that it asks for nothing, and that an interruption leaves no trace."""

import base64
import dataclasses
import importlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from vae_export.cli import main
from vae_export.training import charts, checkpoint
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.batches import TensorBatch
from vae_export.training.data.dataset import load
from vae_export.training.display import Display, Shown, called, first_rows, is_pictured, labels_of
from vae_export.training.look import look_at, samples
from vae_export.training.loop import train
from vae_export.training.model import VAE
from vae_export.training.processes import started_by
from vae_export.training.report import Content, report

MODEL = ModelConfig(latent=4, hidden=(16,))
TRAINING = TrainConfig(epochs=3, batch_size=128, importance_samples=2, threads=1)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's elements, texts by the heading above them, and attributes; what is not well-formed is an error."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(content.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        # A self-closing element of an SVG comes through `handle_startendtag`.
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    def asks(self) -> list:
        """What a browser would fetch or run."""
        fetching = {"src", "href", "srcset", "action", "xlink:href", "data", "poster"}
        asked = [each for each in self.attributes if each[1] in fetching and not each[2].startswith("data:")]
        return asked + [tag for tag in self.tags if tag in ("script", "link", "iframe", "object")] + [
            each for each in self.attributes if each[1].startswith("on") or "url(" in (each[2] or "")
        ]  # fmt: skip

    def pictures(self):
        for tag, name, value in self.attributes:
            if (tag, name) == ("img", "src"):
                yield np.asarray(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))))


def untimed(content: bytes) -> str:
    """A report without what was timed."""
    return re.sub(r'(class="time">)[^<]*', r"\1", content.decode())


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits_npy):
    folder = tmp_path_factory.mktemp("report") / "run"
    train(folder, MODEL, TRAINING, DataConfig(str(digits_npy)), progress=False, command="make it")
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Page((run / "report.html").read_bytes())


def test_the_report_shows_the_run(run, page):
    text = "\n".join(page.texts)
    for heading in (
        "Learning curve",
        "Samples by epoch",
        "Reconstructions",
        "Latent space",
        "What made it",
        "Settings",
    ):
        assert page.texts.count(heading) == 1
    info = checkpoint.read_info(run)
    for words in (
        f"{info.result.bound:.2f}".replace("-", "−"), "of 4", "make it", info.provenance.digest, torch.__version__,
        "epoch 1", "epoch 2", f"best, epoch {info.result.best_epoch}", "finished, epoch 3 of at most 3",
    ):  # fmt: skip
        assert words in text
    assert "surrogate" in text
    # Two kept epochs, the best one, and reconstructions.
    pictures = list(page.pictures())
    assert len(pictures) == 4
    assert all(len(np.unique(picture)) > 16 for picture in pictures)
    assert pictures[0].shape == pictures[1].shape == pictures[2].shape
    assert (pictures[0] != pictures[1]).any()
    assert (run / "samples" / "000002.png").exists()


def test_the_report_asks_for_nothing(page):
    assert page.asks() == []


@pytest.mark.parametrize("piece", [
    '<img src="https://example.org/x.png">', "<script>1</script>", '<p onclick="1"></p>', '<link href="style.css">',
    '<p style="background: url(x.png)"></p>',
])  # fmt: skip
def test_a_page_that_asks_is_seen(piece):
    assert Page(piece.replace('.css">', '.css"></link>').encode()).asks() != []


def test_a_page_that_is_not_well_formed_is_seen():
    with pytest.raises(AssertionError):
        Page(b"<p><b></p></b>")


def test_names_are_text(tmp_path):
    name = "<img src=x onerror=alert(1)>&amp;"
    source = tmp_path / f"{name}.npy"
    np.save(source, np.random.default_rng(0).random((60, 4), np.float32))
    folder = tmp_path / "<i>run"
    train(folder, MODEL, dataclasses.replace(TRAINING, epochs=1), DataConfig(str(source)), progress=False,
          command=f"train --data '{source}'")  # fmt: skip
    page = Page((folder / "report.html").read_bytes())
    assert page.asks() == []
    assert "i" not in page.tags
    assert "<i>run" in page.texts
    assert f"train --data '{source}'" in page.texts
    assert name in page.texts  # the data's name, in a cell of its own
    # Observations that are no pictures have curves and tables alone.
    assert not page.texts.count("Reconstructions") + page.texts.count("Samples by epoch")
    assert list(page.pictures()) == []
    assert not (folder / "samples").exists()
    assert "Latent space" in page.texts


def test_the_command_line_is_in_the_report(tmp_path):
    arguments = ["train", "--out", str(tmp_path / "a run"), "--epochs", "1", "--threads", "1", "--latent", "3"]
    assert main(arguments) == 0
    texts = Page((tmp_path / "a run" / "report.html").read_bytes()).texts
    assert f"vae-export train --out '{tmp_path}/a run' --epochs 1 --threads 1 --latent 3" in texts


def test_the_command_line_says_how_many_processes_it_started(monkeypatch):
    assert started_by(["train", "--out", "a b"]) == "vae-export train --out 'a b'"
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4"), ("TORCHELASTIC_RUN_ID", "1")):
        monkeypatch.setenv(name, value)
    assert started_by(["train"]) == "torchrun --nproc-per-node 4 -m vae_export train"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert started_by(["train"]) == "torchrun --nnodes 2 --nproc-per-node 4 -m vae_export train"


def test_a_call_is_shown_as_python_that_makes_the_same(run):
    info = checkpoint.read_info(run)
    asked = []
    names = {each.__name__: each for each in (ModelConfig, TrainConfig, DataConfig)}
    exec(called(run, info), {**names, "train": lambda *arguments: asked.extend(arguments)})
    assert asked == [str(run), info.model, info.train, info.data]


def test_a_run_under_way_is_read_again(run):
    info = checkpoint.read_info(run)
    vae, _ = checkpoint.load(run)
    record = {"epoch": 1, "train": dict.fromkeys(("elbo", "reconstruction", "kl", "bound"), -1.0), "seconds": 1.0,
              "samples_per_second": 2.0}  # fmt: skip
    record["validation"] = record["train"]
    look = look_at(vae, TensorBatch(torch.rand(5, 1, 8, 8), {}))
    under_way = Content("run", dataclasses.replace(info, result=None), [record], 1, "c", look)
    assert ("meta", "http-equiv", "refresh") in Page(report(under_way)).attributes
    assert "under way" in report(under_way).decode()
    finished = report(dataclasses.replace(under_way, info=info))
    assert ("meta", "http-equiv", "refresh") not in Page(finished).attributes


def test_a_run_that_goes_on_ends_with_the_same_report_but_for_times(run, digits_npy, tmp_path, monkeypatch):
    module = importlib.import_module("vae_export.training.loop")
    validate = module._Training._validate

    def interrupted(self, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return validate(self, epoch)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module._Training, "_validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(folder, MODEL, TRAINING, DataConfig(str(digits_npy)), progress=False, command="make it")
    # As if it had been killed before it kept the samples of the epoch.
    (folder / "samples" / "000002.png").unlink()
    source = DataConfig(str(digits_npy))
    assert train(folder, MODEL, TRAINING, source, progress=False, command="make it").resumed_epoch == 2
    whole, resumed = ((each / "report.html").read_bytes() for each in (run, folder))
    assert untimed(resumed) == untimed(whole)
    other = tmp_path / "other" / "run"
    train(other, MODEL, dataclasses.replace(TRAINING, seed=1), source, progress=False, command="make it")
    assert untimed((other / "report.html").read_bytes()) != untimed(whole)


def test_the_report_is_drawn_while_training_goes_on(run, digits_npy, tmp_path, monkeypatch):
    """At most once a minute; here at every epoch."""
    drawn = []
    draw = Display.draw

    def counted(self, state, vae):
        drawn.append(state.epoch)
        draw(self, state, vae)
        assert (self.folder / "report.html").exists()

    monkeypatch.setattr(Display, "draw", counted)
    train(tmp_path / "a", MODEL, TRAINING, DataConfig(str(digits_npy)), progress=False)
    assert drawn == [3]
    drawn.clear()
    monkeypatch.setattr("vae_export.training.display._SECONDS", -1.0)
    train(tmp_path / "b", MODEL, TRAINING, DataConfig(str(digits_npy)), progress=False)
    assert drawn == [1, 2, 3, 3]


def test_what_is_drawn_is_of_the_best_weights_in_evaluation_mode(run, digits_npy, tmp_path, monkeypatch):
    module = importlib.import_module("vae_export.training.loop")
    keep, draw, drawn = module._Training._keep_if_best, Display.draw, []

    def first_alone(self):
        if self.state.epoch == 1:
            keep(self)

    def checked(self, state, vae):
        weights = vae.module.state_dict()
        drawn.append(all(torch.equal(weights[name], best) for name, best in state.best_weights.items()))
        assert not vae.module.training
        draw(self, state, vae)

    def sampled(vae, *arguments):
        assert not vae.module.training
        return samples(vae, *arguments)

    monkeypatch.setattr(module._Training, "_keep_if_best", first_alone)
    monkeypatch.setattr(Display, "draw", checked)
    monkeypatch.setattr("vae_export.training.display.samples", sampled)
    monkeypatch.setattr("vae_export.training.display._SECONDS", -1.0)
    train(tmp_path / "run", MODEL, TRAINING, DataConfig(str(digits_npy)), progress=False)
    assert drawn == [True] * 4


def test_a_look_has_the_figures_of_the_validation(run, digits_npy):
    vae, info = checkpoint.load(run)
    x = first_rows(checkpoint.run_data(info).validation, info)
    look = look_at(vae, x)
    assert look.kl.sum() == pytest.approx(info.result.kl, rel=1e-4)
    means = vae.encode(x.x)[0].numpy()
    assert look.active.tolist() == (means.var(0) > 0.01).tolist()
    expected = PCA(2).fit(means)
    assert np.allclose(np.abs(look.map), np.abs(expected.transform(means)), atol=1e-4)
    assert look.explained == pytest.approx(expected.explained_variance_ratio_.sum(), rel=1e-4)
    with torch.no_grad():
        vae.encoder[-1].weight[0] = vae.encoder[-1].bias[0] = 0
    assert not look_at(vae, x).active[0]
    assert look_at(vae, x).kl.sum() != pytest.approx(info.result.kl, rel=1e-4)


def test_samples_are_of_the_same_latents(run):
    vae, _ = checkpoint.load(run)
    assert (samples(vae, 0) == samples(vae, 0)).all()
    assert (samples(vae, 0) != samples(vae, 1)).any()


def test_large_pictures_are_shown_small():
    config = ModelConfig(observation_shape=(1, 300, 400), latent=2, hidden=(2,))
    assert samples(VAE(config).eval(), 0).shape == (4 * 101 - 1, 4 * 101 - 1)  # every third row, every fourth column


def test_kept_epochs_grow_with_the_logarithm():
    assert [epoch for epoch in range(1201) if is_pictured(epoch)] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_labels_color_the_map(run):
    vae, info = checkpoint.load(run)
    x = TensorBatch(first_rows(checkpoint.run_data(info).validation, info).x[:20], {})
    look = look_at(vae, x, np.arange(20) % 3, ("zero", "<one>", "two"))
    drawn = charts.points(look.map, x="a", y="b", labels=look.labels, names=look.names)
    assert [name in drawn for name in ("zero", "&lt;one&gt;", "two")] == [True] * 3
    assert [color in drawn for color in charts.COLORS[:4]] == [True, True, True, False]
    assert drawn.count("h0") == 20
    plain = charts.points(look.map, x="a", y="b")
    assert "zero" not in plain


def test_labels_are_those_of_the_data():
    part = load(DataConfig("digits", conditions=("label",))).validation
    labels, names = labels_of(part)
    assert labels.tolist() == part.conditions(slice(0, 1000))["label"].tolist()
    assert set(labels.tolist()) == set(range(10))
    assert len(names) in (0, 10)
    assert labels_of(load(DataConfig("digits")).validation) == (None, ())


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0, 0.0], [1e-9, 2e-9], [-1e6, 5.0, 1e12]])
def test_any_numbers_make_a_chart(values):
    drawn = charts.lines(list(range(1, len(values) + 1)), {"a": values}, x="epoch", y="nats")
    Page(drawn.encode())
    assert "nan" not in drawn
    assert "inf" not in drawn
    Page(charts.bars([abs(value) for value in values], active=[True] * len(values), x="x", y="y").encode())


def test_a_long_run_makes_no_long_line():
    epochs = list(range(1, 5001))
    drawn = charts.lines(epochs, {"a": [float(epoch) for epoch in epochs]}, x="epoch", y="nats")
    assert len(drawn) < 12_000
    # The last epoch is there.
    assert re.search(r"L410\.0 \d", drawn)


def test_a_display_shows_what_is_asked_for(run, tmp_path):
    info = checkpoint.read_info(run)
    part = checkpoint.run_data(info).validation
    assert Display(run, info, part, Shown(command="x y")).command == "x y"
    assert Display(run, info, part, Shown()).command == called(run, info)
