"""``python -m bench.micro``: the same as ``python -m bench run --parts micro``."""

from __future__ import annotations

import sys

from bench import installed

with installed():
    from bench.run import alias

if __name__ == "__main__":
    sys.exit(alias("micro"))
