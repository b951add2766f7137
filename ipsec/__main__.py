"""``python -m ipsec`` is ``ipsecd``."""

import sys

from ipsec.cli.ipsecd import main

if __name__ == "__main__":
    sys.exit(main())
