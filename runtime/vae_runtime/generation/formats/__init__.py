"""How the rows of a shard lie in its file: a module for each format, and the table of them."""
