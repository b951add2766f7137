"""The section ``sas { }``: manually keyed SAs (RFC 4301 section 4.5.1), each a pair of one inbound and one outbound.

Keys that ``children { }`` of swanctl.conf has too are named and mean as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ipsec.config.grammar import Section
from ipsec.config.proposal import EspProposal, parse_esp_proposal
from ipsec.config.selector import parse_selector, selector_pairs
from ipsec.config.settings import DaemonSettings
from ipsec.config.values import (
    IpAddress,
    error_at,
    list_of,
    number_in,
    one_of_words,
    parse_address,
    parse_bool,
    parse_number,
    parse_secret,
    parse_size,
    parse_tfc,
    read_keys,
    read_secret_file,
)
from ipsec.errors import ConfigError, SaError, SuiteError
from ipsec.esp.sa import Action, DfPolicy, Direction, DscpPolicy, Lifetime, Mode, Policy, SaParams
from ipsec.wire.selector import ANY_PORT, SelectorPair, TrafficSelector

#: automatic priorities: exceptions before tunnels before what is thrown away, and within each the narrower first
PRIORITY_BASE = {Action.BYPASS: 100_000, Action.PROTECT: 200_000, Action.DISCARD: 300_000}

#: keys of swanctl.conf's children that mean something only where IKEv2 makes the SA
_NEGOTIATED = (
    *("rekey_time", "life_time", "rand_time", "rand_bytes", "rand_packets", "inactivity"),
    *("start_action", "close_action", "dpd_action", "updown", "hostaccess", "per_cpu_sas", "ah_proposals", "ipcomp"),
    "sha256_96",
)


@dataclass(frozen=True)
class ManualPolicy:
    """``sas.<name>.policies.<policy> { }``: a policy in place of the one that an SA has by itself."""

    name: str
    action: Action
    "protect: through the SA; bypass: in clear; discard"
    selectors: tuple[SelectorPair, ...]
    "from local_ts and remote_ts, which default to those of the SA"
    priority: int = 0
    "smaller comes first; 0: bypass before protect before discard, and within each the narrower selector first"

    def policies(self, reqid: int, *, icmp: bool = False) -> tuple[Policy, ...]:
        """The SPD entries: one for each pair of selectors."""
        protect = self.action is Action.PROTECT
        return tuple(
            Policy(
                self.action,
                (pair,),
                reqid if protect else 0,
                self.priority or automatic_priority(self.action, pair),
                icmp=icmp and protect,
            )
            for pair in self.selectors
        )


@dataclass(frozen=True)
class ManualSa:
    """``sas.<name> { }``. Keys never appear in ``repr``."""

    name: str
    local: IpAddress
    "our outer address"
    remote: IpAddress
    "the peer's outer address"
    spi_in: int
    "SPI of what we receive, 0x100..0xffffffff; each inbound SA has its own"
    spi_out: int
    "SPI of what we send: the peer's spi_in"
    proposal: EspProposal
    "key esp_proposals: one suite, and esn if wanted: aes128gcm16-esn, aes256-sha256"
    key_in: bytes = field(repr=False)
    "0x hexadecimal or 0s Base64: cipher key, then salt, then integrity key (the order of RFC 7296 section 2.17)"
    key_out: bytes = field(repr=False)
    "the same for what we send; the peer's key_in"
    integ_key_in: bytes = field(default=b"", repr=False)
    "the integrity key, if key_in does not hold it"
    integ_key_out: bytes = field(default=b"", repr=False)
    "the integrity key, if key_out does not hold it"
    mode: Mode = Mode.TUNNEL
    "tunnel or transport"
    encap: tuple[int, int] | None = None
    "keys encap, local_port, remote_port: ESP in UDP between these ports (default port_nat_t, 4500); else protocol 50"
    selectors: tuple[SelectorPair, ...] = ()
    "keys local_ts, remote_ts: what may pass, lists; 'dynamic', the default, is the outer address"
    replay_window: int = 1024
    "packets, a multiple of 64 in 64..65536; 0 accepts replays"
    copy_df: DfPolicy = DfPolicy.COPY
    "DF of the outer IPv4 header: yes copies it, no or clear clears it, set sets it"
    copy_ecn: bool = True
    "carry ECN between inner and outer header (RFC 6040)"
    copy_dscp: DscpPolicy = DscpPolicy.OUT
    "carry DSCP: out to the outer header, in from it, yes both, no neither"
    tfc_padding: int = 0
    "pad what we send to this many octets, or 'mtu' (here -1) to the path MTU"
    lifetime: Lifetime = field(default_factory=Lifetime)
    "keys rekey_bytes, life_bytes, rekey_packets, life_packets: warn at the first of each two, stop at the second"
    path_mtu: int = 1500
    "octets of the largest IP packet on the way to the peer; default ipsecd.path_mtu"
    follow_peer: bool = True
    "send to where the peer's last authenticated packet came from, when a NAT has moved it"
    icmp: bool = False
    "ICMP errors pass for what they quote, whoever says them (RFC 4301 section 6.2)"
    reqid: int = 0
    "ties policies to SAs: SAs that share one are the old and the new keys of the same traffic; default: one of its own"
    policies: tuple[ManualPolicy, ...] = ()
    "default: one that protects the selectors"

    def params(self) -> tuple[SaParams, SaParams]:
        """Inbound and outbound SA."""
        return self._params(Direction.IN), self._params(Direction.OUT)

    def _params(self, direction: Direction) -> SaParams:
        inbound = direction is Direction.IN
        return SaParams(
            spi=self.spi_in if inbound else self.spi_out,
            direction=direction,
            suite=self.proposal.suite,
            local=self.local,
            remote=self.remote,
            encr_key=self.key_in if inbound else self.key_out,
            integ_key=self.integ_key_in if inbound else self.integ_key_out,
            mode=self.mode,
            encap=self.encap,
            selectors=self.selectors,
            esn=self.proposal.esn,
            replay_window=self.replay_window,
            df=self.copy_df,
            copy_dscp=self.copy_dscp,
            copy_ecn=self.copy_ecn,
            tfc=self.tfc_padding,
            path_mtu=self.path_mtu,
            lifetime=self.lifetime,
            follow_peer=self.follow_peer,
            reqid=self.reqid,
            icmp=self.icmp,
        )


def automatic_priority(action: Action, pair: SelectorPair) -> int:
    """Smaller for selectors that say more: addresses first, then protocol, then ports."""
    width = sum((int(side.end) - int(side.start)).bit_length() for side in (pair.local, pair.remote))
    # an IPv4 selector competes with IPv4 ones only, so the scales need not agree
    vague = 2 * (not pair.protocol) + (pair.local.ports == ANY_PORT and pair.remote.ports == ANY_PORT)
    return PRIORITY_BASE[action] + 4 * width + vague


def _parse_window(text: str) -> int:
    window = number_in(0, 65536)(text)
    if window % 64:
        raise ConfigError(f"{window} is not a multiple of 64, write {window - window % 64 + 64}")
    return window


_KEYS: dict[str, Callable[[str], object]] = {
    "local": parse_address,
    "remote": parse_address,
    "spi_in": number_in(0x100, 0xFFFFFFFF, hexadecimal=True),
    "spi_out": number_in(0x100, 0xFFFFFFFF, hexadecimal=True),
    "esp_proposals": parse_esp_proposal,
    **dict.fromkeys(("key_in", "key_out", "integ_key_in", "integ_key_out"), parse_secret),
    **dict.fromkeys(("key_in_file", "key_out_file", "integ_key_in_file", "integ_key_out_file"), str),
    "mode": one_of_words({"tunnel": Mode.TUNNEL, "transport": Mode.TRANSPORT}),
    "encap": parse_bool,
    "local_port": number_in(1, 65535),
    "remote_port": number_in(1, 65535),
    "local_ts": list_of(str),
    "remote_ts": list_of(str),
    "replay_window": _parse_window,
    "copy_df": one_of_words({"yes": DfPolicy.COPY, "no": DfPolicy.CLEAR, "set": DfPolicy.SET, "clear": DfPolicy.CLEAR}),
    "copy_ecn": parse_bool,
    "copy_dscp": one_of_words({"no": DscpPolicy.NO, "in": DscpPolicy.IN, "out": DscpPolicy.OUT, "yes": DscpPolicy.YES}),
    "tfc_padding": parse_tfc,
    "rekey_bytes": parse_size,
    "life_bytes": parse_size,
    "rekey_packets": parse_number,
    "life_packets": parse_number,
    "path_mtu": number_in(576, 65535),
    "follow_peer": parse_bool,
    "icmp": parse_bool,
    "reqid": number_in(0, 0xFFFFFFFF),
}

_POLICY_KEYS: dict[str, Callable[[str], object]] = {
    "action": one_of_words({"protect": Action.PROTECT, "bypass": Action.BYPASS, "discard": Action.DISCARD}),
    "local_ts": list_of(str),
    "remote_ts": list_of(str),
    "priority": number_in(0, 0x7FFFFFFF),
}

#: keys whose values are fields of ManualSa as they are
_PLAIN = (
    *("local", "remote", "spi_in", "spi_out", "mode", "replay_window", "copy_df", "copy_ecn", "copy_dscp"),
    *("tfc_padding", "follow_peer", "icmp", "reqid"),
)


def read_sa(section: Section, name: str, settings: DaemonSettings) -> ManualSa:
    """The SA that ``sas.<name> { }`` describes, by itself sound; ``ipsec.config.schema`` looks at all of them."""
    for key in section.values:
        if key in _NEGOTIATED:
            raise error_at(section, key, "this is for SAs that IKEv2 makes, a manual SA has no such key")
    values = read_keys(section, _KEYS, sections=("policies",))
    for key in ("local", "remote", "spi_in", "spi_out", "esp_proposals"):
        if key not in values:
            raise error_at(section, key, "a manual SA needs this key")
    fields: dict[str, Any] = {key: values[key] for key in _PLAIN if key in values}
    local, remote = values["local"], values["remote"]
    for key in ("local", "remote"):
        if values[key].is_unspecified or values[key].is_multicast:
            raise error_at(section, key, f"{values[key]} is not the address of one host")
    if local.version != remote.version:
        raise error_at(section, "remote", f"{local} and {remote} are of different families")
    proposal: EspProposal = values["esp_proposals"]
    if proposal.suite.weak and not settings.allow_weak:
        raise error_at(section, "esp_proposals", f"{proposal.suite} is weak, ipsecd.allow_weak = yes permits it")
    fields["proposal"] = proposal
    for direction in ("in", "out"):
        fields |= _read_keys_of(section, values, proposal, direction)
    fields["encap"] = _read_encap(section, values, settings)
    fields["lifetime"] = _read_lifetime(section, values)
    fields["path_mtu"] = values.get("path_mtu", settings.path_mtu)
    fields["selectors"] = _read_selectors(section, values, values)
    if fields.get("mode") is Mode.TRANSPORT:
        _check_transport(section, fields)
    sa = ManualSa(name=name, policies=_read_policies(section, values, fields["selectors"]), **fields)
    try:
        sa.params()
    except (SaError, SuiteError) as error:
        raise ConfigError(str(error), file=section.file, line=section.line, key=section.path) from None
    return sa


def _read_keys_of(section: Section, values: dict[str, Any], proposal: EspProposal, direction: str) -> dict[str, bytes]:
    """Encryption and integrity key of one direction, from whichever of the four keys are there."""
    suite = proposal.suite
    key_name, integ_name = f"key_{direction}", f"integ_key_{direction}"
    key = _read_secret(section, values, key_name)
    integ = _read_secret(section, values, integ_name)
    integ_place = integ_name if integ_name in values else f"{integ_name}_file"
    key_place = f"{key_name}_file" if f"{key_name}_file" in values else key_name
    if key is None:
        if suite.key_len or integ is None:
            raise error_at(section, key_name, f"a manual SA needs this key, or {key_name}_file")
        key = b""
    if integ is None:
        want = suite.key_len + suite.integ_key_len
        parts = [(suite.encr_key_len, "cipher key"), (suite.salt_len, "salt"), (suite.integ_key_len, "integrity key")]
        layout = " + ".join(f"{size} {what}" for size, what in parts if size)
        if len(key) != want:
            raise error_at(section, key_place, f"{suite} takes {want} octets ({layout}), this key has {len(key)}")
        key, integ = key[: suite.key_len], key[suite.key_len :]
    elif suite.aead:
        raise error_at(section, integ_place, f"{suite} has integrity of its own and takes no other key")
    try:
        suite.check_keys(key, integ)
    except SuiteError as error:
        raise error_at(section, key_place if len(key) != suite.key_len else integ_place, str(error)) from None
    return {key_name: key, integ_name: integ}


def _read_secret(section: Section, values: dict[str, Any], name: str) -> bytes | None:
    """A key that is written inline or in a file, not both."""
    file_key = f"{name}_file"
    if name in values and file_key in values:
        raise error_at(section, file_key, f"{name} is there too, remove one of them")
    if file_key in values:
        try:
            return read_secret_file(values[file_key], section.values[file_key].file)
        except ConfigError as error:
            raise error_at(section, file_key, error.message) from None
    secret: bytes | None = values.get(name)
    return secret


def _read_encap(section: Section, values: dict[str, Any], settings: DaemonSettings) -> tuple[int, int] | None:
    if values.get("encap", False):
        return values.get("local_port", settings.port_nat_t), values.get("remote_port", 4500)
    for key in ("local_port", "remote_port"):
        if key in values:
            raise error_at(section, key, "a port is for ESP in UDP, add encap = yes")
    return None


def _read_lifetime(section: Section, values: dict[str, Any]) -> Lifetime:
    """Soft and hard limits; as in swanctl.conf, either follows from the other with 10 % between them."""
    limits: dict[str, int] = {}
    for unit in ("bytes", "packets"):
        soft, hard = values.get(f"rekey_{unit}"), values.get(f"life_{unit}")
        if soft is None:
            soft = hard - hard // 10 if hard else 0
        if hard is None:
            hard = soft + soft // 10
        if hard and soft > hard:
            raise error_at(section, f"rekey_{unit}", f"{soft} is more than life_{unit}, which is {hard}")
        if hard >= 1 << 63:
            raise error_at(section, f"rekey_{unit}", "the limit is too large")
        limits[f"{unit}_soft"], limits[f"{unit}_hard"] = soft, hard
    return Lifetime(**limits)


def _read_selectors(
    section: Section, values: dict[str, Any], outer: dict[str, Any], inherited: dict[str, Any] | None = None
) -> tuple[SelectorPair, ...]:
    """The pairs that local_ts and remote_ts of a section make; ``outer`` has the addresses that 'dynamic' means."""
    sides: list[list[TrafficSelector]] = []
    for key, address in (("local_ts", outer["local"]), ("remote_ts", outer["remote"])):
        texts = values.get(key) or (inherited or {}).get(key) or ("dynamic",)
        try:
            sides.append([parse_selector(text, address, whole_types=True) for text in texts])
        except ConfigError as error:
            raise error_at(section, key, error.message) from None
    try:
        return selector_pairs(*sides)
    except ConfigError as error:
        key = "remote_ts" if "remote_ts" in section.values else "local_ts"
        raise error_at(section, key, error.message) from None


def _check_transport(section: Section, fields: dict[str, Any]) -> None:
    # RFC 4301 section 4.1: a transport mode SA protects traffic between its own two ends
    for pair in fields["selectors"]:
        for key, side, address in (
            ("local_ts", pair.local, fields["local"]),
            ("remote_ts", pair.remote, fields["remote"]),
        ):
            if not side.covers_address(address):
                why = f"transport mode carries traffic of {address} itself, which {side} does not include"
                raise error_at(section, key, why)


def _read_policies(
    section: Section, outer: dict[str, Any], selectors: tuple[SelectorPair, ...]
) -> tuple[ManualPolicy, ...]:
    if "policies" not in section.sections:
        return (ManualPolicy("default", Action.PROTECT, selectors),)
    parent = section.sections["policies"]
    read_keys(parent, {}, sections=parent.sections)
    if not parent.sections:
        raise error_at(section, "policies", "no policy is in here")
    policies = []
    for name, child in parent.sections.items():
        values = read_keys(child, _POLICY_KEYS)
        if "action" not in values:
            raise error_at(child, "action", "a policy needs this key: protect, bypass or discard")
        pairs = _read_selectors(child, values, outer, inherited=outer)
        if values["action"] is Action.PROTECT:
            for pair in pairs:
                if not any(whole.contains(pair) for whole in selectors):
                    key = "local_ts" if "local_ts" in values else "remote_ts"
                    raise error_at(child, key, f"{pair} is not within the selectors of the SA")
        policies.append(ManualPolicy(name, values["action"], pairs, values.get("priority", 0)))
    return tuple(policies)
