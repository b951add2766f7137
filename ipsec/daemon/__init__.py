"""The daemon, the only place that knows both IKEv2 and a backend. ``run`` is the way in.

Start-up works in full, or fails with one text and leaves nothing behind. Exit codes, kept stable for supervisors:

    0  stopped on request
    1  a bug; the log has the traceback
    2  wrong command line
    3  the configuration is wrong
    4  the machine lacks something (device, privilege, port); the text says what mends it
    5  an SA or policy was refused, or sequence numbers cannot be kept safe
    6  the device was lost and could not be made again
    130, 143  forced to stop at once by a second SIGINT or SIGTERM
"""

from ipsec.daemon.run import Daemon, run
from ipsec.daemon.settings import auto_workers, backend_settings, ike_settings
from ipsec.exits import ExitCode

__all__ = ["Daemon", "ExitCode", "auto_workers", "backend_settings", "ike_settings", "run"]
