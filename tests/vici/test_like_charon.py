"""What scripts made for charon rely on, as 5.9.8 answers it; with nothing outside the process but the socket."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipsec.crypto.identity import parse_identity
from ipsec.crypto.proposals import parse_proposals
from ipsec.daemon import metrics
from ipsec.daemon.run import Daemon
from ipsec.ike.auth import AuthRequest, RoundRequest
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.eap_auth import EapAuthRequest, EapProof, EapRequest, EapRoundRequest
from ipsec.ike.events import Path as IkePath
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.sa import Request
from ipsec.vici import show
from ipsec.vici.client import Session
from ipsec.vici.show import Traffic, ike_algorithms
from ipsec.wire.iana import Protocol
from tests.vici.test_service import CHILD, CONNECTION, PSK, refused, settled, with_daemon

PATH = IkePath(ip_address("192.0.2.1"), 4500, ip_address("192.0.2.2"), 4500)


async def first(session: Session, count: int) -> list[tuple[str, Any]]:
    """The first events that come."""
    async with asyncio.timeout(5), contextlib.aclosing(session.listen()) as heard:
        return [await anext(heard) for _ in range(count)]


def test_counters_of_what_has_none(tmp_path: Path) -> None:
    """A script that begins anew for each connection in its file does not stop at one that was never up."""

    async def test(one: Daemon, session: Session) -> None:
        for name in ("old", "nobody"):
            assert await refused(session, "get-counters", {"name": name}) == "no counters found for this connection"
            assert await session.request("reset-counters", {"name": name}) == {"success": b"yes"}
        assert list(await session.request("get-counters")) == ["counters", "success"]

    with_daemon(tmp_path, test)


#: ``local`` or ``remote`` of load-conn, and what charon makes of it in list-conns besides what is empty
EAP: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {
    "local": [
        ({"auth": "eap", "id": "carol"}, {"class": "EAP", "id": "carol"}),
        ({"auth": "eap-md5", "id": "carol"}, {"class": "EAP", "eap-type": "EAP_MD5", "id": "carol"}),
        (
            {"auth": "eap-mschapv2", "id": "carol", "eap_id": "c@x"},
            {"class": "EAP", "eap-type": "EAP_MSCHAPV2", "id": "carol", "eap_id": "c@x"},
        ),
        ({"auth": "eap-6", "id": "carol"}, {"class": "EAP", "eap-type": "EAP_GTC", "id": "carol"}),
        (
            {"auth": "eap-tls:rsa-2048-sha256", "id": "carol", "aaa_id": "*.example.org"},
            {"class": "EAP", "eap-type": "EAP_TLS", "id": "carol", "aaa_id": "*.example.org"},
        ),
        (
            {"auth": "eap-tls", "id": "carol", "aaa_id": "%any"},
            {"class": "EAP", "eap-type": "EAP_TLS", "id": "carol", "aaa_id": "%any"},
        ),
        ({"auth": "psk", "id": "a", "eap_id": "c@x"}, {"class": "pre-shared key", "id": "a", "eap_id": "c@x"}),
    ],
    "remote": [
        (
            {"auth": "eap-md5", "id": "%any", "eap_id": "%any"},
            {"class": "EAP", "eap-type": "EAP_MD5", "id": "%any", "eap_id": "%any"},
        ),
        (
            {"auth": "eap-radius", "id": "%any", "eap_id": "*@x"},
            {"class": "EAP", "eap-type": "EAP_RADIUS", "id": "%any", "eap_id": "*@x"},
        ),
        (
            {"auth": "eap-radius", "id": "%any", "groups": ["staff", "guests"]},
            {"class": "EAP", "eap-type": "EAP_RADIUS", "id": "%any", "groups": ["staff", "guests"]},
        ),
        (
            {"auth": "eap-mschapv2", "id": "%any", "eap_id": "C=CH, CN=*"},
            {"class": "EAP", "eap-type": "EAP_MSCHAPV2", "id": "%any", "eap_id": "C=CH, CN=*"},
        ),
        (
            {"auth": "eap-tls", "id": "carol", "revocation": "strict", "ca_id": "CN=x"},
            {"class": "EAP", "eap-type": "EAP_TLS", "id": "carol", "revocation": "GOOD", "ca_id": "CN=x"},
        ),
        ({"auth": "pubkey", "id": "a", "eap_id": "carol"}, {"class": "public key", "id": "a", "eap_id": "carol"}),
    ],
}


def _text(value: bytes | list[bytes]) -> str | list[str]:
    return [one.decode() for one in value] if isinstance(value, list) else value.decode()


def test_list_conns_with_eap(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        for side, cases in EAP.items():
            for auth, expected in cases:
                await session.request("load-conn", {"new": CONNECTION | {side: auth}})
                (event,) = [item async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
                found = event["new"][f"{side}-1"]
                told = {key: _text(value) for key, value in found.items() if value != []}
                assert told == expected

    with_daemon(tmp_path, test)


def test_list_conns_with_rounds(tmp_path: Path) -> None:
    """Rounds of authentication have the names of their places, as with charon: ``round`` first, then as they came."""

    async def test(one: Daemon, session: Session) -> None:
        local = {
            "local-b": {"auth": "eap-mschapv2", "id": "third", "round": "7"},
            "local-1": {"auth": "psk", "id": "first"},
            "localx": {"auth": "psk", "id": "second"},
        }
        ends = {key: value for key, value in CONNECTION.items() if key not in ("local", "remote")}
        await session.request("load-conn", {"new": ends | local | {"remote": {"auth": "psk"}}})
        (event,) = [item async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        found = {key: value["id"] for key, value in event["new"].items() if key.startswith(("local-", "remote-"))}
        assert found == {"local-1": b"first", "local-2": b"second", "local-3": b"third", "remote-1": b"%any"}
        assert event["new"]["local-3"]["eap-type"] == b"EAP_MSCHAPV2"
        peer = {"remote": {"auth": "psk", "id": "a"}, "remote-2": {"auth": "eap", "eap_id": "%any"}}
        await session.request("load-conn", {"new": ends | {"local": {"auth": "psk"}} | peer})
        (event,) = [item async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        assert [event["new"][f"remote-{place}"]["class"] for place in (1, 2)] == [b"pre-shared key", b"EAP"]
        assert "local-2" not in event["new"]
        why = await refused(session, "load-conn", {"new": ends | local | peer})
        assert "only who begins proves more than once who it is (RFC 4739)" in why

    with_daemon(tmp_path, test)


@pytest.mark.parametrize(("user", "told"), [("carol@example.org", "carol@example.org"), ("c", None), (None, None)])
def test_list_sas_with_eap(tmp_path: Path, user: str | None, told: str | None) -> None:
    """Who the peer is for EAP, unless that is who it is for IKE."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        sa = engine.new_sa(engine.table.by_name["old"], initiator=False, path=PATH)
        sa.peer_id = parse_identity("c")
        sa.eap_id = parse_identity(user) if user is not None else None
        (event,) = [item async for item in session.stream("list-sas", "list-sa")]
        assert event["old"]["remote-id"] == b"c"
        assert event["old"].get("remote-eap-id", b"").decode() == (told or "")
        sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


