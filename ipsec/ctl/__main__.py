"""``python -m ipsec.ctl`` is ``ipsecctl``, and begins here."""

import signal
import sys


def main() -> int:
    """Run ipsecctl; the exit status. Ctrl-C while all that it needs is loaded ends it without a traceback."""
    interrupt = signal.getsignal(signal.SIGINT)
    # who began us may have chosen that we ignore it
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ipsec.ctl.main import main as run

    signal.signal(signal.SIGINT, interrupt)
    return run()


if __name__ == "__main__":
    sys.exit(main())
