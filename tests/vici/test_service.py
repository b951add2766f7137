"""The commands on a whole daemon, with nothing outside the process but the socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ipsec.backend.base import Datagram
from ipsec.config import load, values
from ipsec.daemon import vici
from ipsec.daemon.doorstep import WAITING_MAX, Doorstep
from ipsec.daemon.run import Daemon
from ipsec.errors import BackendError
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import IkeDown, IkeUp
from ipsec.ike.events import Path as IkePath
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.state import IkeState
from ipsec.vici import actions
from ipsec.vici.client import Session, ViciError, connect
from ipsec.vici.commands import ViciService

FILE = """
ipsecd {{
  backend = memory
  workers = 0
  state_dir = {folder}
  vici_socket = {folder}/s
}}
connections {{
  old {{
    remote_addrs = 192.0.2.2
    local {{
      auth = psk
      id = a
    }}
    remote {{
      auth = psk
      id = b
    }}
    children {{
      net {{
        remote_ts = 10.2.0.0/16
      }}
    }}
  }}
}}
secrets {{
  ike-old {{
    secret = of no worth outside
  }}
}}
"""
CHILD = {"local_ts": ["10.1.0.0/16"], "remote_ts": ["10.3.0.0/16"]}
PSK = {"auth": "psk", "id": "a"}
CONNECTION: dict[str, Any] = {
    "version": "2",
    "remote_addrs": ["192.0.2.3", "192.0.2.4"],
    "proposals": ["aes128gcm16-sha256-x25519", "default"],
    "local": PSK,
    "remote": PSK | {"id": "c"},
    "children": {"net3": CHILD},
}
Test = Callable[[Daemon, Session], Awaitable[None]]


@asynccontextmanager
async def daemon(folder: Path, more: str = "") -> AsyncIterator[tuple[Daemon, Session]]:
    """A daemon and a client of it; ``more`` stands in its file too."""
    file = folder / "swanctl.conf"
    file.touch(mode=0o600)
    file.write_text(FILE.format(folder=folder) + more)
    one = Daemon(load(str(file)))
    await one.start()
    try:
        async with await connect(f"{folder}/s") as session:
            yield one, session
    finally:
        await one.stop()


def with_daemon(folder: Path, test: Test, more: str = "") -> None:
    """Run a test."""

    async def main() -> None:
        async with daemon(folder, more) as (one, session):
            await test(one, session)

    asyncio.run(main())


async def settled(one: Daemon, session: Session) -> IkeEngine:
    """The engine with all that was loaded: it takes that soon, or when a command needs it."""
    assert one.ike is not None
    await session.request("get-conns")
    return one.ike.engine


def names(found: Any) -> list[str]:
    """A list of bytes as text."""
    return [item.decode() for item in found]


async def refused(session: Session, command: str, message: dict[str, Any]) -> str:
    """What a command that fails says."""
    with pytest.raises(ViciError) as error:
        await session.request(command, message)
    return str(error.value).removeprefix(f"{command}: ")


def test_who_hangs_up_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what its traps are for would leave in clear."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        ike, known = one.ike, asyncio.Event()
        find = ike._paths.to

        async def path(connection: Any) -> Any:
            await known.wait()
            return await find(connection)

        monkeypatch.setattr(ike._paths, "to", path)
        # without its own networks it has to know where the peer is
        trap = CONNECTION | {"children": {"net3": {"start_action": "trap"}}}
        async with await connect(f"{tmp_path}/s") as other:
            asked = asyncio.create_task(other.request("load-conn", {"new": trap}))
            while ike.loaded.connection("new") is None:
                await asyncio.sleep(0.01)
            asked.cancel()
        await asyncio.sleep(0.1)
        assert not ike.guards.has("new", "net3")
        known.set()
        async with asyncio.timeout(10):
            while not ike.guards.has("new", "net3"):
                await asyncio.sleep(0.01)

    with_daemon(tmp_path, test)


def test_connections_of_the_file_and_of_vici(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-conn", {"new": CONNECTION})
        assert names((await session.request("get-conns"))["conns"]) == ["old", "new"]
        # read again, the file changes what is its own
        file = tmp_path / "swanctl.conf"
        file.write_text(file.read_text().replace("  old {", "  renamed {"))
        await session.request("reload-settings")
        assert names((await session.request("get-conns"))["conns"]) == ["new", "renamed"]
        # a name that vici loads is vici's from then on
        await session.request("load-conn", {"renamed": CONNECTION})
        await session.request("reload-settings")
        listed = [item async for item in session.stream("list-conns", "list-conn", {"ike": "renamed"})]
        assert names(listed[0]["renamed"]["remote_addrs"]) == ["192.0.2.2"]
        for name in ("new", "renamed"):
            await session.request("unload-conn", {"name": name})
        assert names((await session.request("get-conns"))["conns"]) == []
        file.write_text("connections {")
        assert "closing" in await refused(session, "reload-settings", {})
        assert await refused(session, "unload-conn", {"name": "new"}) == "unload: connection 'new' not found"

    with_daemon(tmp_path, test)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"nonsense": "yes"}, "connections.new.nonsense: unknown key"),
        ({"rekey_time": "soon"}, "connections.new.rekey_time: "),
        ({"children": {"net": {"esp_proposals": ["aes128-sha1", "rot13"]}}}, "connections.new.children.net.esp_prop"),
        ({"version": b"\xff"}, "not UTF-8"),
        ({"local": {"auth": "xauth"}}, "IKEv1"),
        ({"local": {"auth": "eap-peap"}}, "eap-md5, eap-mschapv2, eap-gtc, eap-tls"),
        ({"version": "1"}, "IKEv1"),
    ],
)
def test_what_is_wrong_is_said_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], why: str
) -> None:
    async def test(one: Daemon, session: Session) -> None:
        said = await refused(session, "load-conn", {"new": CONNECTION | change})
        assert why in said
        assert "vici" not in said
        assert said in caplog.text
        assert names((await session.request("get-conns"))["conns"]) == ["old"]

    with_daemon(tmp_path, test)


def test_changed_children_leave_ike_sas_alone(tmp_path: Path) -> None:
    """Equal but for the children: IKE_SAs go on with the new ones. Otherwise they keep what they were made with."""

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-conn", {"new": CONNECTION})
        engine = await settled(one, session)
        before = engine.table.by_name["new"]
        path = IkePath(ip_address("192.0.2.1"), 4500, ip_address("192.0.2.3"), 4500)
        sa = engine.new_sa(before, initiator=True, path=path)
        changed = CONNECTION | {"children": {"net3": CHILD, "net4": CHILD | {"start_action": "trap"}}}
        await session.request("load-conn", {"new": changed})
        await settled(one, session)
        assert sa.connection is engine.table.by_name["new"]
        assert [child.name for child in sa.connection.children] == ["net3", "net4"]
        policies = [item async for item in session.stream("list-policies", "list-policy", {"trap": "yes"})]
        assert [name for item in policies for name in item] == ["new/net4"]
        await session.request("load-conn", {"new": changed | {"dpd_delay": "10s"}})
        await settled(one, session)
        assert sa.connection is not engine.table.by_name["new"]
        await session.request("unload-conn", {"name": "new"})
        assert [item async for item in session.stream("list-policies", "list-policy", {"trap": "yes"})] == []
        assert sa.state is IkeState.CREATED
        sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


def test_a_peer_that_comes_at_once_finds_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """charon answers by it when load-conn returns; a peer that is refused for want of a connection may give up."""
    monkeypatch.setattr(vici, "SETTLE_S", 0.2)
    local, remote = ip_address("192.0.2.1"), ip_address("192.0.2.3")
    message = bytes(8) + bytes([1] * 8) + bytes([0, 0x20, 34, 0x08]) + bytes(4)
    init = message + (28).to_bytes(4, "big")
    other = init[:18] + bytes([37]) + init[19:]

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        heard = []
        engine = one.ike.engine

        def receive(data: bytes, path: IkePath, now: float) -> None:
            heard.append((data, "new" in engine.table.by_name))

        monkeypatch.setattr(engine, "receive_datagram", receive)
        await session.request("load-conn", {"new": CONNECTION})
        for data in (init, other):
            one.ike.on_datagram(Datagram(data, remote, 500, local, 500))
        assert heard == [(other, False)]  # what needs no connection goes on
        await asyncio.sleep(0.3)
        assert heard[1:] == [(init, True)]
        one.ike.on_datagram(Datagram(init, remote, 500, local, 500))
        assert len(heard) == 3

    with_daemon(tmp_path, test)


INIT = Datagram(
    bytes(8) + bytes(8) + bytes([0, 0x20, 34, 0x08]) + bytes(4) + (28).to_bytes(4, "big"),
    ip_address("192.0.2.3"),
    500,
    ip_address("192.0.2.1"),
    500,
)


def test_only_so_many_peers_wait_for_what_is_loaded() -> None:
    """And when they need not any more, the loop has its turns."""

    async def main() -> None:
        door = Doorstep()
        assert not door.keeps(INIT)
        door.close()
        assert not door.keeps(INIT._replace(data=b"short"))
        assert not door.keeps(INIT._replace(data=INIT.data + b"more"))
        response = INIT.data[:19] + b"\x20" + INIT.data[20:]
        assert not door.keeps(INIT._replace(data=response))
        assert [door.keeps(INIT) for _ in range(WAITING_MAX + 1)] == [True] * WAITING_MAX + [False]
        heard: list[Datagram] = []
        door.open(heard.append)
        assert not door.keeps(INIT)
        while len(heard) < WAITING_MAX:
            before = len(heard)
            await asyncio.sleep(0)
            assert len(heard) <= before + 1
        await asyncio.sleep(0)
        assert heard == [INIT] * WAITING_MAX

    asyncio.run(main())


def test_who_has_waited_goes_in_however_much_more_is_loaded() -> None:
    """A long series of commands must not keep the first ones out for as long as it takes."""

    async def main() -> None:
        door = Doorstep()
        heard: list[Datagram] = []

        def deliver(datagram: Datagram) -> None:
            heard.append(datagram)
            door.close()
            if len(heard) == 1:
                raise ValueError("a bug")

        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        sent = [INIT._replace(port=port) for port in range(5)]
        door.close()
        assert all(map(door.keeps, sent[:3]))
        door.open(deliver)
        await asyncio.sleep(0)
        assert all(map(door.keeps, sent[3:]))
        await asyncio.sleep(0.01)
        assert heard == sent[:3]
        door.open(deliver)
        await asyncio.sleep(0.01)
        assert heard == sent

    asyncio.run(main())


def test_what_cannot_be_loaded_lets_peers_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vici, "SETTLE_S", 0.05)

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        heard = []
        monkeypatch.setattr(one.ike.engine, "receive_datagram", lambda data, path, now: heard.append(data))

        def fail(*args: object) -> None:
            raise ValueError("a bug")

        with monkeypatch.context() as failing:
            failing.setattr(one.ike.engine, "load", fail)
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await session.request("load-conn", {"new": CONNECTION})
            one.ike.on_datagram(INIT)
            assert heard == []
            await asyncio.sleep(0.2)
        assert heard == [INIT.data]

    with_daemon(tmp_path, test)


def test_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "a secret nobody may see"

    async def test(one: Daemon, session: Session) -> None:
        assert names((await session.request("get-shared"))["keys"]) == ["ike-old"]
        message = {"type": "IKE", "data": secret, "owners": ["a", "c"]}
        await session.request("load-shared", message | {"id": "x"})
        await session.request("load-shared", message | {"id": "x", "owners": ["%any"]})
        await session.request("load-shared", message)
        await session.request("load-shared", message)
        engine = await settled(one, session)
        assert [len(secret.owners) for secret in engine.credentials.secrets] == [0, 0, 2]
        assert names((await session.request("get-shared"))["keys"]) == ["ike-old", "x"]
        await session.request("load-shared", {"type": "PPK", "id": "p", "data": secret, "owners": ["pq", "@#0aff"]})
        assert [list(map(str, ppk.ids)) for ppk in (await settled(one, session)).credentials.ppks] == [["pq", "0a:ff"]]
        assert len(engine.credentials.secrets) == 3
        await session.request("unload-shared", {"id": "p"})
        assert (await settled(one, session)).credentials.ppks == ()
        for kind in ("odd", "PIN"):
            assert "invalid shared key type" in await refused(session, "load-shared", message | {"type": kind})
        await session.request("unload-shared", {"id": "x"})
        await session.request("unload-shared", {"id": "x"})
        await session.request("clear-creds")
        assert (await settled(one, session)).credentials.secrets == ()
        await session.request("reload-settings")
        assert names((await session.request("get-shared"))["keys"]) == ["ike-old"]

    caplog.set_level(logging.DEBUG)
    with_daemon(tmp_path, test)
    assert secret not in caplog.text


def test_eap_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are no preshared keys, and have names of the same space."""
    secret = "a secret nobody may see"
    nt_hash = bytes(range(0xA0, 0xB0))

    async def test(one: Daemon, session: Session) -> None:
        message = {"type": "EAP", "data": secret, "owners": ["carol", "%any"], "id": "e"}
        await session.request("load-shared", message)
        await session.request("load-shared", message | {"type": "xauth", "owners": ["dave"], "id": "x"})
        await session.request("load-shared", message | {"type": "ntlm", "data": nt_hash, "owners": ["erin"], "id": "n"})
        credentials = (await settled(one, session)).credentials
        assert [one.name for one in credentials.secrets] == ["ike-old"]
        assert [(one.name, [*map(str, one.owners)], one.is_nt_hash) for one in credentials.eap_secrets] == [
            ("e", ["carol"], False),
            ("x", ["dave"], False),
            ("n", ["erin"], True),
        ]
        assert names((await session.request("get-shared"))["keys"]) == ["ike-old", "e", "x", "n"]
        said = await refused(session, "load-shared", message | {"type": "NTLM", "id": "short"})
        assert said.startswith("23 octets, an NT hash has 16")
        assert await refused(session, "load-shared", message | {"data": ""}) == "shared key data missing"
        # whatever has the name, it is replaced
        await session.request("load-shared", message | {"type": "IKE", "id": "x"})
        credentials = (await settled(one, session)).credentials
        assert [one.name for one in credentials.eap_secrets] == ["e", "n"]
        assert [one.name for one in credentials.secrets] == ["ike-old", "x"]
        await session.request("unload-shared", {"id": "e"})
        assert [one.name for one in (await settled(one, session)).credentials.eap_secrets] == ["n"]
        await session.request("clear-creds")
        assert (await settled(one, session)).credentials.eap_secrets == ()
        file = tmp_path / "swanctl.conf"
        file.write_text(file.read_text() + f"\nsecrets {{\n eap-f {{\n  id = f\n  secret = {secret}\n }}\n}}\n")
        await session.request("reload-settings")
        assert [one.name for one in (await settled(one, session)).credentials.eap_secrets] == ["eap-f"]
        file.write_text(file.read_text().replace("eap-f", "eap-g"))
        await session.request("reload-settings")
        assert [one.name for one in (await settled(one, session)).credentials.eap_secrets] == ["eap-g"]

    caplog.set_level(logging.DEBUG)
    with_daemon(tmp_path, test)
    for shown in (secret, nt_hash.hex(), repr(nt_hash)):
        assert shown not in caplog.text


