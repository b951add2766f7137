"""Names on the command line: which connections, children and SAs they mean, and what is near a wrong one.

office          a connection, else a child
office/voice    a child of a connection
'site-*'        patterns, also office/'*'
office[3]       an IKE_SA by its number, as the log has it
voice{7}        a CHILD_SA by its number
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import click

from ipsec.ctl.app import Whole
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.view import ChildSa, Conn, IkeSa, fetch_conns, fetch_manual_sas, fetch_sas
from ipsec.vici.client import Session

_IKE = re.compile(r"(.*)\[(\d+)\]")
_CHILD = re.compile(r"(.*)\{(\d+)\}")
NAMES_SHOWN = 12


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` for names near a wrong one, or what names there are if those are few; else empty."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close = close or [one for one in names if one.lower() == name.lower()]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if 0 < len(names) <= NAMES_SHOWN:
        return f"; there are: {', '.join(names)}"
    return ""


@dataclass(frozen=True)
class Target:
    """What a verb is to work on: a connection as a whole, one of its children, or single SAs."""

    conn: str = ""
    child: str = ""
    ike_id: int = 0
    child_id: int = 0

    def __str__(self) -> str:
        if self.child_id:
            return f"{self.child}{{{self.child_id}}}"
        if self.ike_id:
            return f"{self.conn}[{self.ike_id}]"
        return f"{self.conn}/{self.child}" if self.child else self.conn

    def message(self) -> dict[str, object]:
        """What chooses it in commands of vici."""
        if self.child_id:
            return {"child-id": self.child_id}
        if self.ike_id:
            return {"ike-id": self.ike_id}
        return {"ike": self.conn, "child": self.child or None}


@dataclass(frozen=True)
class Known:
    """What there is to be named: what is configured, and what is up."""

    conns: tuple[Conn, ...]
    sas: tuple[IkeSa, ...]
    manual: tuple[str, ...] = ()
    "SAs that are configured by hand: most verbs can only say that they are"

    def manual_names(self, name: str) -> list[str]:
        """The manual SAs that a name or pattern means."""
        return [one for one in self.manual if _fits(one, name)]

    def conn_names(self) -> list[str]:
        """Connections, also those that are only up."""
        return list(dict.fromkeys([*(conn.name for conn in self.conns), *(sa.name for sa in self.sas)]))

    def children(self) -> list[tuple[str, str]]:
        """(connection, child), also those that are only up."""
        configured = [(conn.name, child.name) for conn in self.conns for child in conn.children]
        up = [(sa.name, child.name) for sa in self.sas for child in sa.children]
        return list(dict.fromkeys([*configured, *up]))

    def conn(self, name: str) -> Conn | None:
        """A configured connection."""
        return next((conn for conn in self.conns if conn.name == name), None)

    def find(self, name: str, *, needed: bool = True) -> list[Target]:
        """What a name or pattern means. CtlError if there is nothing like it and something is ``needed``."""
        found = self._by_number(name) or self._by_name(name)
        if not found and needed:
            raise self.unknown(name)
        return found

    def unknown(self, name: str) -> CtlError:
        """The error for a name that means nothing, or a manual SA where a connection is wanted."""
        if self.manual_names(name):
            return CtlError(
                f"{name} is a manual SA (section sas): it is in place as long as the daemon runs",
                f"see `ipsecctl status {name}`; other keys are a matter of the file, and take a restart",
                code=ExitCode.UNKNOWN_NAME,
            )
        known = [*self.conn_names(), *self.manual, *(f"{conn}/{child}" for conn, child in self.children())]
        hint = near(name, known).removeprefix("; ")
        if not known:
            hint = "the daemon has no connections: load some with `ipsecctl load`, or `ipsecctl reload`"
        return CtlError(
            f"there is no connection, child or SA {name!r}",
            hint or f"see `ipsecctl list {'sas' if name.endswith((']', '}')) else 'conns'}`",
            code=ExitCode.UNKNOWN_NAME,
        )

    def _by_number(self, name: str) -> list[Target]:
        if match := _IKE.fullmatch(name):
            return [
                Target(conn=sa.name, ike_id=sa.id)
                for sa in self.sas
                if sa.id == int(match[2]) and match[1] in ("", sa.name)
            ]
        if match := _CHILD.fullmatch(name):
            return [
                Target(conn=sa.name, child=child.name, child_id=child.id)
                for sa in self.sas
                for child in sa.children
                if child.id == int(match[2]) and match[1] in ("", child.name)
            ]
        return []

    def _by_name(self, name: str) -> list[Target]:
        if found := [Target(conn=conn) for conn in self.conn_names() if _fits(conn, name)]:
            return found
        owner, slash, child = name.rpartition("/")
        if slash:
            return [Target(conn, one) for conn, one in self.children() if _fits(conn, owner) and _fits(one, child)]
        found = [Target(conn, one) for conn, one in self.children() if _fits(one, name)]
        if len({target.conn for target in found}) > 1 and not _is_pattern(name):
            some = ", ".join(str(target) for target in found[:3])
            raise CtlError(
                f"{name} is a child of {len(found)} connections",
                f"say which one: {some}{', ...' if len(found) > 3 else ''}; or all of them: '*/{name}'",
                code=ExitCode.UNKNOWN_NAME,
            )
        return found

    def sas_of(self, target: Target) -> list[IkeSa]:
        """IKE_SAs that a target reaches."""
        return [
            sa
            for sa in self.sas
            if sa.name == target.conn
            and target.ike_id in (0, sa.id)
            and (not (target.child or target.child_id) or self.child_sas_of(target, (sa,)))
        ]

    def child_sas_of(self, target: Target, sas: Iterable[IkeSa] | None = None) -> list[ChildSa]:
        """CHILD_SAs that a target reaches."""
        return [
            child
            for sa in (self.sas if sas is None else sas)
            if sa.name == target.conn and target.ike_id in (0, sa.id)
            for child in sa.children
            if target.child in ("", child.name) and target.child_id in (0, child.id)
        ]


def _is_pattern(name: str) -> bool:
    return any(char in name for char in "*?[")


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or (_is_pattern(pattern) and fnmatchcase(name, pattern))


async def known(session: Session) -> Known:
    """Ask the daemon what there is."""
    manual = tuple(one.name for one in await fetch_manual_sas(session))
    return Known(await fetch_conns(session), await fetch_sas(session), manual)


F = TypeVar("F", bound=Callable[..., Any])


def id_options(function: F) -> F:
    """The options that choose single SAs."""
    number = Whole(min=1)
    function = click.option("--child-id", type=number, multiple=True, metavar="N", help="A CHILD_SA by its number.")(
        function
    )
    return click.option("--ike-id", type=number, multiple=True, metavar="N", help="An IKE_SA by its number.")(function)


def targets_of(names: Iterable[str], ike_ids: Iterable[int], child_ids: Iterable[int] = ()) -> list[str]:
    """All that names and options choose, as names. UsageError if that is nothing."""
    found = [*names, *(f"[{one}]" for one in ike_ids), *(f"{{{one}}}" for one in child_ids)]
    if not found:
        raise click.UsageError("say which: a NAME, --ike-id or --child-id")
    return found
