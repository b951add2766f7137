"""``python -m ipsec.ctl`` is ``ipsecctl``."""

import sys

from ipsec.ctl.main import main

if __name__ == "__main__":
    sys.exit(main())
