"""Name servers that say nothing: they keep neither guards nor other connections waiting, and no stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ipsec.config import load_text
from ipsec.daemon import ike as ike_module
from ipsec.daemon import paths, reach
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.paths import Paths
from ipsec.daemon.reach import Resolver
from ipsec.daemon.vici import ViciControl
from ipsec.errors import PolicyError
from ipsec.esp.sa import Policy
from tests.daemon.test_ike import LOOP, A, B, FakeBackend, Pair, run, until

PATIENCE_S = 0.5


class Names:
    """In place of ``socket.getaddrinfo``: what is not known yet takes until it is."""

    def __init__(self) -> None:
        self._answers: dict[str, threading.Event] = {}
        self._over = threading.Event()
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self._lock = threading.Lock()
        self.dead: set[str] = set()
        "the answer is that there is none"

    def know(self, name: str) -> None:
        """From now on that is 127.0.0.1."""
        self.dead.discard(name)
        self._answer(name).set()

    def refuse(self, name: str) -> None:
        """From now on there is no such name."""
        self.dead.add(name)
        self._answer(name).set()

    def _answer(self, name: str) -> threading.Event:
        with self._lock:
            return self._answers.setdefault(name, threading.Event())

    def ask(self, name: str, *args: object, **more: object) -> list[Any]:
        with self._lock:
            self.asked.append(name)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            answer = self._answer(name)
            # longer than any test takes; who joins this thread is not kept for good
            for _ in range(1000):
                if answer.wait(0.01) or self._over.is_set():
                    break
            if not answer.is_set() or name in self.dead:
                raise socket.gaierror(socket.EAI_AGAIN, "no answer")
            return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", 0))]
        finally:
            with self._lock:
                self.at_once -= 1

    def end(self) -> None:
        self._over.set()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.ask)
    monkeypatch.setattr(ike_module, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(ike_module, "RETRY_S", 0.05)
    monkeypatch.setattr(paths, "AGAIN_S", 0.05)
    yield found
    found.end()


def connections(**children: str) -> str:
    """A configuration; each connection's peer is a name of its own, and its child says what is given."""
    each = "".join(
        f"""{name} {{ local_addrs = 127.0.0.1
            remote_addrs = {name}.example
            proposals = aes128gcm16-prfsha256-x25519
            local {{ auth = psk
                id = a }}
            remote {{ auth = psk
                id = b }}
            children {{ {child} }} }}
        """
        for name, child in children.items()
    )
    return f"""ipsecd {{ backend = memory }}
        connections {{ {each} }}
        secrets {{ ike-1 {{ secret = for these two alone }} }}"""


def child(name: str, keys: str) -> str:
    return f"{name} {{ esp_proposals = aes128gcm16\n{keys}\n}}\n"


SITE = "remote_ts = 10.{0}.0.0/16\nlocal_ts = 10.1.0.0/16"
TRAP = "start_action = trap"


def control(text: str, backend: FakeBackend) -> IkeControl:
    return IkeControl(load_text(text), backend, fwmark=0)  # type: ignore[arg-type]


def remotes(backend: FakeBackend) -> list[str]:
    return sorted(str(policy.selectors[0].remote) for policy in backend.policies.values())


def test_guards_that_need_no_name_wait_for_none(names: Names) -> None:
    """Not for their own peer's, and not for one of a child beside them or of another connection."""

    async def main() -> None:
        backend = FakeBackend()
        end = control(
            connections(
                one=child("host", TRAP) + child("net", f"{SITE.format(2)}\n{TRAP}"),
                two=child("net", f"{SITE.format(3)}\nstart_action = start"),
                three=child("out", f"{SITE.format(4)}\nmode = drop\n{TRAP}"),
            ),
            backend,
        )
        start = asyncio.create_task(end.start())
        await asyncio.sleep(PATIENCE_S / 4)
        assert not start.done()
        assert remotes(backend) == ["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"]
        begin = time.monotonic()
        await start
        assert time.monotonic() - begin < PATIENCE_S + 20, "dead names never answer"
        names.know("one.example")
        await until(lambda: "127.0.0.1/32" in remotes(backend))
        assert end.guards.has("one", "host")
        await end.stop()

    run(main())


