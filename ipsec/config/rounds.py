"""``local<suffix> { }`` and ``remote<suffix> { }``: the rounds of authentication of each end (RFC 4739).

They come in the order of ``round``, 0 where it is not set, and those with the same number as they are written, as with
charon. Only who begins proves more than once who it is: what else several rounds would mean is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipsec.config.grammar import Section
from ipsec.config.refused import numbered, warning_at
from ipsec.config.values import error_at, parse_number
from ipsec.errors import ConfigError
from ipsec.ike.config import Action, AuthClass, Connection

#: rounds of one end; somebody who has to show more is not better known
ROUNDS_MAX = 4


def names_of(section: Section, side: str) -> list[str]:
    """The sections of one end, ``local`` or ``remote``, as they come. ConfigError."""
    return sorted(numbered(section, side), key=lambda name: _place(section.sections[name]))


def _place(part: Section) -> int:
    value = part.values.get("round")
    if value is None or value.text is None:
        return 0
    try:
        return parse_number(value.text)
    except ConfigError as error:
        raise error_at(part, "round", error.message) from None


def parts_of(section: Section, side: str) -> list[Section]:
    """The same as sections; an empty one in place of none. ConfigError, also for too many."""
    names = names_of(section, side)
    if len(names) > ROUNDS_MAX:
        raise error_at(section, names[ROUNDS_MAX], f"there are {len(names)} rounds of {side}, {ROUNDS_MAX} are allowed")
    empty = Section(section.child_path(side), section.file, section.line)
    return [section.sections[name] for name in names] or [empty]


def first_part(section: Section, side: str) -> Section:
    """The section of the first round."""
    return parts_of(section, side)[0]


def _by_eap(connection: Connection) -> bool:
    """Whether the peer is the user, by its first proof."""
    return connection.remote.method is AuthClass.EAP and connection.local.method is not AuthClass.EAP


def check_rounds(section: Section, connection: Connection) -> None:
    """Refuse rounds that nobody would ever go through, or that we do not have. ConfigError."""
    locals_, remotes = names_of(section, "local"), names_of(section, "remote")
    only = "only who begins proves more than once who it is (RFC 4739)"
    if len(locals_) > 1 and len(remotes) > 1:
        raise error_at(section, remotes[1], f"{only}, and {locals_[1]} makes that us")
    if len(locals_) > 1 and _by_eap(connection):
        raise error_at(section, locals_[1], f"{only}, and {remotes[0]}.auth = eap makes that the peer")
    ours, theirs = connection.local.method, connection.remote.method
    if len(remotes) > 1 and ours is AuthClass.EAP and theirs is not AuthClass.EAP:
        raise error_at(section, remotes[1], f"{only}, and {locals_[0]}.auth = eap makes that us")


def round_warnings(section: Section, connection: Connection) -> Iterator[str]:
    """What will not be done by the end that we are."""
    if connection.remote_rounds:
        why = f"who begins proves more than once who it is, and {names_of(section, 'remote')[1]} makes that the peer"
    elif _by_eap(connection):
        why = "with EAP the user begins, and remote.auth makes the peer the user"
    else:
        return
    for child in connection.children:
        if not child.shunt and child.start_action is not Action.NONE:
            place = section.sections["children"].sections[child.name]
            yield warning_at(place, "start_action", f"{why}: this end cannot")
