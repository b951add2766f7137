"""How a line of the log looks: text for people, or one JSON object for programs (``ipsecd.log_format``); and when it
is written."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import select
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.sa import IkeSa
from ipsec.text import printable

#: what so many lines say is not kept until later
WAITING_MAX = 256
#: octets that are kept while who reads the log does not
KEPT_MAX = 1 << 18
#: seconds after which what was logged is written
SOON_S = 0.01
#: after which we look whether he reads again, and that he has when we end
AGAIN_S = 0.1
LAST_S = 1.0
LOST = "%d lines are lost: nobody has read the log, or its disk was full"
#: of a disk, a quota or a limit (setrlimit(2)): there may be room again
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEXT = "%(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and connection, child and peer where a line is about them."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("connection", "child", "peer"):
            if hasattr(record, key):
                values[key] = str(getattr(record, key))
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, ChildSa):
                values.setdefault("child", argument.name)
                argument = argument.ike
            if isinstance(argument, IkeSa):
                values.setdefault("connection", argument.name)
                values.setdefault("ike_sa", argument.uid)
                values.setdefault("peer", str(argument.path.remote))
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        # half a surrogate pair has no octets of its own, but JSON can name it
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


class TextFormatter(logging.Formatter):
    """A line with the time in UTC, as ``2026-01-31T03:14:15.926Z``.

    Identities of peers and words of vici clients are in it: nothing of theirs can begin a line, or move a cursor.
    """

    def __init__(self, fmt: str) -> None:
        super().__init__(fmt)
        self._second: tuple[int, str] = (-1, "")
        "the last one that was put into words: a busy daemon has many lines in each"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """See logging.Formatter."""
        second = int(record.created)
        if second != self._second[0]:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second[1]}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """See logging.Formatter. Further lines are told from others by their indent."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))


class PatientHandler(logging.StreamHandler[TextIO]):
    """Writes what is logged in the event loop a moment later: peers and clients do not wait for our log.

    A warning or worse is written at once, and so is what waits then. What waits at the end is written with ``flush``
    and ``close``, which ``logging`` sees to at exit.

    Nor does anybody wait for who reads the log: what a pipe, a terminal or a full disk does not take is kept. Of too
    much the newest is lost, and counted.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[tuple[logging.LogRecord, bytes | None]] = []
        "with their lines, where these have been made"
        self._kept = bytearray()
        "lines that nobody has taken"
        self._lost = 0
        "lines for which there was no room after these"
        self._asked: asyncio.AbstractEventLoop | None = None
        "the loop that will call ``_called``"
        self._descriptor = _patient_descriptor(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        # JSON has an IKE_SA's peer, which may be elsewhere in a moment; the words of a line stay what they are
        try:
            line = self._line(record) if isinstance(self.formatter, JsonFormatter) else None
        except Exception:
            self.handleError(record)
            return
        self._waiting.append((record, line))
        if record.levelno >= logging.WARNING or len(self._waiting) >= WAITING_MAX:
            self._write()
        elif not self._ask(SOON_S):
            # another thread, or before and after the loop
            self._write()

    def _ask(self, delay: float) -> bool:
        """Have it flushed by the loop that runs, if there is one; once, however often that is asked."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._asked is not loop:
            self._asked = loop
            loop.call_later(delay, self._called)
        return True

    def _called(self) -> None:
        # here alone: else each warning that nobody takes would have the loop call for ever
        self._asked = None
        self.flush()

    def flush(self) -> None:
        """See logging.Handler."""
        self.acquire()
        try:
            self._write()
        finally:
            self.release()

    def close(self) -> None:
        """See logging.Handler."""
        self.acquire()
        try:
            self._write()
            self._give(LAST_S)
        finally:
            self.release()
        super().close()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for record, line in waiting:
            try:
                self._keep(line or self._line(record))
            except Exception:
                self.handleError(record)
        try:
            self._give(0)
        except Exception:
            # logging tells of the last one, on standard error
            if waiting:
                self.handleError(waiting[-1][0])
        if self._kept:
            self._ask(AGAIN_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return (self.format(record) + self.terminator).encode(encoding, "backslashreplace")

    def _keep(self, line: bytes) -> None:
        if self._lost:
            line = self._gap() + line
        if self._kept and len(self._kept) + len(line) > KEPT_MAX:
            self._lost += 1
            return
        self._kept += line
        self._lost = 0

    def _gap(self) -> bytes:
        return self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, LOST, (self._lost,), None))

    def _give(self, patience: float) -> None:
        """Write what is taken within this time; all of it where there is nothing to ask."""
        until = time.monotonic() + patience
        try:
            while self._kept and self._takes(max(until - time.monotonic(), 0)):
                del self._kept[: self._put()]
                if self._lost and not self._kept:
                    self._kept, self._lost = bytearray(self._gap()), 0
        except BlockingIOError:
            # room for less than the next character: of a terminal, which is asked again soon, or is at its end
            pass
        except Exception as error:
            if getattr(error, "errno", None) in FULL:
                return
            self._kept.clear()
            raise

    def _put(self) -> int:
        """Write some of what is kept; how many octets."""
        if self._descriptor is None:
            self.stream.write(self._kept.decode(getattr(self.stream, "encoding", None) or "utf-8"))
            self.stream.flush()
            return len(self._kept)
        # a pipe with any room takes so much at once (pipe(7))
        return os.write(self._descriptor, self._kept[: select.PIPE_BUF])

    def _takes(self, patience: float) -> bool:
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * patience))


def _patient_descriptor(stream: TextIO) -> int | None:
    """Where to write what goes into ``stream`` such that nobody waits; None if it is not one of the system's.

    A terminal with room for one character takes more only when it is read. To be asked it has to be opened again:
    O_NONBLOCK holds for everybody who has a descriptor from the same ``open``, such as the shell.
    """
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    if os.isatty(descriptor):
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return descriptor


def leave_out_what_no_line_says() -> None:
    """Keep ``logging`` from asking, for every line, for the caller, the process and the thread: no format of ours has
    them, and they take longer than the rest of a line (Logging HOWTO, "Optimization")."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def formatter(kind: str) -> logging.Formatter:
    """The formatter for a value of ``ipsecd.log_format``; systemd's journal keeps the time of each line by itself."""
    if kind == "json":
        return JsonFormatter()
    return TextFormatter(TEXT if _in_journal() else f"%(asctime)s {TEXT}")


def _in_journal() -> bool:
    """Whether standard error goes to the journal (systemd.exec(5))."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
