"""The reference and the compiled engine, given the same things, do the same: every octet, event and counter.

And each alone: what is sealed opens to what it was.
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec.esp.drops import DropReason
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Action, DfPolicy, Direction, DscpPolicy, Lifetime, Mode, Policy
from ipsec.wire.selector import ANY_PORT, OPAQUE, SelectorPair
from tests.esp.support import (
    ADDRESSES,
    ENGINES,
    GCM,
    PROTECT_ALL,
    SUITES,
    FastEngine,
    Tunnel,
    forge,
    icmp_error,
    ip,
    ipv4_fragment,
    ipv6_fragment,
    pair,
    params,
    tcp_syn,
    trailer,
    transport_packet,
    udp,
)

suites = st.sampled_from(SUITES)
sizes = st.one_of(st.integers(0, 200), st.integers(1300, 1500), st.integers(0, 9000))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
@given(suites, sizes, st.sampled_from([4, 6]), st.sampled_from([4, 6]), st.booleans(), st.integers(0, 2**32 - 2**21))
def test_round_trip(engine, suite, size, inner, outer, esn, start):
    tunnel = Tunnel(engine, suite, outer, esn=esn, initial_seq=start)
    packet = udp(bytes(size), inner)
    assert tunnel.send(packet).packet == packet
    assert tunnel.send(packet).packet == packet


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
@given(suites, st.binary(max_size=300))
def test_random_datagrams(engine, suite, data):
    receiver = engine()
    receiver.add_sa(params(Direction.IN, suite))
    assert receiver.inbound((0x1000).to_bytes(4, "big") + data, 0.0).drop in (
        DropReason.IN_HDR_ERROR, DropReason.IN_STATE_SEQ_ERROR, DropReason.IN_STATE_PROTO_ERROR
    )  # fmt: skip


class Both:
    """A reference and a compiled engine that are given the same; ids are translated."""

    def __init__(self, **options):
        self.engines = (ReferenceEngine(**options), FastEngine(**options))
        self.ids = ({-1: -1}, {-1: -1})
        self.policies = ({-1: -1}, {-1: -1})

    def add_sa(self, sa):
        number = len(self.ids[0])
        for engine, ids in zip(self.engines, self.ids, strict=True):
            ids[engine.add_sa(sa)] = number
        return number

    def set_policies(self, policies):
        for engine, ids in zip(self.engines, self.policies, strict=True):
            ids.update({policy: number for number, policy in enumerate(engine.set_policies(policies))})

    def own(self, which, number):
        return next(sa for sa, known in self.ids[which].items() if known == number)

    def same(self, function):
        """What both answer to ``function(engine, number -> id)``, made comparable."""
        answers = []
        for which, engine in enumerate(self.engines):
            answers.append(self.plain(which, function(engine, lambda number, w=which: self.own(w, number))))
        assert answers[0] == answers[1]
        states = [self.state(which) for which in (0, 1)]
        assert states[0] == states[1]
        return answers[0]

    def plain(self, which, answer):
        ids = self.ids[which]
        if isinstance(answer, DropReason):
            return answer
        if hasattr(answer, "datagram"):
            return answer._replace(sa=ids[answer.sa])
        if hasattr(answer, "packet"):
            return (answer.drop, answer.packet)
        return answer._replace(sealed=tuple(one._replace(sa=ids[one.sa]) for one in answer.sealed))

    def state(self, which):
        engine, ids = self.engines[which], self.ids[which]
        events = []
        for event in engine.events():
            known = self.policies[which] if event.kind.name == "ACQUIRE" else ids
            events.append(event._replace(sa=known[event.sa]))
        stats = {number: engine.query_sa(sa) for sa, number in ids.items() if number != -1}
        return engine.drops(), events, stats


networks = {4: ["0.0.0.0/0", "10.1.0.0/16", "10.2.0.9/32", "192.0.2.1/32"], 6: ["::/0", "fd01::/64", "fd02::9/128"]}
port_ranges = st.sampled_from([ANY_PORT, ANY_PORT, OPAQUE, (1000, 1000), (2000, 2100), (80, 80), (0x0800, 0x08FF)])


@st.composite
def pairs(draw):
    version = draw(st.sampled_from([4, 4, 6]))
    protocol = draw(st.sampled_from([0, 0, 6, 17, 1, 58, 47]))
    local, remote = (draw(st.sampled_from(networks[version])) for _ in range(2))
    return pair(local, remote, protocol, local_ports=draw(port_ranges), remote_ports=draw(port_ranges))


@st.composite
def policies(draw):
    action = draw(st.sampled_from([Action.PROTECT, Action.PROTECT, Action.BYPASS, Action.DISCARD]))
    selectors = tuple(draw(st.lists(pairs(), min_size=1, max_size=3)))
    return Policy(action, selectors, draw(st.integers(1, 2)), draw(st.integers(0, 2)), icmp=draw(st.booleans()))


lifetimes = st.builds(
    Lifetime,
    bytes_soft=st.sampled_from([0, 0, 2000]),
    bytes_hard=st.sampled_from([0, 0, 5000]),
    packets_soft=st.sampled_from([0, 0, 3]),
    packets_hard=st.sampled_from([0, 0, 6]),
)


@st.composite
def outbound_sas(draw):
    esn = draw(st.booleans())
    limit = (2**64 if esn else 2**32) - 1
    mode = draw(st.sampled_from([Mode.TUNNEL, Mode.TUNNEL, Mode.TRANSPORT]))
    return params(
        Direction.OUT,
        draw(suites),
        draw(st.sampled_from([4, 6])),
        mode=mode,
        esn=esn,
        encap=draw(st.sampled_from([None, (4500, 4500)])),
        df=draw(st.sampled_from(DfPolicy)),
        copy_dscp=draw(st.sampled_from(DscpPolicy)),
        copy_ecn=draw(st.booleans()),
        tfc=draw(st.sampled_from([0, 0, -1, 100, 1000])),
        path_mtu=draw(st.sampled_from([1500, 1500, 1280, 1399, 9000])),
        lifetime=draw(lifetimes),
        initial_seq=draw(st.sampled_from([0, 0, 2**32 - 4, limit - 2**20 - 2, limit - 3])),
    )


hosts = {4: ["10.1.0.5", "10.2.0.9"], 6: ["fd01::5", "fd02::9"]}


@st.composite
def router_errors(draw, versions=(4, 4, 6)):
    """ICMP errors of a router that is in few selectors, with what they quote whole or cut short."""
    version = draw(st.sampled_from(versions))
    source, destination = (draw(st.sampled_from(hosts[version])) for _ in range(2))
    ports = draw(st.sampled_from([(2000, 1000), (80, 1000), (2050, 7)]))
    addresses = (ip_address(source), ip_address(destination))
    quote = draw(
        st.sampled_from(
            [
                lambda: udp(b"quoted", version, source=source, destination=destination, ports=ports),
                lambda: ip(6, bytes(40), version, addresses=addresses),
                lambda: ip(1 if version == 4 else 58, b"\x08\0" + bytes(6), version, addresses=addresses),
                lambda: ip(47, b"", version, addresses=addresses),
                lambda: ip(44, draw(st.binary(min_size=8, max_size=60)), version, addresses=addresses),
                lambda: ip(60, b"\x11\0\x01\4\0\0\0\0" + bytes(8), version, addresses=addresses),
                lambda: draw(st.binary(max_size=80)),
            ]
        )
    )()
    told = draw(st.sampled_from([source, source, source, destination]))
    kind = draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 11, 12]))
    end = draw(st.sampled_from([len(quote), len(quote), 28, 24, 48, 20, 44]))
    router = "172.16.0.1" if version == 4 else "fd99::1"
    return icmp_error(kind, quote[:end], version, source=router, destination=told)


@st.composite
def packets(draw):
    version = draw(st.sampled_from([4, 4, 6]))
    size = draw(sizes)
    tos = draw(st.sampled_from([0, 1, 2, 3, 0xB8, 0xFF]))
    options = {"tos": tos, "df": draw(st.booleans())}
    ports = draw(st.sampled_from([(1000, 2000), (1000, 80), (7, 2050)]))
    packet = draw(
        st.sampled_from(
            [
                lambda: udp(bytes(size), version, ports=ports, **options),
                lambda: transport_packet(version, bytes(size), **options),
                lambda: tcp_syn(version, b"\x01\x02\x04\xff\xff", payload=bytes(size)),
                lambda: ip(1 if version == 4 else 58, b"\x08\0" + bytes(size), version, **options),
                lambda: ip(47, bytes(size), version, **options),
                lambda: draw(router_errors()),
                lambda: ipv4_fragment(udp(b""), 0, True, udp(bytes(size // 8 * 8))[20:]),
                lambda: ipv4_fragment(udp(b""), 800, draw(st.booleans()), bytes(size // 8 * 8)),
                lambda: ipv6_fragment(0, True, udp(bytes(size // 8 * 8), 6)[40:]),
                lambda: ipv6_fragment(800, draw(st.booleans()), bytes(size // 8 * 8)),
            ]
        )
    )()
    if draw(st.integers(0, 3)) == 0:
        octets = bytearray(packet)
        for _ in range(draw(st.integers(1, 3))):
            octets[draw(st.integers(0, min(len(octets), 64) - 1))] = draw(st.integers(0, 255))
        packet = bytes(octets[: draw(st.integers(0, len(octets)))] if draw(st.booleans()) else octets)
    return packet


@settings(max_examples=150)
@given(
    st.lists(policies(), max_size=5),
    st.lists(outbound_sas(), max_size=2),
    st.lists(packets(), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_outbound_agrees(spd, sas, sent, mss_clamp, catch_all):
    both = Both(mss_clamp=mss_clamp, icmp_source4=ip_address("10.9.9.9").packed)
    both.set_policies(spd + ([replace(PROTECT_ALL, priority=3)] if catch_all else []))
    for number, sa in enumerate(sas, start=1):
        both.add_sa(replace(sa, reqid=number, spi=0x1000 + number))
    for now, packet in enumerate(sent):
        both.same(lambda engine, own, packet=packet, now=now: engine.outbound(packet, float(now * 8)))


@st.composite
def policies_beside(draw, version):
    """Policies that no router of ``router_errors`` is in."""
    action = draw(st.sampled_from([Action.PROTECT] * 5 + [Action.BYPASS, Action.DISCARD]))
    local, remote = draw(st.sampled_from(networks[version][1:3])), draw(st.sampled_from(networks[version][:3]))
    protocol = draw(st.sampled_from([0, 0, 0, 17, 6, 1]))
    ports = draw(st.sampled_from([ANY_PORT, ANY_PORT, ANY_PORT, OPAQUE, (2000, 2100)]))
    icmp = draw(st.sampled_from([True, True, True, False]))
    return Policy(action, (pair(local, remote, protocol, remote_ports=ports),), draw(st.integers(1, 3)), icmp=icmp)


@settings(max_examples=300)
@given(st.data(), st.sampled_from([4, 6]))
def test_quoted_agrees(data, version):
    """ICMP errors, changed here and there, that policies and SAs are for by what they quote, or are not."""
    spd = data.draw(st.lists(policies_beside(version), min_size=1, max_size=4))
    sent = data.draw(st.lists(router_errors([version] * 8 + [10 - version]), min_size=2, max_size=8))
    both = Both()
    both.set_policies(spd)
    for number in (1, 2):
        both.add_sa(params(Direction.OUT, reqid=number, spi=0x2000 + number))
    selectors = tuple(SelectorPair(one.remote, one.local) for policy in spd for one in policy.selectors)
    both.add_sa(params(Direction.IN, selectors=selectors[:2], icmp=True))
    for seq, packet in enumerate(sent, start=1):
        octets = bytearray(packet)
        for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]))):
            octets[data.draw(st.integers(0, min(len(octets), 110) - 1))] ^= data.draw(st.integers(1, 255))
        changed = bytes(octets)
        both.same(lambda engine, own, changed=changed: engine.outbound(changed, 1.0))
        datagram = forge(GCM, trailer(changed, 4 if changed[:1] < b"\x60" else 41), seq)
        both.same(lambda engine, own, datagram=datagram: engine.inbound(datagram, 1.0))


@settings(max_examples=150)
@given(
    st.sampled_from([4, 6]),
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(0, 63),
)
def test_fragments_of_the_host_agree(outer, sent, broken):
    """Fragments of eleven datagrams in any order, some changed, for an SA in transport mode."""
    both = Both()
    both.set_policies([PROTECT_ALL])
    both.add_sa(params(Direction.OUT, SUITES[2], outer, mode=Mode.TRANSPORT, reqid=1))
    addresses = tuple(ip_address(text) for text in ADDRESSES[outer])
    body = bytes(range(256)) * 8
    for now, (number, at, wait) in enumerate(sent):
        part = body[at * 512 :][:512]
        if outer == 4:
            packet = ipv4_fragment(ip(17, b"", addresses=addresses, identification=number), at * 512, at < 3, part)
        else:
            header = bytes((17, 0)) + (at * 512 | (at < 3)).to_bytes(2, "big") + number.to_bytes(4, "big")
            packet = ip(44, header + part, 6, addresses=addresses)
        if now % 8 == 7:
            packet = packet[:broken] + bytes([packet[broken] ^ 1]) + packet[broken + 1 :]
        both.same(lambda engine, own, packet=packet, now=now, wait=wait: engine.outbound(packet, now + wait * 5.0))


@settings(max_examples=150)
@given(outbound_sas(), st.lists(st.one_of(packets(), st.integers(0, 1400)), min_size=1, max_size=10))
def test_encapsulate_and_dummy_agree(sa, sent):
    both = Both()
    number = both.add_sa(sa)
    for one in sent:
        if isinstance(one, int):
            both.same(lambda engine, own, one=one: engine.dummy(own(number), one, 1.0))
        else:
            both.same(lambda engine, own, one=one: engine.encapsulate(own(number), one, 1.0))


@st.composite
def plaintexts(draw):
    packet = draw(packets())
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(min_size=1, max_size=12)) * 16
    if kind == 1:
        return trailer(packet, draw(st.integers(0, 255)), 16)
    if kind == 2:
        return trailer(packet + draw(st.binary(max_size=40)), 4 if packet[:1] < b"\x60" else 41, 16)
    if kind == 3:
        return trailer(packet[20:], draw(st.sampled_from([6, 17, 1, 0, 44, 60])), 16)
    return trailer(packet, 4 if packet[:1] < b"\x60" else 41, 16)


@settings(max_examples=200)
@given(
    suites,
    st.sampled_from([4, 6]),
    st.sampled_from([Mode.TUNNEL, Mode.TUNNEL, Mode.TRANSPORT]),
    st.booleans(),
    st.lists(pairs(), max_size=3),
    st.sampled_from([0, 64, 1024]),
    lifetimes,
    st.sampled_from(DscpPolicy),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(plaintexts(), st.integers(-3, 70), st.integers(0, 255), st.booleans()), min_size=1, max_size=12),
)
def test_inbound_agrees(suite, outer, mode, esn, selectors, window, lifetime, dscp, ecn, icmp, received):
    start = 2**32 - 70 if esn else 0
    both = Both()
    both.add_sa(
        params(
            Direction.IN, suite, outer, mode=mode, esn=esn, selectors=tuple(selectors), replay_window=window,
            lifetime=lifetime, copy_dscp=dscp, copy_ecn=ecn, initial_seq=start, encap=(4500, 4500),
            icmp=icmp,
        )
    )  # fmt: skip
    seq = start + 3
    source = ip_address(ADDRESSES[outer][0])
    for now, (plaintext, step, tos, broken) in enumerate(received):
        seq = max(start + 1, seq + step)
        datagram = forge(suite, plaintext, seq, esn=esn)
        if broken and now % 3 == 0:
            datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
        both.same(
            lambda engine, own, datagram=datagram, now=now, tos=tos: engine.inbound(
                datagram, float(now), tos=tos, source=(source, 4500)
            )
        )


def test_long_mixed_run():
    """Many packets over few SAs, where state adds up."""
    rng = random.Random(7)
    both = Both()
    both.set_policies([Policy(Action.PROTECT, (pair(), pair("::/0", "::/0")), reqid=1)])
    suite = SUITES[2]
    both.add_sa(params(Direction.OUT, suite, reqid=1))
    both.add_sa(params(Direction.IN, suite, replay_window=64))
    sent = []
    for now in range(1500):
        if not sent or rng.random() < 0.5:
            packet = udp(bytes(rng.randrange(3000)), rng.choice((4, 6)), df=rng.random() < 0.2)
            answer = both.same(lambda engine, own, packet=packet, now=now: engine.outbound(packet, float(now)))
            sent += [one.datagram for one in answer.sealed]
        else:
            datagram = rng.choice(sent[-100:])
            both.same(
                lambda engine, own, datagram=datagram, now=now: engine.inbound(datagram, float(now), tos=now & 255)
            )
