"""The report of a run: one page of HTML that holds its pictures, asks for nothing else, and needs no script."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime._version import __version__
from vae_runtime.errors import counted, one_line
from vae_runtime.image import png

from . import charts
from .checkpoint import RunInfo
from .look import Look

# The first epochs are far below the others; this share of the values may lie outside of a chart.
_HIDDEN = 0.1
# Bars of latent dimensions that are shown; of more, those with the largest KL.
_MAX_BARS = 128
_SURROGATE = (
    "Gray values are scored as if a bernoulli likelihood covered them: every bound is of a surrogate, not of a "
    "likelihood of the data."
)
_STYLE = """
:root { color-scheme: light dark; --back: #f5f6f8; --card: #fff; --text: #1a202c; --soft: #5b6573; --line: #d9dee6;
  --well: #e9ecf1; font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
@media (prefers-color-scheme: dark) { :root { --back: #11151c; --card: #1a2029; --text: #e6eaf0; --soft: #9aa6b6;
  --line: #303947; --well: #242c38; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 16px; background: var(--back); color: var(--text); }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 6px; }
p { margin: 0 0 8px; color: var(--soft); font-size: 0.9rem; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px;
  margin: 14px 0 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; margin: 14px 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 0.85rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 10px; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: 0.85rem; }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; background: var(--well); }
.wide { max-width: 760px; }
svg { display: block; width: 100%; max-width: 560px; overflow: hidden; }
svg text { fill: var(--soft); font-size: 12px; }
svg .name { fill: var(--text); font-weight: 600; font-size: 14px; paint-order: stroke; stroke: var(--card);
  stroke-width: 3px; }
svg .grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; list-style: none; margin: 4px 0 0; padding: 0;
  font-size: 0.85rem; color: var(--soft); }
.legend span { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin: 0 6px 3px 0; }
pre { margin: 0; padding: 10px; background: var(--well); border-radius: 7px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 0.85rem/1.5 ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; }
th, td { text-align: left; vertical-align: top; padding: 3px 10px 3px 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; font-weight: normal; }
th { color: var(--soft); width: 45%; }
"""


@dataclass(frozen=True)
class Content:
    """All that a report shows."""

    name: str
    """The name of the run's folder."""
    info: RunInfo
    """With a result once training has finished."""
    records: Sequence[Mapping[str, Any]]
    """Lines of `metrics.jsonl`, at least one."""
    best_epoch: int
    command: str
    """What made the run: a command line or a call."""
    look: Look
    """At the weights of the best epoch."""
    samples: Mapping[int, bytes] = field(default_factory=dict)
    """PNG of samples after an epoch, by its number."""
    best_samples: NDArray[np.uint8] | None = None
    """Samples of the best epoch; None where observations are no pictures."""


def report(content: Content) -> bytes:
    """Return the page in UTF-8: the same content gives the same page, on the same machine.

    Every text is escaped. What was timed stands in elements of the class `time`, and nowhere else.
    """
    parts = [
        _head(content),
        _tiles(content),
        _curves(content),
        _samples(content),
        _reconstructions(content.look),
        _latents(content.look),
        _made(content),
        _settings(content.info),
    ]
    return ("\n".join(parts) + "\n</body>\n</html>\n").encode("utf-8", "backslashreplace")


def _text(value: object) -> str:
    return escape(one_line(value))


def _head(content: Content) -> str:
    info = content.info
    # A run under way is read again every minute.
    refresh = "" if info.result else '<meta http-equiv="refresh" content="60">\n'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    state = "stopped early" if info.result and info.result.stopped_early else "finished" if info.result else "under way"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{refresh}'
        f"<title>{_text(content.name)}: training report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(content.name)}</h1>\n"
        f"<p>A VAE trained on {_text(info.provenance.name)}: {state}, epoch {len(content.records)} of at most "
        f"{info.train.epochs}</p>"
    )


