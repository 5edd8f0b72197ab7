"""Refuse to build a wheel without the page."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Look for the page before the wheel is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Refuse where the page is missing."""
        if version != "editable" and not Path(self.root, "vae_runtime_studio", "page", "index.html").is_file():
            raise FileNotFoundError("vae_runtime_studio/page: expected the page, got nothing; run `make studio`")
