"""``python -m ipsec.ctl`` is ``ipsecctl``, and begins here."""

import signal
import sys


def main() -> int:
    """Run ipsecctl; the exit status. Ctrl-C while all that it needs is loaded ends it without a traceback."""
    # who began us may have it ignored
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ipsec.ctl.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
