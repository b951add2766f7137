"""How ipsecctl ends: exit statuses, and the error that carries one."""

from __future__ import annotations

from ipsec.errors import IpsecError
from ipsec.exits import ExitCode

__all__ = ["MEANINGS", "CtlError", "ExitCode"]

#: what ``--help`` and the documentation say about each
MEANINGS = {
    ExitCode.OK: "done, or it was so already",
    ExitCode.BUG: "a bug; please report it with the output",
    ExitCode.USAGE: "wrong command line",
    ExitCode.CONFIG: "a configuration file is wrong; the text names file, line and key",
    ExitCode.REQUIREMENT: "the machine lacks something; the text says what mends it",
    ExitCode.FAILED: "the daemon says that it failed, or does not know the command",
    ExitCode.TIMEOUT: "not done in time",
    ExitCode.DIFFERS: "not as it should be: something is not up (status --check), or differs (diff)",
    ExitCode.UNREACHABLE: "no daemon, no permission for its socket, it hung up, or has not answered for 10 s",
    ExitCode.UNKNOWN_NAME: "no connection, child or SA has that name",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.BROKEN_PIPE: "whoever reads the output has gone (| head)",
}


class CtlError(IpsecError):
    """Something did not work. ``remedy`` is what to do about it; ``code`` becomes the exit status."""

    def __init__(self, message: str, remedy: str = "", *, code: ExitCode = ExitCode.FAILED) -> None:
        self.message = message
        self.remedy = remedy
        self.code = code
        super().__init__(f"{message}; {remedy}" if remedy else message)
