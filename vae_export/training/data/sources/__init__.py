"""Where observations come from: a module for each kind of source, and the table of them."""
