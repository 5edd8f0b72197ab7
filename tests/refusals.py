"""Hold refusals of bad input to what all have in common."""

import pytest

from vae_runtime.errors import InputError


def refusal(call, *arguments, **fields) -> str:
    """Return the message of the InputError that a call ends in: one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message