def test_list_sas_of_a_child_that_is_down(tmp_path: Path, monkeypatch: Any) -> None:
    """Who asks for one child learns that its IKE_SA is up without it."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        connection = engine.table.by_name["old"]
        sa = engine.new_sa(connection, initiator=True, path=PATH)
        child = ChildSa(engine.next_uid(), sa, connection.children[0], 1)
        sa.children[child.uid] = child
        monkeypatch.setattr("ipsec.daemon.vici.ViciControl.traffic", lambda *_: Traffic())

        async def children(**wanted: Any) -> list[list[str]]:
            events = [event async for event in session.stream("list-sas", "list-sa", wanted)]
            return [list(fields["child-sas"]) for event in events for fields in event.values()]

        there = [f"net-{child.uid}"]
        assert await children(child="net") == await children(**{"child-id": child.uid}) == [there]
        assert await children(child="other") == await children(**{"child-id": 4711}) == [[]]
        assert await children(ike="another", child="net") == []
        del sa.children[child.uid]
        sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


def test_events_of_an_ike_sa_that_goes(tmp_path: Path, monkeypatch: Any) -> None:
    """The IKE_SA comes first, its CHILD_SAs after it."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        connection = engine.table.by_name["old"]
        sa = engine.new_sa(connection, initiator=True, path=PATH)
        sa.established_at = engine.now + 1
        child = ChildSa(engine.next_uid(), sa, connection.children[0], 1)
        sa.children[child.uid] = child
        monkeypatch.setattr(ChildSa, "serves", True)
        monkeypatch.setattr("ipsec.daemon.vici.ViciControl.traffic", lambda *_: Traffic(bytes_in=7))
        for event in ("child-updown", "ike-updown"):
            await session.register(event)
        sa.destroy("closed by the peer", engine.now)
        one.ike.turn()
        (name, ike), (after, children) = await first(session, 2)
        assert (name, after) == ("ike-updown", "child-updown")
        assert "up" not in ike
        assert "up" not in children
        assert ike["old"]["state"] == children["old"]["state"] == b"DELETING"
        (fields,) = children["old"]["child-sas"].values()
        assert (fields["state"], fields["bytes-in"]) == (b"DELETED", b"7")

    with_daemon(tmp_path, test)


