"""How `make docs` builds the site: MyST pages, and the API reference from the docstrings."""

import re

import vae_runtime

project = "vae-export · vae-runtime"
author = "the vae-export authors"
release = vae_runtime.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["*.json"]
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
# Attributes documented beside their annotations, as in the dataclasses.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Arguments of the methods", "params_style")]


def to_rst(app, what, name, obj, options, lines):
    """Make reStructuredText of a docstring, whose code spans are Markdown's and whose [n, *shape] is no emphasis."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`+[^`]+`+)", line)
        lines[index] = "".join(
            f"``{part.strip('`')}``" if part.startswith("`") else part.replace("*", r"\*") for part in parts
        )
    if what == "module":
        first_code = next((index for index, line in enumerate(lines) if line.startswith("    ")), None)
        if first_code is not None:
            lines[first_code:first_code] = [".. code-block:: python", ""]
    if what in ("attribute", "property"):
        kept[name] = list(lines)


def without_types(app, what, name, obj, options, lines):
    """Put back what Napoleon made of an attribute: it takes the words before a colon for a type."""
    if name in kept:
        lines[:] = kept[name]


kept = {}


def setup(app):
    app.connect("autodoc-process-docstring", to_rst, priority=400)
    app.connect("autodoc-process-docstring", without_types, priority=600)
