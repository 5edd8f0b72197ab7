"""What an export says of its steps, and how long it is still going to take."""

from vae_export.exporting import Options
from vae_export.graphs.variants import Gate
from vae_export.progress import Progress


def test_the_time_left_follows_from_the_steps_that_are_done(capsys):
    now = [0.0]
    progress = Progress(["understand", "onnx", "onnx", "write"], shown=True, clock=lambda: now[0])
    for kind, seconds in (("understand", 30.0), ("onnx", 14.0), ("onnx", 14.0), ("write", 8.0)):
        progress.step(kind, kind)
        now[0] += seconds
    progress.note("done")
    said = ["understand", "onnx (about 36 s left)", "onnx (about 22 s left)", "write (about 8 s left)", "done"]
    assert capsys.readouterr().err.splitlines() == said


def test_a_slow_machine_takes_longer_and_long_times_are_minutes(capsys):
    now = [0.0]
    progress = Progress(["understand", "write"], shown=True, clock=lambda: now[0])
    progress.step("understand", "first")
    now[0] = 1200.0
    progress.step("write", "last")
    assert capsys.readouterr().err.splitlines()[-1] == "last (about 5 min left)"


def test_steps_that_are_passed_over_are_done(capsys):
    now = [0.0]
    progress = Progress(["understand", "variants", "write"], shown=True, clock=lambda: now[0])
    progress.step("understand", "first")
    now[0] = 50.0
    progress.step("write", "last")
    progress.step("unknown", "more")
    assert capsys.readouterr().err.splitlines() == ["first", "last (about 8 s left)", "more"]


def test_nothing_is_said_unasked(capsys):
    progress = Progress(["understand"])
    progress.step("understand", "first")
    progress.note("more")
    assert capsys.readouterr() == ("", "")


def test_the_steps_of_an_export_are_those_of_its_formats_and_variants():
    def steps(components, formats=None, variants=("fp32",)):
        return Options(formats, variants, Gate(), False, False).steps(components)

    assert steps(1) == ["understand", "reference", "onnx", "torchscript", "golden", "write"]
    assert steps(2, ("pt2",)) == ["understand", "reference", *["onnx", "pt2"] * 2, "golden", "write"]
    assert steps(2, ("onnx",), ("fp32", "fp16", "int8")).count("variants") == 4
