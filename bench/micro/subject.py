"""What is measured: an engine with SAs that it can both seal and open, and packets for them."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

from ipsec.crypto.suites import EspSuite, esp_suite
from ipsec.esp.fast import AeadKey, Engine
from ipsec.esp.sa import Action, Direction, Policy, SaParams
from ipsec.wire.selector import SelectorPair, TrafficSelector

OUTER = (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
INSIDE = TrafficSelector(IPv4Address("10.1.0.0"), IPv4Address("10.1.255.255"))
FIRST_TARGET = int(ip_address("10.2.0.0"))
FIRST_SPI = 0x10000
PORT = 4500


def target(number: int) -> IPv4Address:
    """The inner address that SA ``number`` protects."""
    return IPv4Address(FIRST_TARGET + number)


def _key(suite: EspSuite, number: int) -> bytes:
    return number.to_bytes(8, "big") * ((suite.key_len + suite.integ_key_len) // 8 + 1)


def sa_pair(suite: EspSuite, number: int, *, replay_window: int = 1024) -> tuple[SaParams, SaParams]:
    """The outbound and the inbound half of SA ``number``, for one engine that talks to itself."""
    key = _key(suite, number)
    there = TrafficSelector(target(number), target(number))
    halves = []
    for direction, selectors in (
        (Direction.OUT, SelectorPair(INSIDE, there)),
        (Direction.IN, SelectorPair(there, INSIDE)),
    ):
        halves.append(
            SaParams(
                spi=FIRST_SPI + number,
                direction=direction,
                suite=suite,
                local=OUTER[direction],
                remote=OUTER[1 - direction],
                encr_key=key[: suite.key_len],
                integ_key=key[suite.key_len : suite.key_len + suite.integ_key_len],
                encap=(PORT, PORT),
                selectors=(selectors,),
                replay_window=replay_window,
                reqid=number + 1,
                path_mtu=65535,
            )
        )
    return halves[0], halves[1]


def policy(number: int) -> Policy:
    """The policy that sends packets for ``target(number)`` through SA ``number``."""
    pair = SelectorPair(INSIDE, TrafficSelector(target(number), target(number)))
    return Policy(Action.PROTECT, (pair,), number + 1)


def packet(size: int, number: int = 0) -> bytes:
    """An IPv4 UDP packet of ``size`` octets in all, for SA ``number``."""
    source, destination = IPv4Address("10.1.0.1").packed, target(number).packed
    header = bytearray(b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\x40\0\x40\x11\0\0" + source + destination)
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    # a zero UDP checksum means none (RFC 768)
    udp = (1234).to_bytes(2, "big") + (5678).to_bytes(2, "big") + (size - 20).to_bytes(2, "big") + b"\0\0"
    return bytes(header + udp + bytes(i & 255 for i in range(size - 28)))


def engine_with(suite: EspSuite, sas: int, policies: int, provider: str = "auto") -> tuple[Engine, list[int]]:
    """An engine with ``sas`` SAs (half of them outbound) and ``policies`` policies; the ids of the outbound ones."""
    engine = Engine(provider=provider)
    outbound = []
    for number in range(sas // 2):
        out, into = sa_pair(suite, number)
        outbound.append(engine.add_sa(out))
        engine.add_sa(into)
    engine.set_policies([policy(number) for number in range(policies)])
    return engine, outbound


def provider_key(keywords: str, provider: str) -> AeadKey:
    """A key of the provider that serves a suite, to call it without any ESP around it."""
    suite = esp_suite(keywords)
    return AeadKey(suite, provider, bytes(range(suite.encr_key_len)))
