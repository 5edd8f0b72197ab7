"""Build the shared library that the wheel carries, with the C compiler of this machine or the one that CC names."""

import hashlib
import os
import re
import shlex
import struct
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# As runtime/c/CMakeLists.txt has them. A library that is made for one machine alone would fail on another.
FLAGS = ["-std=c99", "-O3", "-s", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compile before the wheel is made, and name the wheel after the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; the wheel is for any Python 3 of this platform, or of the one that VAE_NATIVE_PLATFORM names."""
        package = Path(self.root, "vae_runtime_native")
        text = (package / "__init__.py").read_text(encoding="utf-8")
        names = dict(re.findall(r'^(\w+) = "(.*)"$', text, re.MULTILINE))
        # Beside this folder in the repository, in it in a source distribution.
        sources = next(place for place in (Path(self.root), Path(self.root).parent) if (place / "c").is_dir())
        table = (sources / "vae_runtime" / "vnoise1_table.bin").read_bytes()
        if hashlib.sha256(table).hexdigest() != names["TABLE_SHA256"]:
            raise ValueError("vnoise1_table.bin: expected the table of vnoise-1, got another; check it out again")
        with tempfile.TemporaryDirectory() as folder:
            quantiles = struct.unpack("<32768i", table[: 4 * 32768])
            Path(folder, "vnoise1_table.h").write_text(",\n".join(map(str, quantiles)), encoding="ascii")
            compiler = shlex.split(os.environ.get("CC", "cc"))
            made = [str(sources / "c" / "vae_runtime.c"), "-o", str(package / names["LIBRARY"])]
            subprocess.run([*compiler, *FLAGS, f"-I{folder}", *made, "-ldl", "-lpthread", "-lm"], check=True)
        library = (package / names["LIBRARY"]).read_bytes()
        (package / names["SUM"]).write_text(hashlib.sha256(library).hexdigest(), encoding="ascii")
        platform = os.environ.get("VAE_NATIVE_PLATFORM") or sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
