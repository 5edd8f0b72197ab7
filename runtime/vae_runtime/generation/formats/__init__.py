"""The file formats of shards: a module for each, and the table of them."""