def _tiles(content: Content) -> str:
    best = content.records[content.best_epoch - 1]["validation"]
    kind = "surrogate " if content.info.surrogate else ""
    figures = [
        (f"{best['elbo']:.2f}", f"{kind}ELBO, nats"),
        (f"{best['reconstruction']:.2f}", "reconstruction, nats"),
        (f"{best['kl']:.2f}", "KL, nats"),
        (f"{int(content.look.active.sum())} of {len(content.look.active)}", "active units"),
        (f"{content.best_epoch}", "best epoch"),
    ]
    if best["bound"] != best["elbo"]:
        k = content.info.train.importance_samples
        figures.insert(1, (f"{best['bound']:.2f}", f"{kind}importance-weighted bound, {counted(k, 'sample')}, nats"))
    tiles = "".join(f"<div><b>{value.replace('-', '−')}</b><span>{name}</span></div>" for value, name in figures)
    seconds = sum(record["seconds"] for record in content.records)
    rate = content.records[-1]["samples_per_second"]
    timed = (
        f'<div><b class="time">{_duration(seconds)}</b><span>in epochs</span></div>'
        f'<div><b class="time">{rate:,.0f}</b><span>samples/s</span></div>'
    )
    drawn = f'<div class="tiles">{tiles}{timed}</div>'
    if not content.info.surrogate:
        return drawn
    return f"{drawn}\n<section><p>{_SURROGATE}</p></section>"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def _curves(content: Content) -> str:
    records = content.records
    kind = "surrogate " if content.info.surrogate else ""

    def of(part: str, name: str, sign: int = 1) -> list[float]:
        return [sign * record[part][name] for record in records]

    bounds = {f"{kind}ELBO, training": of("train", "elbo"), f"{kind}ELBO, validation": of("validation", "elbo")}
    if any(record["validation"]["bound"] != record["validation"]["elbo"] for record in records):
        bounds[f"{kind}importance-weighted bound, validation"] = of("validation", "bound")
    epochs = [record["epoch"] for record in records]
    nats = "nats per observation"
    drawn = [
        charts.lines(epochs, bounds, x="epoch", y=nats, hidden=_HIDDEN),
        charts.lines(
            epochs, {"−reconstruction, validation": of("validation", "reconstruction", -1)}, x="epoch", y=nats
        ),
        charts.lines(epochs, {"KL, validation": of("validation", "kl")}, x="epoch", y=nats),
    ]
    return _section("Learning curve", f'<div class="pair">{_figures(drawn)}</div>')


def _samples(content: Content) -> str:
    if content.best_samples is None:
        return ""
    shown = [(f"epoch {epoch}", picture) for epoch, picture in content.samples.items() if epoch <= len(content.records)]
    shown.append((f"best, epoch {content.best_epoch}", png(content.best_samples, min_side=1)))
    pictures = "".join(f"<figure>{_image(picture, text)}<figcaption>{text}</figcaption></figure>"
                       for text, picture in shown)  # fmt: skip
    words = f"The same latents of the prior, decoded after each of these epochs; seed {content.info.train.seed}."
    return _section("Samples by epoch", f'<p>{words}</p><div class="strip">{pictures}</div>')


def _reconstructions(look: Look) -> str:
    if look.reconstructions is None:
        return ""
    words = "The first validation rows as the model sees them; beneath each, what it makes of its posterior mean."
    image = _image(png(look.reconstructions, min_side=1), "rows and their reconstructions")
    return _section("Reconstructions", f'<p>{words}</p><div class="wide">{image}</div>')


def _latents(look: Look) -> str:
    order = np.argsort(-look.kl, kind="stable")
    shown = order[:_MAX_BARS]
    words = (
        f"{int(look.active.sum())} of {len(look.kl)} dimensions are active: their posterior mean has a variance above "
        "0.01 over the validation rows. The others are gray."
    )
    bars = charts.bars(
        look.kl[shown].tolist(),
        active=look.active[shown].tolist(),
        x="latent dimensions by their KL" + (f", the largest {_MAX_BARS}" if len(order) > _MAX_BARS else ""),
        y="KL, nats",
    )
    drawn = [bars]
    if look.map is not None:
        words += f" On the two principal axes of the map lie {look.explained:.0%} of the variance of the means"
        words += "; colors are labels." if look.labels is not None else "."
        drawn.append(
            charts.points(look.map, x="first axis", y="second axis", labels=look.labels, names=list(look.names))
        )
    return _section("Latent space", f'<p>{words}</p><div class="pair">{_figures(drawn)}</div>')


def _made(content: Content) -> str:
    data = content.info.provenance
    rows = {
        "data": f"{data.name}, {data.description}" if data.description else data.name,
        "license of the data": data.license,
        "digest": data.digest,
        "observations": f"{data.train:,} trained on, {data.validation:,} for validation, {data.test:,} for test",
        "versions": f"vae-export {__version__}, PyTorch {content.info.torch_version}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}",
    }
    command = "\n".join(_text(line) for line in content.command.splitlines())
    return _section("What made it", f"<pre>{command}</pre>{_table(rows)}")


def _settings(info: RunInfo) -> str:
    parts = {"Model": info.model, "Training": info.train, "Data": info.data}
    tables = "".join(f"<div><h2>{title}</h2>{_table(config.to_json())}</div>" for title, config in parts.items())
    return _section("Settings", f'<div class="pair">{tables}</div>')


def _table(rows: Mapping[str, object]) -> str:
    lines = "".join(f"<tr><th>{_text(name.replace('_', ' '))}</th><td>{_text(_shown(value))}</td></tr>"
                    for name, value in rows.items())  # fmt: skip
    return f"<table>{lines}</table>"


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if value in ("", {}):
        return "none"
    return f"{value:g}" if isinstance(value, float) else value


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{title}</h2>{inner}</section>"


def _figures(drawn: Sequence[str]) -> str:
    return "".join(f"<figure>{each}</figure>" for each in drawn)


def _image(content: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
