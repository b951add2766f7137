"""``connections.<conn>.children.<child> { }``: what goes through the tunnel, and how."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address
from typing import Any

from ipsec.config.grammar import Section
from ipsec.config.refused import DEVICE, KERNEL, Parser, read_supported, refused, warning_at
from ipsec.config.selector import parse_selector
from ipsec.config.values import (
    Switch,
    error_at,
    list_of,
    number_in,
    one_of,
    one_of_words,
    parse_bool,
    parse_number,
    parse_size,
    parse_switch,
    parse_tfc,
    parse_time,
    quoted,
    suggestion,
)
from ipsec.crypto.proposals import parse_proposals, weak
from ipsec.errors import ConfigError, SuiteError
from ipsec.ike.config import Action, ChildConfig, ChildMode, CopyDscp, SelectorTemplate
from ipsec.wire.iana import Protocol
from ipsec.wire.proposal import Proposal

DEFAULT_REKEY_TIME = 3600
#: rekeying needs a while, also where a tenth of a short rekey_time is next to nothing
LIFE_AFTER_REKEY_S = 10

_ACTIONS = {
    "none": Action.NONE,
    "clear": Action.NONE,
    "trap": Action.TRAP,
    "route": Action.TRAP,
    "start": Action.START,
    "restart": Action.START,
}


@lru_cache(maxsize=256)
def read_proposals(text: str, protocol: Protocol) -> tuple[Proposal, ...]:
    """Proposals from their keywords, between commas. ConfigError says which word is wrong."""
    try:
        return tuple(parse_proposals(list_of(str)(text), protocol))
    except SuiteError as error:
        raise ConfigError(str(error)) from None


def check_weak(section: Section, key: str, proposals: Sequence[Proposal], allow_weak: bool) -> None:
    """Refuse algorithms that RFC 8221 and RFC 8247 advise against, unless ``ipsecd.allow_weak`` is set."""
    for proposal in proposals:
        why = None if allow_weak else weak(proposal)
        if why:
            raise error_at(section, key, f"{why}; ipsecd.allow_weak = yes permits it")


def parse_action(text: str) -> Action:
    """none, trap, start or ``trap|start``, and their other spellings: clear, route, restart."""
    action = Action.NONE
    for word in text.lower().split("|"):
        name = word.strip()
        if name not in _ACTIONS:
            why = f"{quoted(text)} is not one of none, trap, start, trap|start{suggestion(name, _ACTIONS)}"
            raise ConfigError(why)
        action |= _ACTIONS[name]
    return action


def parse_template(text: str, *, whole_types: bool = False) -> SelectorTemplate:
    """A traffic selector; ``dynamic`` stays open until the addresses are known."""
    selector = parse_selector(text, IPv4Address(0), whole_types=whole_types)
    if text.strip().lower().partition("[")[0] == "dynamic":
        return SelectorTemplate(None, selector.protocol, selector.ports)
    return SelectorTemplate((selector.start, selector.end), selector.protocol, selector.ports)


def parse_mode(text: str) -> ChildMode:
    """tunnel, transport, pass or drop."""
    if text.lower() in ("beet", "transport_proxy", "iptfs"):
        raise ConfigError(f"the mode {text.lower()} is not supported, there are tunnel, transport, pass and drop")
    return one_of(ChildMode)(text)


def _parse_window(text: str) -> int:
    # the window is a ring of 64-bit words: what is asked for is the least there will be
    return -(-number_in(0, 65536)(text) // 64) * 64


def _is_zero(text: str) -> bool:
    """Whether a mark or interface id is one that marks nothing: ``0``, ``0/0x0``, ``0x0/0xffffffff``."""
    return bool(re.fullmatch(r"0+|0[xX]0+", text.partition("/")[0].strip()))


#: what a shell acts upon
_SHELL = "|&;<>()$`*?[]{}~!#\n"


def _parse_offload(text: str) -> Switch | None:
    """None for the words that parse_switch does not have."""
    return None if text.lower() in ("crypto", "packet") else parse_switch(text)


def _parse_command(text: str) -> tuple[str, ...]:
    """A command and its arguments, in quotes where they have spaces. No shell sees it."""
    found = next((character for character in text if character in _SHELL), "")
    if found:
        raise ConfigError(f"no shell runs this, {found!r} does nothing here: write a script that does it")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no command: {error}") from None
    if words and not words[0].startswith("/"):
        raise ConfigError(f"{words[0]!r} is no absolute path of a script")
    return words


_KEYS: dict[str, Parser] = {
    "esp_proposals": lambda text: read_proposals(text, Protocol.ESP),
    "local_ts": list_of(parse_template),
    "remote_ts": list_of(parse_template),
    **dict.fromkeys(("rekey_time", "life_time", "rand_time", "inactivity"), parse_time),
    **dict.fromkeys(("rekey_bytes", "life_bytes", "rand_bytes"), parse_size),
    **dict.fromkeys(("rekey_packets", "life_packets", "rand_packets"), parse_number),
    "mode": parse_mode,
    "policies": parse_bool,
    "reqid": number_in(0, 0xFFFFFFFF),
    "priority": number_in(0, 0x7FFFFFFF),
    "tfc_padding": parse_tfc,
    "replay_window": _parse_window,
    "copy_df": parse_bool,
    "copy_ecn": parse_bool,
    "sha256_96": parse_bool,
    "copy_dscp": one_of_words({member.value: member for member in CopyDscp}),
    "icmp": parse_bool,
    **dict.fromkeys(("start_action", "close_action", "dpd_action"), parse_action),
    "updown": _parse_command,
    "hostaccess": parse_bool,
}

#: interface ids of XFRM interfaces; also a key of connections
IF_ID = refused(DEVICE, _is_zero, True)

_REFUSED: dict[str, Parser] = {
    "ah_proposals": refused("AH is not supported, ESP without encryption does the same: esp_proposals = null-sha256"),
    "ipcomp": refused("IPComp is not supported", parse_bool, False),
    "policies_fwd_out": refused(KERNEL, parse_bool, False),
    "interface": refused(KERNEL),
    **dict.fromkeys(("mark_in", "mark_out"), refused(DEVICE, _is_zero, True)),
    **dict.fromkeys(("set_mark_in", "set_mark_out"), refused(KERNEL, _is_zero, True)),
    "mark_in_sa": refused(KERNEL, parse_bool, False),
    "if_id_in": IF_ID,
    "if_id_out": IF_ID,
    "label": refused(KERNEL),
    "label_mode": refused(KERNEL, one_of_words({"system": 0, "simple": 1, "selinux": 2}), 0),
    "hw_offload": refused(KERNEL, _parse_offload, Switch.NO, Switch.AUTO),
    "per_cpu_sas": refused(
        "SAs for each CPU (RFC 9611) are not supported",
        one_of_words({"no": False, "yes": True, "encap": True}),
        False,
    ),
}

#: keys whose values are fields of ChildConfig as they are
_LIFETIMES = ("rekey_time", "life_time", "rand_time", "inactivity")
_UNITS = {"time": DEFAULT_REKEY_TIME, "bytes": 0, "packets": 0}


def read_child(section: Section, name: str, *, allow_weak: bool = False) -> ChildConfig:
    """The child that a section describes. ConfigError names file, line and key."""
    values = read_supported(section, _KEYS, _REFUSED)
    values.setdefault("esp_proposals", read_proposals("default", Protocol.ESP))
    check_weak(section, "esp_proposals", values["esp_proposals"], allow_weak)
    for unit, default in _UNITS.items():
        values |= _read_lifetime(section, values, unit, default)
    for key in _LIFETIMES:
        values[key] = float(values.get(key, 0))
    if values.get("mode") in (ChildMode.PASS, ChildMode.DROP):
        values |= _selectors_of_shunt(section)
    child = ChildConfig(name=name, **values)
    _check_selectors(section, child)
    if child.shunt and Action.START in child.start_action:
        raise error_at(section, "start_action", f"mode = {child.mode.value} starts nothing, write trap")
    return child


def _selectors_of_shunt(section: Section) -> dict[str, Any]:
    """What passes or is dropped, of which no peer is told, by whole types of ICMP."""
    texts = {key: section.values[key].text for key in ("local_ts", "remote_ts") if key in section.values}
    parse = list_of(partial(parse_template, whole_types=True))
    return {key: parse(text) for key, text in texts.items() if text}


def child_warnings(section: Section, child: ChildConfig) -> list[str]:
    """What is allowed in a child but hardly meant."""
    found = []
    if child.shunt and not child.start_action:
        why = f"mode = {child.mode.value} has no effect without start_action = trap or ipsecctl install"
        found.append(warning_at(section, "start_action", why))
    if not child.replay_window:
        why = "replay protection is off: old packets will be accepted again"
        found.append(warning_at(section, "replay_window", why))
    if child.rekey_time and child.rekey_time == child.life_time and not child.rand_time:
        why = "life_time is rekey_time: the CHILD_SA ends at the moment at which its rekeying begins"
        found.append(warning_at(section, "life_time", why))
    if child.updown and not os.access(child.updown[0], os.X_OK):
        found.append(warning_at(section, "updown", f"{child.updown[0]} is no file that can be run"))
    if child.updown and child.shunt:
        found.append(warning_at(section, "updown", f"with mode = {child.mode.value} nothing comes up, it is never run"))
    return found


def _read_lifetime(section: Section, values: dict[str, Any], unit: str, default: int) -> dict[str, int]:
    """Soft and hard limit and the random part of the soft one; what is not set follows from the others."""
    rekey, life, rand = f"rekey_{unit}", f"life_{unit}", f"rand_{unit}"
    soft, hard = values.get(rekey), values.get(life)
    least = LIFE_AFTER_REKEY_S if unit == "time" else 0
    if soft is None:
        # as in charon the default stays where the limit leaves room for it; where not, charon would never rekey
        end = hard or 0
        soft = default if not end or 0 < default <= end - least else end - max(end // 10, min(least, end // 2))
    spare = soft // 10
    if hard is None:
        hard = soft + max(spare, least) if soft else 0
    else:
        spare = max(hard - soft, 0)
    if hard >= 1 << 63:
        raise error_at(section, rekey, "the limit is too large")
    if hard and soft > hard:
        raise error_at(section, rekey if rekey in values else life, f"{rekey} is {soft}, more than {life}: {hard}")
    random = values.get(rand)
    if random is None:
        # at most half: what lives much longer than until it is rekeyed must not be rekeyed at once
        random = min(spare, soft // 2)
    elif soft and random >= soft:
        raise error_at(section, rand, f"{random} is not less than {rekey}, which is {soft}")
    return {rekey: soft, life: hard, rand: random}


def _check_selectors(section: Section, child: ChildConfig) -> None:
    """Refuse local and remote selectors of which no two go together."""
    for local in child.local_ts:
        for remote in child.remote_ts:
            if local.network and remote.network and local.network[0].version != remote.network[0].version:
                continue
            if local.protocol and remote.protocol and local.protocol != remote.protocol:
                continue
            return
    key = "remote_ts" if "remote_ts" in section.values else "local_ts"
    raise error_at(section, key, "no selector of local_ts goes with one of remote_ts: families or protocols differ")