def test_dead_names_do_not_wait_for_each_other(names: Names) -> None:
    async def main() -> None:
        several = {f"c{number}": child("host", TRAP) for number in range(5)}
        end = control(connections(**several), FakeBackend())
        start = asyncio.create_task(end.start())
        await until(lambda: len(names.asked) == 5)
        assert not start.done()
        assert sorted(names.asked) == [f"c{number}.example" for number in range(5)], "each once, all at the same time"
        await start
        await end.stop()

    run(main())


def test_a_start_is_over_when_all_names_are_known(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ike_module, "PATIENCE_S", 20.0)

    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", TRAP)), backend)
        start = asyncio.create_task(end.start())
        await asyncio.sleep(0.05)
        names.know("one.example")
        await asyncio.wait_for(start, 5)
        assert remotes(backend) == ["127.0.0.1/32"]
        await end.stop()

    run(main())


def test_a_name_that_comes_to_be_known_has_its_guard_then(names: Names) -> None:
    """First there is no such name; what was tried then is tried again."""
    names.refuse("one.example")

    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", "start_action = start")), backend)
        await end.start()
        assert not backend.policies
        await until(lambda: ("one", "host") in end.retries.due)
        names.know("one.example")
        await until(lambda: remotes(backend) == ["127.0.0.1/32"])
        await until(lambda: backend.sent)
        await end.stop()

    run(main())


@pytest.mark.parametrize("late", [False, True])
def test_what_cannot_begin_ends_a_start_but_not_one_that_is_over(
    late: bool, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        backend = FakeBackend()

        def refuse(policy: Policy) -> int:
            raise PolicyError("no room")

        backend.add_policy = refuse  # type: ignore[method-assign]
        text = connections(one=child("host", TRAP), two=child("host", TRAP))
        end = control(text, backend)
        if late:
            await end.start()
            names.know("one.example")
            await until(lambda: "one: child host cannot begin: no room" in caplog.text)
            names.know("two.example")
            await until(lambda: "two: child host cannot begin: no room" in caplog.text)
            assert backend.awaited == [{"host"}], "nothing guards what a predecessor closed"
            del backend.add_policy  # type: ignore[method-assign]
            await end.reload(load_text(text))
            assert remotes(backend) == ["127.0.0.1/32"] * 2, "the next reload tries again"
            assert backend.awaited == [{"host"}, set()]
        else:
            names.know("one.example")
            with pytest.raises(PolicyError, match="no room"):
                await end.start()
            assert not backend.awaited
        await end.stop()

    run(main())


def test_a_reload_takes_back_what_waits_for_a_name(names: Names) -> None:
    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("host", TRAP), two=child("host", TRAP))
        end = control(text, backend)
        await end.start()
        renamed = text.replace("remote_addrs = one.example", "remote_addrs = other.example")
        await end.reload(load_text(renamed.replace(TRAP, "start_action = none")))
        names.know("one.example")
        names.know("two.example")
        names.know("other.example")
        await until(lambda: names.at_once == 0)
        await asyncio.sleep(0.1)
        assert not backend.policies
        await end.stop()

    run(main())


def test_what_was_kept_in_stays_in_while_the_new_name_is_dead(names: Names) -> None:
    names.know("one.example")
    names.refuse("other.example")

    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("host", TRAP))
        end = control(text, backend)
        await end.start()
        (old,) = backend.policies
        changed = text.replace("one.example", "other.example")
        await end.reload(load_text(changed))
        await asyncio.sleep(0.1)
        assert set(backend.policies) == {old}
        names.know("other.example")
        await until(lambda: backend.policies and old not in backend.policies)
        assert remotes(backend) == ["127.0.0.1/32"]
        await end.reload(load_text(changed.replace("other.example", "third.example")))
        await asyncio.sleep(0.1)
        assert len(backend.policies) == 1
        await end.reload(load_text("ipsecd { backend = memory }"))
        assert not backend.policies, "nothing is left that could come after it"
        await end.stop()

    run(main())


