"""Fuzzing of what reads bundles; `make fuzz` runs each target. A target has seeds, words, and a check of one input."""

# The longest refusal: that of a manifest lists 20 problems.
MAX_CHARACTERS = 20_000


def require_short(error: Exception) -> None:
    """Refuse a message that is a flood."""
    if len(str(error)) > MAX_CHARACTERS:
        raise AssertionError(f"a message of {len(str(error))} characters")