def _certificate(*, ca: bool) -> tuple[bytes, bytes]:
    """A certificate and its key, DER and PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.example")])
    now = datetime.now(UTC)
    day = timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now - day, now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
    found = builder.sign(key, hashes.SHA256())
    return found.public_bytes(Encoding.DER), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_certificates_and_keys(tmp_path: Path) -> None:
    end, key = _certificate(ca=False)
    root, _ = _certificate(ca=True)
    conn = CONNECTION | {"local": {"auth": "pubkey", "certs": [end]}, "remote": {"auth": "pubkey", "cacerts": [root]}}

    async def test(one: Daemon, session: Session) -> None:
        # charon takes them in any order
        await session.request("load-conn", {"new": conn})
        found = await session.request("load-key", {"type": "any", "data": key})
        key_id = found["id"].decode()
        assert names((await session.request("get-keys"))["keys"]) == [key_id]
        engine = await settled(one, session)
        local = engine.table.by_name["new"].local
        assert str(local.id) == "CN=gateway.example"
        assert engine.credentials.private_key_for(local.certs[0]) is not None
        assert "another type" in await refused(session, "load-key", {"type": "rsa", "data": key})
        assert "invalid key type" in await refused(session, "load-key", {"type": "bliss", "data": key})
        for command in ("load-key", "load-cert"):
            said = await refused(
                session, command, {"type": "any" if command == "load-key" else "X509", "data": b"\x30"}
            )
            assert said
        await session.request("load-cert", {"type": "X509", "flag": "CA", "data": root})
        assert "not the certificate of" in await refused(
            session, "load-cert", {"type": "X509", "flag": "CA", "data": end}
        )
        listed = [item async for item in session.stream("list-certs", "list-cert")]
        assert {(item["flag"], item.get("has_privkey")) for item in listed} == {(b"NONE", b"yes"), (b"CA", None)}
        assert [item async for item in session.stream("list-certs", "list-cert", {"flag": "AA"})] == []
        await session.request("load-authority", {"mine": {"cacert": root, "ocsp_uris": ["http://127.0.0.1/"]}})
        assert names((await session.request("get-authorities"))["authorities"]) == ["mine"]
        await session.request("clear-creds")
        assert names((await session.request("get-authorities"))["authorities"]) == ["mine"]
        assert (await session.request("get-keys")) == {"keys": []}
        await session.request("unload-authority", {"name": "mine"})
        assert "cacert" in await refused(session, "load-authority", {"mine": {"crl_uris": ["http://127.0.0.1/"]}})

    with_daemon(tmp_path, test)


@pytest.mark.parametrize(
    ("subject", "count"),
    [
        ("C=CH, CN=moon", 1),
        ("C=CH,CN=moon", 1),
        ("/C=CH/CN=moon", 1),
        ("C=ch, CN=MOON", 1),
        ("C=CH, CN=*", 1),
        ("moon.example.org", 1),
        ("*.example.org", 1),
        ("%any", 1),
        ("CN=moon, C=CH", 0),
        ("moon", 0),
    ],
)
def test_certificates_by_subject(tmp_path: Path, subject: str, count: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=moon,C=CH")
    begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, begin, end)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("moon.example.org")]), False)
    data = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-cert", {"type": "X509", "flag": "NONE", "data": data})
        assert len([item async for item in session.stream("list-certs", "list-cert", {"subject": subject})]) == count
        assert "invalid subject" in await refused(session, "list-certs", {"subject": "fqdn:^(.*$"})

    with_daemon(tmp_path, test)


def test_words_for_yes_and_no() -> None:
    """The layers do not let the one module use the other's."""
    assert (values.TRUE, (*values.FALSE, "")) == (actions.TRUE, actions.FALSE)