# -- what a killed predecessor left closed


def test_what_was_left_closed_stays_so_until_the_last_name_is_known(
    names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        backend = FakeBackend()
        text = connections(
            one=child("host", TRAP),
            two=child("host", "start_action = start"),
            # the peer decides from where, not where to
            three=child("net", f"remote_ts = 10.3.0.0/16\n{TRAP}"),
            four=child("net", f"{SITE.format(4)}\n{TRAP}"),
        )
        end = control(text, backend)
        start = asyncio.create_task(end.start())
        await until(lambda: remotes(backend) == ["10.4.0.0/16"])
        assert not backend.awaited
        await start
        assert backend.awaited == [{"host", "10.3.0.0/16"}]
        names.know("one.example")
        await until(lambda: end.guards.has("one", "host"))
        names.know("three.example")
        await until(lambda: end.guards.has("three", "net"))
        await until(lambda: backend.awaited[-1] == {"host"})
        names.know("two.example")
        await until(lambda: backend.awaited[-1] == set())
        assert end.guards.has("two", "host")
        await end.reload(load_text(text.replace("four.example", "five.example")))
        assert backend.awaited.count(set()) == 1, "nobody is asked any more"
        await end.stop()

    run(main())
    told = [record.message for record in caplog.records if "predecessor" in record.message]
    assert told == [
        "until it is known where the peers of one, three, two are, what a killed predecessor kept closed stays so "
        "(1 network); a reload without these connections opens it, and so does a restart",
        "what a killed predecessor kept closed is open, or protected",
    ]


def test_where_nothing_was_left_closed_nothing_is_said(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        backend = FakeBackend()
        backend.left = 0
        end = control(connections(one=child("host", TRAP)), backend)
        await end.start()
        names.know("one.example")
        await until(lambda: end.guards.has("one", "host"))
        assert backend.awaited == [{"host"}]
        await end.stop()

    run(main())
    assert "predecessor" not in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [("one.example", "other.example"), ("one {", "another {"), ("host {", "guest {")],
    ids=["name", "connection", "child"],
)
def test_a_reload_opens_what_nobody_waits_for_any_more(before: str, after: str, names: Names) -> None:
    """A peer that is still waited for stays closed, however the waiting is called; one that is not opens."""

    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("host", TRAP))
        end = control(text, backend)
        await end.start()
        changed = text.replace(before, after, 1)
        assert changed != text
        await end.reload(load_text(changed))
        assert all(backend.awaited)
        await end.reload(load_text("ipsecd { backend = memory }"))
        assert backend.awaited[-1] == set()
        await end.stop()

    run(main())


@pytest.mark.parametrize("refused", [False, True])
def test_what_vici_unloads_is_not_waited_for(refused: bool, names: Names, caplog: pytest.LogCaptureFixture) -> None:
    """Be it that its peer is not known, or that its guard could not be put in place when it was."""

    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", TRAP)), backend)
        await end.start()
        if refused:

            def refuse(policy: Policy) -> int:
                raise PolicyError("no room")

            backend.add_policy = refuse  # type: ignore[method-assign]
            names.know("one.example")
            await until(lambda: "one: child host cannot begin: no room" in caplog.text)
        assert backend.awaited == [{"host"}]
        nobody = cast(Any, None)
        assert await ViciControl(end, cast(Any, backend), nobody, nobody, nobody).unload_connection("one")
        assert backend.awaited == [{"host"}, set()]
        await end.stop()

    run(main())


def test_a_guard_that_somebody_else_has_installed_is_not_waited_for(names: Names) -> None:
    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", "start_action = start")), backend)
        await end.start()
        assert backend.awaited == [{"host"}]
        (connection,) = end.engine.table.by_name.values()
        names.know("one.example")
        await end.add_guard(connection, connection.children[0], trap=True)
        assert end.guards.has("one", "host")
        await until(lambda: backend.awaited[-1] == set())
        await end.stop()

    run(main())


