"""``python -m bench``: ESP in memory, then end to end beside strongSwan. Options go to the end-to-end part."""

from __future__ import annotations

import sys

from bench.e2e.__main__ import main as end_to_end
from bench.micro.__main__ import main as in_memory

if __name__ == "__main__":
    sys.exit(in_memory([]) or end_to_end(sys.argv[1:]))