@pytest.mark.parametrize("word", ["yes", "YES", "true", "True", "enabled", "1", True])
def test_yes_in_all_its_spellings(tmp_path: Path, word: object) -> None:
    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-conn", {"new": CONNECTION | {"children": {"n": CHILD | {"start_action": "trap"}}}})
        await session.request("load-pool", {"p": {"addrs": "10.9.0.0/24"}})
        await settled(one, session)
        assert [item async for item in session.stream("list-policies", "list-policy", {"trap": word})] != []
        assert "leases" in (await session.request("get-pools", {"leases": word}))["p"]
        assert "" not in (await session.request("get-counters", {"all": word}))["counters"]

    with_daemon(tmp_path, test)


def test_what_is_neither_yes_nor_no(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        await session.request("initiate", {"ike": "old", "timeout": "-1"})
        for command, key, more in (
            ("list-policies", "trap", {}),
            ("get-pools", "leases", {}),
            ("get-counters", "all", {}),
            ("reset-counters", "all", {}),
            ("terminate", "force", {"ike": "old"}),
        ):
            for odd in ("2", "ja", ["yes"], {"yes": "yes"}):
                assert await refused(session, command, more | {key: odd}) == f"{key} is neither yes nor no"
        for word in ("no", "False", "0", "disabled", ""):
            assert [item async for item in session.stream("list-policies", "list-policy", {"trap": word})] == []
        # nothing was begun before it was refused
        await session.request("terminate", {"ike": "old", "force": "TRUE"})

    with_daemon(tmp_path, test)


def test_pools(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-pool", {"p": {"addrs": "10.9.0.0/24", "dns": ["10.9.0.1", "10.9.0.2"]}})
        pool = (await settled(one, session)).pools["p"]
        address = pool.acquire("somebody")
        assert address is not None
        await session.request("load-pool", {"p": {"addrs": "10.9.0.0/24"}})
        assert (await settled(one, session)).pools["p"].online == 1, "other attributes keep the leases"
        found = await session.request("get-pools", {"leases": "yes"})
        assert found["p"]["leases"] == {
            "0": {"address": b"10.9.0.1", "identity": b"somebody", "status": b"online"},
        }
        assert "online leases" in await refused(session, "load-pool", {"p": {"addrs": "10.8.0.0/24"}})
        assert "online leases" in await refused(session, "unload-pool", {"name": "p"})
        pool.release("somebody", address)
        await session.request("unload-pool", {"name": "p"})
        assert await session.request("get-pools") == {}

    with_daemon(tmp_path, test)


def test_initiate_that_leads_nowhere(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        assert await refused(session, "initiate", {"child": "x"}) == "CHILD_SA config 'x' not found"
        assert await refused(session, "initiate", {"ike": "x"}) == "IKE_SA config 'x' not found"
        assert await refused(session, "initiate", {}) == "missing configuration name"
        why = await refused(session, "initiate", {"child": "net", "timeout": "50"})
        assert why in ("CHILD_SA 'net' not established after 50ms", "establishing CHILD_SA 'net' failed")
        await session.request("initiate", {"ike": "old", "timeout": "-1"})
        await session.request("terminate", {"ike": "old"})
        assert await refused(session, "terminate", {"ike": "old"}) == "no matching SAs to terminate found"
        assert await refused(session, "terminate", {"ike-id": "many"}) == "ike-id is not a number"

    with_daemon(tmp_path, test)


def test_events(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        ike = one.ike
        assert ike is not None
        connection = ike.engine.table.by_name["old"]
        path = IkePath(ip_address("192.0.2.1"), 500, ip_address("192.0.2.2"), 500)
        sa = ike.engine.new_sa(connection, initiator=True, path=path)
        events = session.listen("ike-updown", "alert", "log")
        first = asyncio.ensure_future(anext(events))
        # until it has registered, nobody is told
        while not first.done():
            logging.getLogger("ipsec.ike.test").warning("%s: said", sa)
            await asyncio.sleep(0.001)
        name, message = await first
        assert (name, message["group"], message["level"]) == ("log", b"IKE", b"1")
        assert (message["ikesa-name"], message["ikesa-uniqueid"]) == (b"old", str(sa.uid).encode())
        ike.engine.emit(IkeUp(sa))
        ike.engine.note(Failure(Cause.SELECTORS, "TS_UNACCEPTABLE", "net"), sa)
        # that has no name in charon
        ike.engine.note(Failure(Cause.CLOSED, "closed by the peer", by_peer=True), sa)
        ike.engine.emit(IkeDown(sa, "no answer", True))
        ike.engine.note(Failure(Cause.NO_ANSWER, "no answer", by_peer=True), sa)
        ike.turn()
        seen = []
        while len(seen) < 4:
            name, message = await asyncio.wait_for(anext(events), 5)
            if name != "log":
                seen.append((name, message))
        await events.aclose()
        assert [(name, message.get("type")) for name, message in seen] == [
            ("ike-updown", None),
            ("alert", b"ts-mismatch"),
            ("ike-updown", None),
            ("alert", b"retransmit-send-timeout"),
        ]
        assert [message.get("up") for _, message in seen[::2]] == [b"yes", None]
        assert list(seen[1][1]["ike-sa"]) == ["old"]
        sa.destroy("the test is over", ike.engine.now)

    caplog_level = logging.getLogger("ipsec").level
    logging.getLogger("ipsec").setLevel(logging.INFO)
    try:
        with_daemon(tmp_path, test)
    finally:
        logging.getLogger("ipsec").setLevel(caplog_level)


def test_an_alert_is_about_what_an_ike_sa_was_when_it_failed(tmp_path: Path) -> None:
    """Events are told when all is over; charon alerts before it gives an IKE_SA up."""

    async def test(one: Daemon, session: Session) -> None:
        ike = one.ike
        assert ike is not None
        path = IkePath(ip_address("192.0.2.1"), 500, ip_address("192.0.2.2"), 500)
        new, old = (
            ike.engine.new_sa(ike.engine.table.by_name["old"], initiator=True, path=path) for _ in range(2)
        )
        old.established_at = 1.0
        events = session.listen("alert", "ipsecd-problem")
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            ike.engine.note(Failure(Cause.CLOSED, "until somebody hears of it"), old)
            ike.turn()
            await asyncio.sleep(0.001)
        for sa in (new, old):
            sa.destroy("the peer does not answer", ike.engine.now)
            ike.engine.note(Failure(Cause.NO_ANSWER, "no answer", by_peer=True), sa)
        ike.turn()
        states = []
        while len(states) < 2:
            name, message = await asyncio.wait_for(anext(events), 5)
            if name == "alert":
                states.append(message["ike-sa"]["old"]["state"])
        await events.aclose()
        assert states == [b"CONNECTING", b"ESTABLISHED"]

    with_daemon(tmp_path, test)


def test_long_lists_leave_time_for_others(tmp_path: Path) -> None:
    count = 3000

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        connection = engine.table.by_name["old"]
        path = IkePath(ip_address("192.0.2.1"), 500, ip_address("192.0.2.2"), 500)
        for _ in range(count):
            engine.new_sa(connection, initiator=True, path=path)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(others())
        found = {item["old"]["uniqueid"] async for item in session.stream("list-sas", "list-sa")}
        task.cancel()
        assert len(found) == count
        assert turns > count // 64
        for sa in list(engine.sas.values()):
            sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


def test_two_daemons_do_not_share_a_socket(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:

        two = Daemon(load(str(tmp_path / "swanctl.conf")))
        with pytest.raises(BackendError, match="another daemon"):
            await two.start()
        assert names((await session.request("get-conns"))["conns"]) == ["old"]

    with_daemon(tmp_path, test)


def test_tcp_on_request_and_on_this_host_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]

        async def main() -> None:
            file = tmp_path / "swanctl.conf"
            file.touch(mode=0o600)
            text = FILE.format(folder=tmp_path)

            def with_port(port: int) -> Daemon:
                file.write_text(text.replace("  workers", f"  vici_tcp = [::1]:{port}\n  workers"))
                return Daemon(load(str(file)))

            one = with_port(free_port())
            await one.start()
            try:
                for uri in (f"tcp://[::1]:{one._config.settings.vici_tcp.port}", f"{tmp_path}/s"):  # type: ignore[union-attr]
                    async with await connect(uri) as session:
                        assert names((await session.request("get-conns"))["conns"]) == ["old"]
            finally:
                await one.stop()
            assert "every user of this host controls the daemon" in caplog.text
            file.write_text(text.replace("  workers", f"  vici_tcp = {busy}\n  workers"))
            two = Daemon(load(str(file)))
            with pytest.raises(BackendError, match=f"TCP 127.0.0.1 port {busy}"):
                await two.start()
            assert not (tmp_path / "s").exists()

        asyncio.run(main())


def test_a_second_socket_that_cannot_be_had_closes_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason is, as a bug."""

    async def fail(service: ViciService, address: str, port: int) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(ViciService, "listen_tcp", fail)

    async def main() -> None:
        file = tmp_path / "swanctl.conf"
        file.touch(mode=0o600)
        file.write_text(FILE.format(folder=tmp_path).replace("  workers", "  vici_tcp = 1\n  workers"))
        with pytest.raises(ValueError, match="unforeseen"):
            await Daemon(load(str(file))).start()
        assert not (tmp_path / "s").exists()

    asyncio.run(main())


def free_port() -> int:
    """A port of ::1 that nobody had a moment ago."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        return int(sock.getsockname()[1])


ODD: tuple[Any, ...] = (
    *(b"", b"\xff\xfe", b"-1", b"9" * 400, b"%any", b"0::/200"),
    *([b"x", b"\xff"], [], {"a": {"b": b"c"}}),
)
KEYS = (
    *("ike", "ike-id", "child", "child-id", "name", "id", "type", "flag", "data", "owners", "levels", "keep", "slot"),
    *("peer-ip", "peer-id", "loglevel", "all", "leases", "gateway", "force", "reauth", "trap", "drop", "pass", "local"),
    *("children", "remote", "addrs", "cacert", "subject", "handle", "timeout"),
)


@pytest.mark.parametrize("part", [pytest.param(23, id="some"), pytest.param(1, marks=pytest.mark.slow, id="all")])
def test_no_command_takes_odd_messages_amiss(tmp_path: Path, caplog: pytest.LogCaptureFixture, part: int) -> None:
    """Any key with any kind of value, alone and in a section of a name: an answer, and never an exception of ours."""

    async def test(one: Daemon, session: Session) -> None:
        assert one._vici is not None
        commands = sorted(one._vici._server._commands)
        every = [(command, key, value) for command in commands for key in KEYS for value in ODD]
        for command, key, value in every[::part]:
            # what would wait for a peer that is not there
            if command == "initiate" and key in ("timeout", "loglevel"):
                continue
            for message in ({key: value}, {"x": {key: value}}, {"child": b"net", "timeout": b"1", key: value}):
                with contextlib.suppress(ViciError):
                    await session.request(command, message)
        await session.request("version")

    with_daemon(tmp_path, test)
    assert "bug" not in caplog.text