def test_nor_is_one_that_somebody_has_installed_and_taken_away_again(names: Names) -> None:
    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", "start_action = start")), backend)
        await end.start()
        (connection,) = end.engine.table.by_name.values()
        names.know("one.example")
        await end.add_guard(connection, connection.children[0], trap=True)
        assert end.guards.remove("one", "host")
        assert backend.awaited[-1] == set()
        await end.stop()

    run(main())


def test_what_is_expected_is_not_searched_for_each(names: Names) -> None:
    """Thousands of connections whose names come late would take each other's time."""

    class Keys(dict[tuple[str, str], Any]):
        def __iter__(self) -> Iterator[tuple[str, str]]:
            raise AssertionError("all of them are looked at for one")

    async def main() -> None:
        end = control(connections(one=child("host", "start_action = start")), FakeBackend())
        (one,) = end.loaded.config().connections
        guards = end.guards
        guards._expected = Keys()
        expected = [guards.expect(replace(one, name=f"c{n % 50}"), replace(one.children[0], name=f"n{n}"))
                    for n in range(100)]  # fmt: skip
        for guard in expected:
            guards.forget(guard)
            guards.release(guard.connection.name)
        assert not guards._expecting
        await end.stop()

    run(main())


def test_a_reload_asks_for_a_name_no_more_often(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ike_module, "RESOLVE_S", 0.2)
    names.know("one.example")

    async def main() -> None:
        text = connections(one=child("net", SITE.format(2)))
        end = control(text, FakeBackend())
        await end.start()
        for _ in range(20):
            await end.reload(load_text(text))
        before = len(names.asked)
        await asyncio.sleep(0.5)
        assert len(names.asked) - before < 8
        await end.reload(load_text(text.replace("one.example", "127.0.0.1")))
        await asyncio.sleep(0.25)
        before = len(names.asked)
        await asyncio.sleep(0.4)
        assert len(names.asked) == before, "it is loaded no longer"
        await end.stop()

    run(main())


def test_a_tunnel_comes_up_beside_dead_names(names: Names) -> None:
    """More of them than are asked for at once."""
    dead = "".join(
        f"d{number} {{ remote_addrs = d{number}.example\n local {{ auth = psk\n id = a }}\n remote {{ auth = psk\n"
        f"id = b{number} }}\n children {{ n {{ start_action = start }} }} }}\n"
        for number in range(reach.LOOKUPS_MAX + 5)
    )

    async def main() -> None:
        pair = Pair(A.replace("connections {", f"connections {{ {dead}", 1), B)
        begin = time.monotonic()
        await pair.start()
        await until(lambda: pair.backends[0].sas)
        assert time.monotonic() - begin < PATIENCE_S + 20, "dead names never answer"
        await until(lambda: names.at_once == reach.LOOKUPS_MAX)
        await pair.stop()

    run(main())
    assert names.most == reach.LOOKUPS_MAX


def test_whoever_asks_for_a_name_that_is_asked_for_waits_with_the_others(names: Names) -> None:
    async def main() -> None:
        resolver = Resolver()
        one, other = (asyncio.create_task(resolver.resolve("one.example")) for _ in range(2))
        await until(lambda: names.asked)
        one.cancel()
        names.know("one.example")
        assert await other == (LOOP,)
        assert names.asked == ["one.example"]
        assert resolver.known("one.example") == (LOOP,)

    run(main())


def test_what_cannot_be_a_name_has_no_address() -> None:
    async def main() -> None:
        resolver = Resolver()
        assert await resolver.resolve("x" * 300) == ()
        assert resolver.trouble("x" * 300) == "it cannot be a name"

    run(main())


