"""Errors in one line."""

import errno

import pytest

from vae_runtime.errors import counted, error_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\tc"), "a b c"),
        (ValueError(" "), "ValueError"),
        (ValueError("\x1b[31mred"), r"\x1b[31mred"),
        (OSError(errno.ENOSPC, "No space left on device", "/secret/place"), "No space left on device"),
        (OSError("12 requested and 0 written"), "12 requested and 0 written"),
        (ValueError("x" * 400), "x" * 400),
        (ValueError("a" * 300 + "b" * 300), "a" * 200 + " … " + "b" * 197),
    ],
)
def test_an_error_is_one_line_of_what_it_says(error, line):
    assert error_line(error) == line
    assert len(line) <= 400


def test_a_count_has_the_noun_that_fits_it():
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
