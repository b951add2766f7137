"""Commands and events that charon does not have; their names begin with ``ipsecd-``. docs/vici.md describes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from ipsec.esp.engine import SaStats
from ipsec.ike.failure import Problem, Terms
from ipsec.vici.actions import truth
from ipsec.vici.codec import Message, text
from ipsec.vici.control import Change, Control, ManualSa
from ipsec.vici.lists import stream
from ipsec.vici.logs import Levels
from ipsec.vici.server import Client, CommandError, Handler

#: ``ipsecd-problem`` comes with the command ipsecd-problems, and by itself when something fails
EVENTS = ("ipsecd-problem", "ipsecd-drop", "ipsecd-manual-sa", "ipsecd-change", "ipsecd-log")


class Extensions:
    """The commands; see the module's text."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._levels = Levels()
        self.commands: dict[str, Handler] = {
            "ipsecd-health": self.health,
            "ipsecd-data-path": self.data_path,
            "ipsecd-drops": self.drops,
            "ipsecd-manual-sas": self.manual_sas,
            "ipsecd-problems": self.problems,
            "ipsecd-radius": self.radius,
            "ipsecd-diff": self.diff,
            "ipsecd-log-level": self.log_level,
        }

    def close(self) -> None:
        """Undo what outlives a client."""
        self._levels.clear()

    async def health(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Sections ``alive``, ``healthy``, ``ready``, each with a key of its name, and ``problems`` if that is no."""
        return {
            question: {question: not problems, "problems": problems or None}
            for question, problems in self._control.health().items()
        }

    async def data_path(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Device, workers, ports, offloads, providers; counters and drops by reason since the start, in all."""
        found = self._control.data_path()
        return {
            "device": found.device,
            "mtu": found.mtu,
            "workers": found.workers,
            "raw-esp": found.raw_esp,
            "ports": {f"ipv{version}": port for version, port in found.ports.items()},
            "ike-ports": {f"ipv{version}": port for version, port in found.ike_ports.items()},
            "offloads": found.offloads,
            "providers": found.providers,
            "keylog": found.keylog or None,
            "counters": found.counters,
            "drops": _counts(found.drops),
        }

    async def radius(self, client: Client, message: Message) -> Mapping[str, Any]:
        """RADIUS servers: a section for each, with one for what it is asked for."""
        found: dict[str, dict[str, Any]] = {}
        for one in self._control.radius():
            of_server = found.setdefault(one.server.name, {"server": str(one.server)})
            silent = int(one.silent_s) if one.silent_s is not None else None
            of_server[one.kind] = {"silent": silent, "counters": _counts(one.counters)}
        return found

    async def drops(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Packets dropped by the SAs that are up, by child and reason: one event for each IKE_SA that has any."""
        ike = text(message, "ike")
        wanted = [sa for sa in self._control.engine.sas.values() if ike in ("", sa.name)]

        def events() -> Iterator[Message | None]:
            for sa in wanted:
                found = {}
                for child in list(sa.children.values()):
                    drops = _counts(self._control.traffic(child).drops)
                    if drops:
                        found[f"{child.name}-{child.uid}"] = {"name": child.name, "drops": drops}
                # None still counts as a step after which others have their turn
                yield {sa.name: {"uniqueid": sa.uid, "child-sas": found}} if found else None

        await stream(client, "ipsecd-drop", events())
        return {}

    async def manual_sas(self, client: Client, message: Message) -> Mapping[str, Any]:
        """SAs that are configured by hand, one event for each pair."""
        now = time.monotonic()
        await stream(client, "ipsecd-manual-sa", ({one.name: _manual(one, now)} for one in self._control.manual_sas()))
        return {}

    async def problems(self, client: Client, message: Message) -> Mapping[str, Any]:
        """The last failure of each connection and child, one event each; without ``ike`` those of strangers too."""
        ike, book = text(message, "ike"), self._control.engine.problems
        found = book.of(ike) if ike else [*book, *book.strangers]
        await stream(client, "ipsecd-problem", map(self._with_retry, found))
        return {}

    def _with_retry(self, problem: Problem) -> Message:
        child, engine = problem.failure.child, self._control.engine
        connection = engine.table.by_name.get(problem.connection)
        names = [child] if child else [one.name for one in connection.children] if connection is not None else []
        waits = [self._control.retry_in(problem.connection, name) for name in names] if problem.initiator else []
        soonest = min((wait for wait in waits if wait is not None), default=None)
        return show_problem(problem) | {"retry-in": int(soonest) if soonest is not None else None}

    async def diff(self, client: Client, message: Message) -> Mapping[str, Any]:
        """What reload-settings would change, one event for each key or section; why it could not, as an error."""
        found = await self._control.preview()
        await stream(client, "ipsecd-change", map(self._show_change, found.changes))
        return {"file": found.file, "warnings": list(found.warnings) or None, "changes": len(found.changes)}

    def _show_change(self, change: Change) -> Message:
        section, _, rest = change.key.partition(".")
        sas = self._control.engine.named(rest.partition(".")[0]) if section == "connections" else []
        return {
            "key": change.key,
            "kind": str(change.kind),
            "before": change.before or None,
            "after": change.after or None,
            "effect": str(change.effect),
            "ike-sas": len(sas) or None,
        }

    async def log_level(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Other log levels, by subsystem; those in effect. They end with the client, unless ``keep`` is yes."""
        wanted = message.get("levels", {})
        if not isinstance(wanted, dict):
            raise CommandError("levels is no section")
        if wanted:
            levels, keep = {name: text(wanted, name) for name in wanted}, truth(message, "keep")
            try:
                self._levels.set(client, levels, keep=keep)
            except ValueError as error:
                raise CommandError(str(error)) from None
        return {"levels": self._levels.in_effect()}


def _manual(pair: ManualSa, now: float) -> Message:
    (params_in, stats_in), (params_out, stats_out) = pair.inbound, pair.outbound
    selectors = params_in.selectors
    return {
        "mode": params_in.mode.name,
        "local-host": params_in.local,
        "remote-host": stats_out.remote,
        "remote-port": stats_out.encap[1] if stats_out.encap else None,
        "encap": "yes" if stats_out.encap else None,
        "spi-in": f"{params_in.spi:08x}",
        "spi-out": f"{params_out.spi:08x}",
        "suite": params_in.suite.name,
        "esn": "1" if params_in.esn else None,
        "bytes-in": stats_in.bytes,
        "packets-in": stats_in.packets,
        "use-in": _ago(stats_in, now),
        "number-in": stats_in.seq,
        "bytes-out": stats_out.bytes,
        "packets-out": stats_out.packets,
        "use-out": _ago(stats_out, now),
        "number-out": stats_out.seq,
        "drops": _counts({r.name: n for stats in (stats_in, stats_out) for r, n in stats.drops.items()}) or None,
        "local-ts": list(dict.fromkeys(str(one.local) for one in selectors)),
        "remote-ts": list(dict.fromkeys(str(one.remote) for one in selectors)),
    }


def _ago(stats: SaStats, now: float) -> int | None:
    return int(max(now - stats.last_use, 0)) if stats.last_use is not None else None


def show_problem(problem: Problem) -> Message:
    """A failure as an event; what nobody has told is left out."""
    failure = problem.failure
    return {
        "ike": problem.connection,
        "child": failure.child or None,
        "cause": failure.cause.value,
        "reason": failure.reason,
        "by": "peer" if failure.by_peer else "us",
        "initiator": problem.initiator,
        "remote-host": problem.peer,
        "time": problem.at.isoformat(timespec="milliseconds"),
        "count": problem.count,
        "over": problem.over,
        "ours": _terms(failure.ours),
        "theirs": _terms(failure.theirs),
    }


def _terms(terms: Terms) -> Message | None:
    found = {
        "proposals": list(terms.proposals) or None,
        "local-ts": list(terms.local_ts) or None,
        "remote-ts": list(terms.remote_ts) or None,
        "id": terms.identity or None,
        "certificates": list(terms.certificates) or None,
    }
    return found if any(found.values()) else None


def _counts(drops: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in drops.items() if count}