@pytest.mark.parametrize("cause", [None, *Cause])
def test_an_attempt_that_fails(tmp_path: Path, cause: Cause | None) -> None:
    """What one end refuses is an ike-updown of an IKE_SA that still was connecting; silence and commands are none."""
    silent = {None, Cause.NO_ANSWER, Cause.NOT_IN_TIME, Cause.NO_PATH, Cause.CLOSED, Cause.EXPIRED, Cause.RESTARTED}
    silent |= {Cause.CHILD_PROPOSALS, Cause.SELECTORS, Cause.ADDRESS, Cause.INSTALL, Cause.NO_CONNECTION, Cause.BUG}
    silent |= {Cause.RADIUS}

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        await session.register("ike-updown")
        why = "told to" if cause is None else Failure(cause, "so it is")
        refused = Failure(Cause.PEER_AUTH, "a wrong key")
        for initiator, end in ((True, why), (False, refused), (True, refused)):
            sa = engine.new_sa(engine.table.by_name["old"], initiator=initiator, path=PATH)
            sa.destroy(end, engine.now)
        one.ike.turn()
        seen = await first(session, 1 if cause in silent else 2)
        assert {name for name, _ in seen} == {"ike-updown"}
        assert [message["old"]["state"] for _, message in seen] == [b"CONNECTING"] * len(seen)
        assert seen[-1][1]["old"]["uniqueid"] == str(sa.uid).encode()

    with_daemon(tmp_path, test)