def test_what_keeps_us_from_a_peer_is_said(names: Names) -> None:
    """A name server that is silent, a name that is none and a route that is missing want other people."""

    async def main() -> None:
        resolver = Resolver()
        way = Paths(FakeBackend(), resolver, fwmark=0, outside=True)  # type: ignore[arg-type]
        names.refuse("dead.example")
        names.know("live.example")
        await resolver.resolve("dead.example")
        await resolver.resolve("live.example")
        assert way.obstacle(["dead.example"]) == "no way to dead.example: no answer"
        both = way.obstacle(["dead.example", "never-asked.example"])
        assert both == "no way to dead.example, never-asked.example: dead.example: no answer"
        assert way.obstacle(["dead.example", "live.example"]).endswith("live.example: there is no route")
        assert way.obstacle(["192.0.2.1"]) == "no way to 192.0.2.1: there is no route"
        assert way.obstacle(["2001:db8::1"]) == "no way to 2001:db8::1: no IPv6 here"
        assert way.obstacle(["%any"]) == "no way to %any"
        assert way.obstacle([]) == "no way to a peer without remote_addrs"
        names.know("dead.example")
        await resolver.resolve("dead.example")
        assert not resolver.trouble("dead.example")

    run(main())


PROGRAM = """
import asyncio, logging, socket, sys, time
from ipsec import daemon
from ipsec.backend.userspace import UserspaceBackend
from ipsec.config import load_text
from ipsec.daemon import ike
from tests.backend import python_core

def silent(*args, **more):
    print("asked\\n", end="", flush=True)
    time.sleep(60)

socket.getaddrinfo = silent
ike.PATIENCE_S = {patience}
{more}
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print("exit", int(daemon.run(load_text(sys.argv[1]), core=python_core)), flush=True)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one in memory, for whose peers' names nobody ever has an answer."""
    with ExitStack() as stack:

        def start(patience: float, *, loop: str = "asyncio", more: str = "") -> subprocess.Popen[str]:
            keys = f"ipsecd {{ event_loop = {loop}\n state_dir = {tmp_path}\n vici_socket = none\n"
            text = connections(one=child("host", TRAP), two=child("host", TRAP)).replace("ipsecd {", keys, 1)
            program = PROGRAM.format(patience=patience, more=more)
            process = subprocess.Popen([sys.executable, "-c", program, text], stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def hear(process: subprocess.Popen[str], wanted: str) -> None:
    """Read until that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise AssertionError(f"it ended without {wanted!r}")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("patience", "when"), [(50, "asked"), (0.1, "ready")])
def test_a_stop_does_not_wait_for_names(
    patience: float, when: str, loop: str, daemon: Callable[..., subprocess.Popen[str]]
) -> None:
    """Neither during the start nor later, and the process ends with the daemon."""
    process = daemon(patience, loop=loop)
    hear(process, when)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0].splitlines()
    took = time.monotonic() - begin
    assert "SIGTERM: stopping" in said
    assert said[-2:] == ["stopped", "exit 0"]
    assert "ready" not in said
    assert took < 20, said


def test_a_second_signal_during_the_start_forces(daemon: Callable[..., subprocess.Popen[str]]) -> None:
    process = daemon(50, more="UserspaceBackend.quiesce = lambda self: asyncio.sleep(60)")
    for wanted in ("asked", "SIGINT: stopping"):
        hear(process, wanted)
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT


# -- what changes while a peer is looked up


def vici_of(end: IkeControl, backend: FakeBackend) -> ViciControl:
    nobody = cast(Any, None)
    return ViciControl(end, cast(Any, backend), nobody, nobody, nobody)


async def all_answered(names: Names) -> None:
    await until(lambda: names.at_once == 0)
    await asyncio.sleep(0.1)


def children_of(end: IkeControl) -> list[tuple[str, str]]:
    """Remote addresses and remote selectors of what is being negotiated."""
    return sorted(
        (
            ",".join(sa.connection.remote_addrs),
            ",".join(str(ts) for config, _ in sa.auth.configs for ts in config.remote_ts),
        )
        for sa in end.engine.sas.values()
        if sa.auth is not None
    )


@pytest.mark.parametrize("what", ["start", "install"])
def test_what_was_unloaded_does_not_come_up(what: str, names: Names) -> None:
    async def main() -> None:
        backend = FakeBackend()
        action = "start_action = start\nlocal_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16" if what == "start" else ""
        end = control(connections(one=child("net", action)), backend)
        start = asyncio.create_task(end.start())
        await until(lambda: names.asked)
        await start
        if what == "install":
            (connection,) = end.engine.table.by_name.values()
            asked = asyncio.create_task(end.add_guard(connection, connection.children[0], trap=True))
            await asyncio.sleep(0)
        assert await vici_of(end, backend).unload_connection("one")
        names.know("one.example")
        await all_answered(names)
        assert not end.engine.sas
        assert not backend.sent
        assert not backend.policies
        if what == "install":
            await asked
        await end.stop()

    run(main())


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("10.2.0.0/16", "10.2.0.0/24", ("one.example", "10.2.0.0/24")),
        ("remote_addrs = one.example", "remote_addrs = other.example", ("other.example", "10.2.0.0/16")),
        ("one {", "another {", ("one.example", "10.2.0.0/16")),
    ],
    ids=["child", "peer", "name"],
)
def test_what_has_changed_comes_up_as_it_is_now(before: str, after: str, wanted: tuple[str, str], names: Names) -> None:
    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("net", f"{SITE.format(2)}\nstart_action = start"))
        end = control(text, backend)
        await end.start()
        await until(lambda: names.asked)
        changed = text.replace(before, after, 1)
        assert changed != text
        await end.reload(load_text(changed))
        names.know("one.example")
        names.know("other.example")
        await all_answered(names)
        assert children_of(end) == [wanted]
        await end.stop()

    run(main())


def test_what_a_packet_asked_for_goes_on_with_who_is_the_peer_now(names: Names) -> None:
    """Nobody else sees to it: there is no start action."""

    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("net", SITE.format(2)))
        end = control(text, backend)
        await end.start()
        (connection,) = end.engine.table.by_name.values()
        asked = asyncio.create_task(end.connect(connection, connection.children[0]))
        await until(lambda: names.asked)
        await end.reload(load_text(text.replace("one.example", "other.example")))
        names.know("one.example")
        names.know("other.example")
        sa = await asked
        assert sa is not None
        assert children_of(end) == [("other.example", "10.2.0.0/16")]
        await end.stop()

    run(main())


# -- no name, and no route


def selectors(backend: FakeBackend) -> list[tuple[str, str]]:
    pairs = [pair for policy in backend.policies.values() for pair in policy.selectors]
    return sorted((str(pair.local), str(pair.remote)) for pair in pairs)


@pytest.mark.parametrize(("by", "action"), [("file", "trap"), ("file", "start"), ("vici", "none")])
def test_an_address_that_nothing_leads_to_is_guarded_all_the_same(
    by: str, action: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The route may come any moment, and what a predecessor kept closed opens."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(paths, "source_address", lambda remote, mark: found.get(str(remote)))

    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("host", f"start_action = {action}"))
        text = text.replace("local_addrs = 127.0.0.1", "").replace("one.example", "127.0.0.1")
        end = control(text, backend)
        await end.start()
        if by == "vici":
            (connection,) = end.engine.table.by_name.values()
            await end.add_guard(connection, connection.children[0], trap=True)
        assert selectors(backend) == [("0.0.0.0/0", "127.0.0.1/32")]
        assert backend.awaited == [set()], "it is there"
        assert "cannot wait for traffic" not in caplog.text
        (connection,) = end.engine.table.by_name.values()
        assert await end.connect(connection, connection.children[0]) is None
        assert selectors(backend) == [("0.0.0.0/0", "127.0.0.1/32")]
        # and when there is a way it is for the address where that begins
        found["127.0.0.1"] = LOOP
        before, reqid = set(backend.policies), end.guards.reqid("one", "host")
        assert await end.connect(connection, connection.children[0]) is not None
        assert selectors(backend) == [("127.0.0.1/32", "127.0.0.1/32")]
        assert not before & set(backend.policies)
        assert end.guards.reqid("one", "host") == reqid
        assert await vici_of(end, backend).unload_connection("one")
        assert not backend.policies
        await end.stop()

    run(main())


def test_a_guard_that_cannot_be_narrowed_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(paths, "source_address", lambda remote, mark: None)

    async def main() -> None:
        backend = FakeBackend()
        text = connections(one=child("host", TRAP)).replace("local_addrs = 127.0.0.1", "")
        end = control(text.replace("one.example", "127.0.0.1"), backend)
        await end.start()
        (policy,) = backend.policies

        def refuse(policy: Policy) -> int:
            raise PolicyError("no room")

        backend.add_policy = refuse  # type: ignore[method-assign]
        monkeypatch.setattr(paths, "source_address", lambda remote, mark: LOOP)
        (connection,) = end.engine.table.by_name.values()
        assert await end.connect(connection, connection.children[0]) is not None
        assert "one: child host keeps in more than it has to: no room" in caplog.text
        assert set(backend.policies) == {policy}
        assert end.guards.wanted(policy) is not None
        await end.stop()
        del backend.add_policy  # type: ignore[method-assign]

    run(main())


def test_a_name_that_nothing_leads_to_is_guarded_all_the_same(
    names: Names, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its address is known, and the route may come any moment."""
    monkeypatch.setattr(paths, "source_address", lambda remote, mark: None)
    names.know("one.example")

    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", TRAP)).replace("local_addrs = 127.0.0.1", ""), backend)
        await end.start()
        assert selectors(backend) == [("0.0.0.0/0", "127.0.0.1/32")]
        assert end.guards.has("one", "host")
        assert "cannot wait for traffic" not in caplog.text
        await end.stop()

    run(main())


def test_a_route_is_reason_to_ask_again_at_once(
    names: Names, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the one to the name server. Until then the guard is expected, which is nothing to warn of."""
    monkeypatch.setattr(ike_module, "RETRY_S", 60.0)
    names.refuse("one.example")

    async def main() -> None:
        backend = FakeBackend()
        end = control(connections(one=child("host", TRAP)), backend)
        await end.start()
        await asyncio.sleep(0.05)
        assert not backend.policies
        assert "cannot wait for traffic" not in caplog.text
        names.know("one.example")
        end._host_changed()
        await until(lambda: remotes(backend) == ["127.0.0.1/32"])
        assert end.guards.has("one", "host")
        await end.stop()

    run(main())


def test_many_changes_are_one_reason_to_ask(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host whose routes come and go, no name server hears each time of all that has no address."""
    monkeypatch.setattr(ike_module, "RETRY_S", 60.0)
    names.refuse("one.example")
    again = 1.0

    async def main() -> None:
        end = control(connections(one=child("host", TRAP)), FakeBackend())
        await end.start()
        monkeypatch.setattr(paths, "AGAIN_S", again)
        # it has waited long enough since the first time, and asks at once
        await asyncio.sleep(0.1)
        before = len(names.asked)
        end._host_changed()
        await until(lambda: len(names.asked) == before + 1 and not end._resolver._asked)
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        for _ in range(5):
            end._host_changed()
            await asyncio.sleep(0.01)
        late = loop.time() - asked_at >= again
        assert late or len(names.asked) == before + 1
        # nor is any of them lost
        names.know("one.example")
        await until(lambda: end.guards.has("one", "host"))
        assert len(names.asked) == before + 2
        await end.stop()

    run(main())


def test_a_change_while_a_name_is_asked_for_is_not_lost(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer may be one from before."""
    monkeypatch.setattr(ike_module, "RETRY_S", 60.0)

    async def main() -> None:
        end = control(connections(one=child("host", TRAP)), FakeBackend())
        starting = asyncio.ensure_future(end.start())
        await until(lambda: names.asked)
        end._host_changed()
        names.refuse("one.example")
        await until(lambda: not end._resolver._asked)
        names.know("one.example")
        await until(lambda: end.guards.has("one", "host"))
        await starting
        await end.stop()

    run(main())
