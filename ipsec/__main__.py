"""``python -m ipsec`` is ``ipsecd``."""

import sys

from ipsec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
