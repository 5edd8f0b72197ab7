"""The verb `cache`: the bundles that were fetched by URL."""

from __future__ import annotations

import argparse
import time

from ..errors import counted, one_line
from .options import Verbs, add_verb, number


def add_caching(verbs: Verbs) -> None:
    """Add the verb."""
    verb = add_verb(verbs, "cache", _cache, "list the bundles that were fetched by URL, or remove old ones")
    size = number("max_size", 0, 1e9)
    verb.add_argument("--max-size", type=size, metavar="GIB", help="remove those unused for longest, down to this size")


def _cache(options: argparse.Namespace) -> None:
    from ..remote import cache_folder, cache_limit, entries, prune

    if options.max_size is not None:
        for entry in prune(options.max_size):
            print(f"removed {entry.digest}")
        return
    limit, bundles = cache_limit(), entries()
    for entry in bundles:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{entry.digest}  {entry.size / 2**20:10.1f} MiB  last used {used}")
    size = sum(entry.size for entry in bundles) / 2**20
    print(one_line(f"{counted(len(bundles), 'bundle')}, {size:.1f} MiB of at most {limit:g} GiB, in {cache_folder()}"))
