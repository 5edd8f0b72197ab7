"""The model that the tests of the benchmark measure."""

import pytest

from benchmarks.models import build


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with the tiny model, trained and exported. To be read only."""
    folder = tmp_path_factory.mktemp("bench")
    build("tiny", folder / "tiny")
    return folder