def test_raw_public_keys(tmp_path: Path) -> None:
    """``swanctl --load-creds`` loads what is in pubkey/, and calls it a failure if one is not taken."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    der, pem = (public.public_bytes(form, PublicFormat.SubjectPublicKeyInfo) for form in (Encoding.DER, Encoding.PEM))

    async def test(one: Daemon, session: Session) -> None:
        async def listed(**wanted: str) -> list[Any]:
            return [item async for item in session.stream("list-certs", "list-cert", wanted)]

        for data in (pem, der):
            await session.request("load-cert", {"type": "PUBKEY", "flag": "NONE", "data": data})
        assert await listed() == await listed(type="pubkey") == [{"type": b"PUBKEY", "data": der}]
        assert await listed(type="x509") == await listed(subject="a.example") == []
        said = await refused(session, "load-cert", {"type": "PUBKEY", "data": b"garbage"})
        assert said == "parsing PUBKEY certificate failed: not a public key in PEM or DER"
        await session.request("clear-creds")
        assert await listed() == []
        peer = {"auth": "pubkey", "id": "b.example", "pubkeys": [pem]}
        await session.request("load-conn", {"new": CONNECTION | {"remote": peer}})
        one_of_it = [{"type": b"PUBKEY", "data": der, "subject": b"b.example"}]
        assert await listed() == await listed(subject="b.example") == one_of_it
        assert await listed(subject="a.example") == []
        (conn,) = [item["new"] async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        assert conn["remote-1"]["certs"] == [b"b.example"]

    with_daemon(tmp_path, test)


def test_what_later_rounds_bring_is_listed(tmp_path: Path) -> None:
    """Certificates and raw public keys of all rounds, also where certificates are counted by kind."""
    root, end = authority_and_end()
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def test(one: Daemon, session: Session) -> None:
        peers = {
            "remote": {"auth": "psk"},
            "remote-2": {"auth": "pubkey", "certs": [end], "cacerts": [root]},
            "remote-3": {"auth": "pubkey", "id": "c.example", "pubkeys": [key]},
        }
        await session.request("load-conn", {"new": CONNECTION | peers})
        found = [item async for item in session.stream("list-certs", "list-cert", {"type": "X509"})]
        assert {(item["flag"], item["data"]) for item in found} == {(b"CA", root), (b"NONE", end)}
        found = [item async for item in session.stream("list-certs", "list-cert", {"type": "PUBKEY"})]
        assert [(item["data"], item["subject"]) for item in found] == [(key, b"c.example")]
        engine = await settled(one, session)
        kinds = {certificate.der: kind for certificate, kind in metrics.certificates(engine).items()}
        assert kinds == {root: "ca", end: "peer"}

    with_daemon(tmp_path, test)


@pytest.mark.parametrize("kind", [AuthRequest, RoundRequest, EapAuthRequest, EapRoundRequest, EapRequest, EapProof])
def test_the_task_of_every_request_of_ike_auth(kind: type[Request]) -> None:
    """charon has one for all of them."""
    assert show._task(kind.__new__(kind)) == "IKE_AUTH"


def test_certificate_types_of_older_clients(tmp_path: Path) -> None:
    root, end = authority_and_end()

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-cert", {"type": "x509ca", "data": root})
        await session.request("load-cert", {"type": "any", "data": end})
        bundle = b"".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in (root, end))
        await session.request("load-cert", {"type": "X509", "flag": "CA", "data": bundle})
        listed = [item async for item in session.stream("list-certs", "list-cert")]
        assert {(item["flag"], item["data"]) for item in listed} == {(b"CA", root), (b"NONE", end)}
        why = await refused(session, "load-cert", {"type": "X509CA", "flag": "NONE", "data": end})
        assert why.startswith("ca certificate lacks CA basic constraint, rejected: ")
        assert "X509_CRL" in await refused(session, "load-cert", {"type": "x509crl", "data": b"garbage"})
        assert "not the certificate of" in await refused(session, "load-authority", {"mine": {"cacert": end}})
        assert await refused(session, "flush-certs", {"type": "x"}) == "invalid certificate type 'x'"
        await session.request("flush-certs", {"type": "x509_crl"})

    with_daemon(tmp_path, test)


def test_flags_of_certificates(tmp_path: Path) -> None:
    """``swanctl --load-creds`` loads x509ocsp/ and x509aa/, and calls it a failure if one is not taken."""
    _, end = authority_and_end()

    async def test(one: Daemon, session: Session) -> None:
        async def flags(**wanted: str) -> list[bytes]:
            return [item["flag"] async for item in session.stream("list-certs", "list-cert", wanted)]

        await session.request("load-cert", {"type": "X509", "flag": "AA", "data": end})
        assert await flags() == []
        await session.request("load-cert", {"type": "X509", "flag": "OCSP", "data": end})
        credentials = (await settled(one, session)).credentials
        assert [signer.der for signer in credentials.ocsp_signers] == [end]
        assert credentials.certificates == ()
        assert await flags() == await flags(flag="OCSP") == [b"OCSP"]
        assert await flags(flag="NONE") == []
        await session.request("clear-creds")
        assert await flags() == []
        assert "parsing X509 certificate failed" in await refused(
            session, "load-cert", {"type": "X509", "flag": "AA", "data": b"garbage"}
        )

    with_daemon(tmp_path, test)


def authority_and_end() -> tuple[bytes, bytes]:
    """Two certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = []
    for number, name in enumerate(("authority", "end")):
        subject = x509.Name.from_rfc4514_string(f"CN={name}")
        issuer = x509.Name.from_rfc4514_string("CN=authority")
        begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), number + 1, begin, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
        made.append(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    return made[0], made[1]


def test_lists_of_nothing(tmp_path: Path) -> None:
    """Programs send lists that they have nothing for, also where such a list could not be."""

    async def test(one: Daemon, session: Session) -> None:
        ends = {"local": PSK | {"certs": []}, "remote": PSK | {"id": "c", "certs": [], "cacerts": [], "groups": []}}
        await session.request("load-conn", {"new": CONNECTION | ends | {"vips": [], "pools": []}})

    with_daemon(tmp_path, test)


def test_a_child_in_list_conns(tmp_path: Path) -> None:
    actions = {"start_action": "start|trap", "dpd_action": "trap|start"}
    child = actions | {"priority": "0x10", "local_ts": ["10.0.0.1[icmp/8]"]}

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-conn", {"new": CONNECTION | {"children": {"one": child, "two": {}}}})
        (conn,) = [item["new"] async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        assert list(conn["children"]["one"])[-3:] == ["local-ts", "remote-ts", "priority"]
        listed = {key: conn["children"]["one"][key] for key in ("dpd_action", "ipsecd-start-action", "priority")}
        assert listed == {"dpd_action": b"trap | start", "ipsecd-start-action": b"trap|start", "priority": b"16"}
        assert conn["children"]["one"]["local-ts"] == [b"10.0.0.1/32[icmp/8]"]
        assert "priority" not in conn["children"]["two"]

    with_daemon(tmp_path, test)


def test_icmp_is_loaded_and_not_shown(tmp_path: Path) -> None:
    """As with strongSwan 6.1: ``load-conn`` has the key, no list does."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        children = {"one": CHILD | {"icmp": "yes"}, "two": CHILD}
        await session.request("load-conn", {"new": CONNECTION | {"children": children}})
        loaded = one.ike.loaded.connection("new")
        assert loaded is not None
        assert [child.icmp for child in loaded.children] == [True, False]
        (conn,) = [item["new"] async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        assert conn["children"]["one"].keys() == conn["children"]["two"].keys()

    with_daemon(tmp_path, test)


def test_commas_in_uris(tmp_path: Path) -> None:
    root, _ = authority_and_end()
    uris = ["http://crl.example/a,b.crl", "http://crl.example/'c',d", "http://crl.example/e"]

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-authority", {"mine": {"cacert": root, "crl_uris": uris}})
        (found,) = [item["mine"] async for item in session.stream("list-authorities", "list-authority")]
        assert [uri.decode() for uri in found["crl_uris"]] == uris

    with_daemon(tmp_path, test)


def test_what_has_an_empty_name(tmp_path: Path) -> None:
    """What can be loaded can be unloaded."""

    async def test(one: Daemon, session: Session) -> None:
        await session.request("load-conn", {"": CONNECTION})
        await session.request("unload-conn", {"name": ""})
        await session.request("load-pool", {"": {"addrs": "10.9.0.0/24"}})
        await session.request("unload-pool", {"name": ""})
        assert (await session.request("get-conns"))["conns"] == [b"old"]
        assert await session.request("get-pools") == {}
        assert await refused(session, "unload-conn", {}) == "unload: missing connection name"
        assert await refused(session, "unload-pool", {}) == "missing pool name to unload"

    with_daemon(tmp_path, test)


def test_policies_have_the_reqid_of_their_sas(tmp_path: Path) -> None:
    """``swanctl --list-pols`` of strongSwan 6.1 prints it."""

    async def test(one: Daemon, session: Session) -> None:
        children = {"net": CHILD | {"start_action": "trap", "reqid": "7"}, "pass": CHILD | {"mode": "pass"}}
        await session.request("load-conn", {"new": CONNECTION | {"children": children}})
        await session.request("install", {"child": "pass"})
        wanted = {"trap": "yes", "pass": "yes"}
        trap, shunt = [item async for item in session.stream("list-policies", "list-policy", wanted)]
        assert list(trap["new/net"].items())[:4] == [
            *(("child", b"net"), ("reqid", b"7"), ("ike", b"new"), ("mode", b"TUNNEL")),
        ]
        assert list(shunt["new/pass"])[:3] == ["child", "ike", "mode"]

    with_daemon(tmp_path, test)


def test_connections_have_their_proposals(tmp_path: Path) -> None:
    """As strongSwan 6.1 lists them."""

    async def test(one: Daemon, session: Session) -> None:
        child = CHILD | {"esp_proposals": ["aes128-sha256-x25519-none-esn-noesn", "chacha20poly1305-x25519-ke2_ecp256"]}
        proposals = ["aes128gcm16-aes256gcm16-prfsha256-x25519", "aes128-sha256-modp3072"]
        await session.request("load-conn", {"new": CONNECTION | {"proposals": proposals, "children": {"net": child}}})
        (conn,) = [item["new"] async for item in session.stream("list-conns", "list-conn", {"ike": "new"})]
        assert conn["proposals"] == {
            "0": {
                "encr": [b"AES_GCM_16_128", b"AES_GCM_16_256"],
                "prf": [b"PRF_HMAC_SHA2_256"],
                "ke": [b"CURVE_25519"],
            },
            "1": {
                "encr": [b"AES_CBC_128"],
                "integ": [b"HMAC_SHA2_256_128"],
                "prf": [b"PRF_HMAC_SHA2_256"],
                "ke": [b"MODP_3072"],
            },
        }
        assert conn["children"]["net"]["esp_proposals"] == {
            "0": {
                "encr": [b"AES_CBC_128"],
                "integ": [b"HMAC_SHA2_256_128"],
                "ke": [b"CURVE_25519", b"KE_NONE"],
                "sn": [b"EXT_SEQ", b"NO_EXT_SEQ"],
            },
            "1": {
                "encr": [b"CHACHA20_POLY1305"],
                "ke": [b"CURVE_25519"],
                "ake2": [b"ECP_256"],
                "sn": [b"NO_EXT_SEQ"],
            },
        }
        assert conn["children"]["net"]["ah_proposals"] == {}

    with_daemon(tmp_path, test)


def test_size_of_a_large_pool(tmp_path: Path) -> None:
    """A /64 has more addresses than the integers of programs have room for."""

    async def test(one: Daemon, session: Session) -> None:
        for name, addresses, size in (("p", "10.0.0.0/8 ", b"16777214"), ("q", "2001:db8::/64", b"2147483646")):
            await session.request("load-pool", {name: {"addrs": addresses}})
            assert (await session.request("get-pools"))[name]["size"] == size

    with_daemon(tmp_path, test)


def test_pools_are_renamed_and_change_places(tmp_path: Path) -> None:
    """``swanctl --load-pools`` loads what is new before it unloads what is gone, and loads one after the other."""

    async def test(one: Daemon, session: Session) -> None:
        for name, addresses in (("p", "10.8.0.0/24"), ("q", "10.9.0.0/24"), ("p", "10.9.0.0/24"), ("q", "10.8.0.0/24")):
            await session.request("load-pool", {name: {"addrs": addresses}})
        found = await session.request("get-pools")
        assert {name: pool["base"] for name, pool in found.items()} == {"p": b"10.9.0.1", "q": b"10.8.0.1"}
        pool = (await settled(one, session)).pools["p"]
        address = pool.acquire("somebody")
        await session.request("load-pool", {"renamed": {"addrs": "10.9.0.0/24"}})
        renamed = (await settled(one, session)).pools["renamed"]
        assert renamed.acquire("another") == ip_address("10.9.0.2"), "not what somebody has"
        assert "online leases" in await refused(session, "unload-pool", {"name": "p"})
        assert address is not None
        pool.release("somebody", address)
        await session.request("unload-pool", {"name": "p"})
        assert set(await session.request("get-pools")) == {"q", "renamed"}

    with_daemon(tmp_path, test)


def test_list_sas_names_additional_key_exchanges_as_strongswan_6_does() -> None:
    (proposal,) = parse_proposals(["aes256-sha384-x25519-ke1_mlkem768-ke2_none-ke4_ecp256bp"], Protocol.IKE)
    found = {key: value for key, value in ike_algorithms(proposal).items() if key.startswith(("dh", "ake"))}
    assert found == {"dh-group": "CURVE_25519", "ake1": "ML_KEM_768", "ake4": "ECP_256_BP"}
