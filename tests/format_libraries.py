"""The libraries of output formats, which the tests of formats need."""

LIBRARIES = {"parquet": "pyarrow", "safetensors": "safetensors"}
