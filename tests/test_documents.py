"""The documents point at what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_link_leads_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path}: {link}"


def test_every_room_is_on_the_map() -> None:
    """docs/architecture.md names each file of both packages, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in (ROOT / "vae_export", ROOT / "runtime" / "vae_runtime"):
        for room in package.glob("[a-z]*.py"):
            assert re.search(rf"\b{room.stem}\b", text), room
    for named in re.findall(r"`((?:vae_export|runtime/vae_runtime)/[a-z_]+\.py)`", text):
        assert (ROOT / named).is_file(), named
