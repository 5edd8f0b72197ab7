"""The validator of JSON schemas, of the library jsonschema, without the formats of RFC 3987.

No schema of ours names these formats, and the library takes seconds to build their grammars when it is imported.
"""

import sys
from unittest.mock import patch

# Has parts that a process may initialize once.
import referencing  # noqa: F401

# Takes the modules out again, so that others still import the library whole.
with patch.dict(sys.modules, {"rfc3987_syntax": None}):
    from jsonschema import Draft202012Validator

__all__ = ["Draft202012Validator"]
