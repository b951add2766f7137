"""The daemon's log while a command runs, as it comes."""

from __future__ import annotations

from time import monotonic

from rich.text import Text

from ipsec.ctl.advice import cause_in_log
from ipsec.ctl.app import App
from ipsec.ctl.output import DIM
from ipsec.ctl.view import fetch_problems, number, text
from ipsec.vici.client import Session
from ipsec.vici.codec import Message

#: groups of charon's log that tell of single packets and of the exchange, as that of others would drown the rest
_DETAIL = frozenset({"NET", "ENC", "CHD", "KNL", "LIB", "DMN", "MGR", "JOB", "ASN", "TLS", "ESP"})


class Progress:
    """Prints lines on standard error, with the time since the beginning; keeps them."""

    def __init__(self, app: App, *, quiet: bool = False, verbose: bool = False) -> None:
        self._app = app
        self._quiet = quiet
        self._verbose = verbose
        self._begin = monotonic()
        self.lines: dict[str, list[str]] = {}
        "by connection"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._begin

    def show(self, conn: str, message: Message) -> str:
        """A ``control-log`` or ``log`` event that came for a connection; the line that it has."""
        line = _cut_name(text(message, "msg").strip(), conn)
        self.lines.setdefault(conn, []).append(line)
        group = text(message, "group")
        if self._quiet or (not self._verbose and (group in _DETAIL or number(message, "level") > 1)):
            return line
        self.say(Text.assemble((f"{group} " if self._verbose else "", DIM), line), conn)
        return line

    async def why(self, session: Session, conn: str, child: str) -> tuple[str, str]:
        """Cause and reason of a failure since the beginning: what the daemon keeps of it, else what it logged."""
        for problem in await fetch_problems(session, conn):
            fresh = (problem.ago_s or 0) < self.elapsed_s + 1
            if fresh and problem.initiator and not problem.over and problem.child in ("", child):
                return problem.cause, problem.reason
        return cause_in_log(self.lines.get(conn, []))

    def say(self, line: Text | str, conn: str = "") -> None:
        """A line of our own."""
        if self._quiet:
            return
        prefix = f"{self.elapsed_s:7.3f}  "
        self._app.err.print(Text.assemble((prefix, DIM), (f"{conn}: " if conn else "", "bold"), line), soft_wrap=True)


def _cut_name(line: str, conn: str) -> str:
    """ipsecd begins lines with the IKE_SA, which is said already."""
    head, colon, rest = line.partition(": ")
    return rest if colon and head.startswith(f"{conn}[") and head.endswith("]") else line
