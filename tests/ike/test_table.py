"""Connections by the addresses of both ends."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike.config import AuthClass, Connection, RemoteAuth
from ipsec.ike.events import IpAddress, Path
from ipsec.ike.table import ConnectionTable

LISTS = [
    ("%any",),
    ("192.0.2.1",),
    ("192.0.2.1", "192.0.2.2"),
    ("192.0.2.1", "192.0.2.1"),
    ("192.0.2.0/24",),
    ("192.0.2.2-192.0.2.3", "2001:db8::1"),
    ("gw.example",),
    ("gw.example", "192.0.2.0/30"),
    ("2001:db8::/64", "%any"),
]
ADDRESSES = [ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "192.0.2.9", "2001:db8::1", "2001:db9::1")]


class Names:
    """Where names are, and how often that was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, name: str) -> tuple[IpAddress, ...]:
        self.asked += 1
        return (ip_address("192.0.2.9"),) if name == "gw.example" else ()


def how(texts: tuple[str, ...], address: IpAddress) -> int:
    """How well an address fits a list: 3 it is there, 2 within something, 1 any is, 0 not at all."""

    def one(text: str) -> int:
        if text == "%any":
            return 1
        if "/" in text:
            return 2 * (address in ip_network(text))
        if "-" in text:
            low, high = map(ip_address, text.split("-"))
            return 2 * (address.version == low.version and int(low) <= int(address) <= int(high))
        return 3 * (address in Names()(text) if text == "gw.example" else address == ip_address(text))

    return max(map(one, texts))


def test_the_best_fit_first_then_as_configured() -> None:
    chance = random.Random(1)
    for _ in range(50):
        connections = [
            Connection(f"c{number}", local_addrs=chance.choice(LISTS), remote_addrs=chance.choice(LISTS))
            for number in range(30)
        ]
        table = ConnectionTable(connections, Names())
        for local in ADDRESSES:
            for remote in ADDRESSES:
                fits = [(how(one.remote_addrs, remote), how(one.local_addrs, local), one) for one in connections]
                expected = sorted((fit for fit in fits if fit[0] and fit[1]), key=lambda fit: fit[:2], reverse=True)
                found = table.candidates(Path(local, 500, remote, 500))
                assert [one.name for one in found] == [one.name for *_, one in expected]


def test_a_stranger_costs_the_same_however_many_connections_have_one_address_list() -> None:
    names = Names()
    connections = [Connection(f"c{number}", remote_addrs=("gw.example", "%any")) for number in range(1000)]
    table = ConnectionTable(connections, names)
    assert len(table.candidates(Path(ADDRESSES[0], 500, ADDRESSES[1], 500))) == 1000
    assert names.asked == 1


IDENTITIES = [
    "a.example", "A.EXAMPLE", "b.example", "a@example", "192.0.2.1", "keyid:a.example", "C=CH, O=x, CN=a",
    "C=CH, CN=a+O=x", "C=CH, O=x+CN=a", "CN=a, O=x, C=CH",
]  # fmt: skip
PATTERNS = ["%any", "*.example", "*@example", "C=CH, O=x, CN=*", "192.0.2.0/24"]


def test_who_may_come_by_a_connection_is_not_overlooked() -> None:
    texts = [*IDENTITIES, *PATTERNS]
    connections = [Connection(text, remote=RemoteAuth(AuthClass.PSK, parse_pattern(text))) for text in texts]
    table = ConnectionTable(connections, Names())
    for text in IDENTITIES:
        peer = parse_identity(text)
        names = table.may_have(peer)
        matching = {one.name for one in connections if one.remote.id.matches(peer)}
        assert text in matching
        assert {name for name in matching if name not in names} == set()


def test_a_peer_is_held_against_few_of_those_that_are_for_somebody_else() -> None:
    peers = [f"peer{number}.example" for number in range(1000)]
    connections = [Connection(peer, remote=RemoteAuth(AuthClass.PSK, parse_pattern(peer))) for peer in peers]
    names = ConnectionTable(connections, Names()).may_have(parse_identity(peers[7]))
    assert [peer for peer in peers if peer in names] == [peers[7]]
