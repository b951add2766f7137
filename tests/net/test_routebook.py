"""ipsec.net.routebook: what belongs into the table, by pure thought, and change by change as all at once."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range

from hypothesis import given
from hypothesis import strategies as st

from ipsec.net.routebook import Change, Entry, Prefix, Range, RouteBook, prefixes

IpAddress = IPv4Address | IPv6Address


def between(text: str) -> Range:
    network = ip_network(text)
    return network[0], network[-1]


class Table:
    """A routing table in a dict."""

    def __init__(self) -> None:
        self.entries: dict[Entry, IpAddress | None] = {}
        self.log: list[Change] = []

    def follow(self, book: RouteBook, limit: int = 1000) -> dict[str, str | None]:
        while book.pending:
            for change in book.changes(limit):
                self.log.append(change)
                if change.add:
                    self.entries[change.entry] = change.source
                else:
                    del self.entries[change.entry]
        return self.shown()

    def shown(self) -> dict[str, str | None]:
        return {
            f"{entry.kind} {entry.prefix}": str(source) if source is not None else None
            for entry, source in self.entries.items()
        }


def test_a_source_inside_the_local_networks_is_preferred() -> None:
    book = RouteBook()
    for local, remote in (
        ("10.1.0.0/16", "10.2.0.0/16"),
        ("fd01::/16", "fd02::/16"),
        ("10.9.0.0/16", "10.3.0.0/16"),
        ("10.9.0.0/16", "10.4.0.0/16"),
        ("10.1.0.0/16", "10.4.0.0/16"),
    ):
        book.protect(between(local), between(remote))
    book.set_own([ip_address(text) for text in ("192.0.2.1", "10.1.0.9", "10.1.0.1", "fd01::1")])
    table = Table()
    assert table.follow(book) == {
        "unicast 10.2.0.0/16": "10.1.0.9",
        "unicast fd02::/16": "fd01::1",
        "unicast 10.3.0.0/16": None,
        "unicast 10.4.0.0/16": "10.1.0.9",
    }
    table.log.clear()
    book.set_own([ip_address("10.1.0.1"), ip_address("fd01::1")])
    assert table.follow(book)["unicast 10.2.0.0/16"] == "10.1.0.1"
    assert {str(change.entry.prefix) for change in table.log} == {"10.2.0.0/16", "10.4.0.0/16"}


def test_what_a_route_covers_is_excluded() -> None:
    book, table = RouteBook(), Table()
    for text in ("192.0.2.2", "2001:db8::2", "198.51.100.0/24", "fd00::/8"):
        book.exclude(between(text))
    assert table.follow(book) == {}
    book.protect(between("0.0.0.0/0"), between("0.0.0.0/0"))
    assert table.follow(book) == {
        "unicast 0.0.0.0/0": None,
        "throw 192.0.2.2/32": None,
        "throw 198.51.100.0/24": None,
    }
    # exclusions first, one by one too: between the two a peer's packets would enter the tunnel they carry
    assert [change.entry.kind for change in table.log] == ["throw", "throw", "unicast"]
    table.log.clear()
    book.unprotect(between("0.0.0.0/0"), between("0.0.0.0/0"))
    assert table.follow(book, limit=1) == {}
    assert [change.entry.kind for change in table.log] == ["unicast", "throw", "throw"]


def test_the_very_network_that_is_protected_is_not_excluded() -> None:
    book = RouteBook()
    book.protect(between("192.0.2.1"), between("192.0.2.2/32"))
    book.exclude(between("192.0.2.2"))
    assert Table().follow(book) == {"unicast 192.0.2.2/32": None}


def test_fail_closed() -> None:
    book, table = RouteBook(fail_closed=True), Table()
    book.protect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    assert table.follow(book) == {"unreachable 10.2.0.0/16": None, "unicast 10.2.0.0/16": None}
    book.unprotect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    assert table.follow(book) == {}


def test_what_failed_is_tried_again() -> None:
    book = RouteBook()
    book.protect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    (change,) = book.changes(10)
    book.failed(change)
    assert not book.pending
    book.retry([change.entry])
    assert book.changes(10) == [change]
    book.unprotect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    (removal,) = book.changes(10)
    book.failed(removal)
    book.retry([removal.entry])
    assert book.changes(10) == [removal]


def test_what_was_there_is_taken_over() -> None:
    book = RouteBook()
    book.protect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    book.exclude(between("10.2.0.9"))
    inside = Prefix(4, 16, int(ip_address("10.2.0.0")))
    throw = Prefix(4, 32, int(ip_address("10.2.0.9")))
    foreign = Prefix(6, 64, 0)
    book.adopt([Entry("unicast", inside), Entry("throw", throw), Entry("unreachable", foreign)])
    changes = []
    while book.pending:
        changes += book.changes(10)
    # its source is not known, so it is made anew; the other is as it should be
    assert changes == [Change(True, Entry("unicast", inside)), Change(False, Entry("unreachable", foreign))]


def closed(*texts: str) -> list[Prefix]:
    return [prefix for text in texts for prefix in prefixes(*between(text))]


def test_what_was_closed_stays_so_where_it_is_awaited() -> None:
    book, table = RouteBook(fail_closed=True), Table()
    left = closed("10.2.0.0/16", "10.3.0.0/16", "10.4.4.0/24", "10.9.0.1/32", "fd02::/16", "fd09::1/128", "::/8")
    table.entries = {Entry("unreachable", prefix): None for prefix in left}
    book.keep(left)
    book.adopt(table.entries)
    book.protect(between("0.0.0.0/0"), between("10.2.0.0/16"))
    everything = {f"unreachable {prefix}": None for prefix in left} | {"unicast 10.2.0.0/16": None}
    assert table.follow(book) == everything
    assert book.versions == {4, 6}
    # inside of one, around another, and a host, whichever that is
    awaited = {between("10.3.3.0/24"), between("10.3.0.0/28"), between("10.4.0.0/16"), between("fd02:1::/32"), None}
    assert book.let_go(awaited) == 5
    stays = ("10.3.0.0/16", "10.4.4.0/24", "10.9.0.1/32", "fd02::/16", "fd09::1/128")
    live = {"unicast 10.2.0.0/16": None, "unreachable 10.2.0.0/16": None}
    assert table.follow(book) == {f"unreachable {text}": None for text in stays} | live
    # a tunnel that comes and goes leaves it as it was, and who removes it has it put back
    book.protect(between("0.0.0.0/0"), between("10.9.0.1"))
    assert "unicast 10.9.0.1/32" in table.follow(book)
    book.unprotect(between("0.0.0.0/0"), between("10.9.0.1"))
    book.protect(between("0.0.0.0/0"), between("10.8.0.1"))
    assert "unreachable 10.8.0.1/32" in table.follow(book)
    book.unprotect(between("0.0.0.0/0"), between("10.8.0.1"))
    table.entries.clear()
    book.adopt([])
    assert table.follow(book) == {f"unreachable {text}": None for text in stays} | live
    assert book.let_go({between("10.3.0.0/16")}) == 1
    assert book.let_go({None}) == 0, "what has opened is not closed again"
    assert table.follow(book) == live
    assert book.versions == {4}


def test_what_is_excluded_is_so_from_what_stays_closed() -> None:
    """``pass`` for a name server, without which no name would ever be known."""
    book, table = RouteBook(fail_closed=True), Table()
    book.exclude(between("192.0.2.53"))
    left = closed("0.0.0.0/0", "192.0.2.2/32")
    table.entries = {Entry("unreachable", prefix): None for prefix in left}
    book.keep(left)
    book.adopt(table.entries)
    # an SA with the peer lets its packets out by their mark, and others not
    book.exclude(between("192.0.2.2"))
    kept = {"unreachable 0.0.0.0/0": None, "unreachable 192.0.2.2/32": None}
    assert table.follow(book) == kept | {"throw 192.0.2.53/32": None}
    book.let_go()
    assert table.follow(book) == {}


def test_what_is_to_pass_is_kept_no_longer() -> None:
    """``pass`` for the very network, or around it, that a predecessor closed: no name may ever be known otherwise."""
    book, table = RouteBook(fail_closed=True), Table()
    left = closed("10.2.0.0/16", "10.3.0.1/32", "0.0.0.0/1", "fd02::/16")
    table.entries = {Entry("unreachable", prefix): None for prefix in left}
    book.keep(left)
    book.adopt(table.entries)
    book.let_pass(between("10.2.0.0/16"))
    book.let_pass((ip_address("10.3.0.1"), ip_address("10.3.0.9")))
    assert table.follow(book) == {"unreachable 0.0.0.0/1": None, "unreachable fd02::/16": None}
    book.let_pass(between("0.0.0.0/0"))
    assert table.follow(book) == {"unreachable fd02::/16": None}


ADDRESSES = st.integers(0, 31).map(lambda n: IPv4Address(0x0A000000 + n))
RANGES = st.tuples(ADDRESSES, ADDRESSES).map(lambda pair: (min(pair), max(pair)))


@given(RANGES)
def test_prefixes_are_the_standard_librarys(range_: tuple[IPv4Address, IPv4Address]) -> None:
    assert [str(prefix) for prefix in prefixes(*range_)] == [str(n) for n in summarize_address_range(*range_)]


def test_prefixes_of_everything() -> None:
    for text in ("0.0.0.0/0", "::/0", "255.255.255.255/32", "ff::/128", "128.0.0.0/1"):
        assert [str(prefix) for prefix in prefixes(*between(text))] == [text]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("protect"), RANGES, RANGES),
        st.tuples(st.just("exclude"), RANGES),
        st.tuples(st.just("undo"), st.integers(0, 50)),
        st.tuples(st.just("own"), st.lists(ADDRESSES, max_size=3, unique=True)),
        st.tuples(st.just("apply"), st.integers(1, 4)),
    ),
    max_size=30,
)


@given(STEPS)
def test_changes_lead_where_a_fresh_start_leads(steps: list[tuple[object, ...]]) -> None:
    book, table = RouteBook(fail_closed=True), Table()
    standing: list[tuple[object, ...]] = []
    own: list[IPv4Address] = []

    def do(target: RouteBook, step: tuple[object, ...], undo: bool = False) -> None:
        if step[0] == "protect":
            (target.unprotect if undo else target.protect)(step[1], step[2])  # type: ignore[arg-type]
        else:
            (target.include if undo else target.exclude)(step[1])  # type: ignore[arg-type]

    for step in steps:
        if step[0] in ("protect", "exclude"):
            standing.append(step)
            do(book, step)
        elif step[0] == "undo" and standing:
            do(book, standing.pop(int(str(step[1])) % len(standing)), undo=True)
        elif step[0] == "own":
            own = step[1]  # type: ignore[assignment]
            book.set_own(own)
        elif step[0] == "apply":
            table.follow(book, limit=step[1])  # type: ignore[arg-type]
    fresh = RouteBook(fail_closed=True)
    for step in standing:
        do(fresh, step)
    fresh.set_own(own)
    assert table.follow(book) == Table().follow(fresh)
