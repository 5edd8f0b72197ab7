"""Write the corpora of the fuzz targets, files of the bundles of conformance/: `python corpus.py FOLDER`."""

import shutil
import sys
from pathlib import Path

BUNDLES = Path(__file__).parents[3] / "conformance" / "bundles"
FILES = {
    "manifest": "*/manifest.json", "archive": "*.zip", "golden": "*/*.npz", "graph": "*/*/*/model.onnx",
    "sums": "*/SHA256SUMS",
}  # fmt: skip


def main() -> None:
    """Write a folder for each target."""
    for target, pattern in FILES.items():
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(BUNDLES.glob(pattern))):
            shutil.copyfile(path, folder / str(number))


if __name__ == "__main__":
    main()
