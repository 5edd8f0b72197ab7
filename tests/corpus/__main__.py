"""Run the corpus: `python -m tests.corpus [EVERY]` prints what went wrong, as JSON; EVERY takes each n-th case."""

import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import vae_runtime
from tests.corpus.cases import FAILS, LOADS, REFUSED, Case, cases
from vae_runtime.places import archive_entry


def peak() -> float:
    """Return the peak of this process's memory in MiB; what `getrusage` says starts with that of the parent."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def written(case: Case, folder: Path, zipped: bool) -> Path:
    """Write a bundle as a folder or as a .zip file."""
    if zipped:
        path = folder / "bundle.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in sorted(case.files):
                archive.writestr(archive_entry(name), case.files[name])
        return path
    for name, content in case.files.items():
        (folder / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "bundle" / name).write_bytes(content)
    return folder / "bundle"


def verdict(path: Path) -> tuple[str, str]:
    """What becomes of a bundle, and the words of its refusal."""
    try:
        vae_runtime.load(path)
    except vae_runtime.BundleError as error:
        return REFUSED, str(error)
    report = vae_runtime.verify(path)
    return (LOADS, "") if report.passed else (FAILS, "")


def main() -> None:
    """Run the cases."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    wrong, count, slowest = [], 0, (0.0, "")
    vae_runtime.load(Path(__file__).parents[2] / "models" / "digits")
    for number, case in enumerate(cases()):
        for zipped in (False, True):
            # Legitimate ones always: a check that refuses everything would pass otherwise.
            if (2 * number + zipped) % every and case.verdict != LOADS:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = written(case, Path(folder), zipped)
                start = time.perf_counter()
                try:
                    got, words = verdict(path)
                except Exception as error:  # what a stranger's bundle must never cause
                    got, words = type(error).__name__, str(error)
                took = time.perf_counter() - start
            count += 1
            if got != case.verdict:
                wrong.append(
                    f"{case.name}, {path.suffix or 'folder'}: expected {case.verdict}, got {got}: {words[:200]}"
                )
            if case.verdict == REFUSED:
                slowest = max(slowest, (took, case.name))
                if len(words) > 10_000:
                    wrong.append(f"{case.name}: {len(words)} characters")
    memory = peak()
    print(json.dumps({"cases": count, "wrong": wrong, "slowest": slowest, "MiB": memory}))


if __name__ == "__main__":
    main()
