"""``python -m bench.handshake``: the same as ``python -m bench run --parts handshake``."""

from __future__ import annotations

import sys

from bench import installed

with installed():
    from bench.run import alias

if __name__ == "__main__":
    sys.exit(alias("handshake"))
