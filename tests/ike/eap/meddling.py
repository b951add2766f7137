"""A method's two ends against each other, with somebody between them who changes what he likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod

Change = Callable[[int, bytes], bytes]
"""What becomes of the message with this number, requests are 0, 2, 4, ..., responses 1, 3, 5, ..."""


class Outcome:
    """How far it went. ``accepted`` is what the server says; ``error`` is the refusal, if there was one."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.accepted = False
        self.error: ParseError | EapError | None = None


def converse(peer: PeerMethod, server: ServerMethod, change: Change = lambda number, data: data) -> Outcome:
    """Whatever is raised but ParseError and EapError goes through, and is a bug."""
    outcome = Outcome()

    def pass_on(data: bytes) -> bytes:
        outcome.messages.append(data)
        return change(len(outcome.messages) - 1, data)

    try:
        request: bytes | None = server.begin(7)
        for identifier in range(7, 17):
            assert request is not None
            response = peer.respond(identifier, pass_on(request))
            request = server.take(identifier, pass_on(response), identifier + 1)
            if request is None:
                outcome.accepted = True
                return outcome
    except (ParseError, EapError) as error:
        outcome.error = error
        return outcome
    raise AssertionError("it never ends")


def instead_of(number: int, data: bytes) -> Change:
    """``data`` in the place of one message."""
    return lambda at, message: data if at == number else message


def truncations(data: bytes) -> Iterator[bytes]:
    return (data[:length] for length in range(len(data)))


def octet_changes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """All that differs from ``data`` by one octet, and where."""
    for at, octet in enumerate(data):
        for other in range(256):
            if other != octet:
                yield at, data[:at] + bytes((other,)) + data[at + 1 :]
