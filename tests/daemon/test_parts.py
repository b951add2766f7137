"""The daemon's smaller parts, without a network: what it hears, what it writes, where it looks."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipsec.backend.requirements import Requirement, State
from ipsec.config import load_text
from ipsec.crypto.sk import sk_suite
from ipsec.daemon import backend_settings
from ipsec.daemon.keylog import KeyLog
from ipsec.daemon.logs import (
    SOON_S,
    WAITING_MAX,
    JsonFormatter,
    PatientHandler,
    formatter,
    leave_out_what_no_line_says,
)
from ipsec.daemon.reach import OwnAddresses, Resolver, allows, source_address, usable
from ipsec.daemon.ready import PEERS_SHOWN, check_control, check_ike, in_short
from ipsec.daemon.secret import SECRET_LEN, qcd_secret
from ipsec.daemon.watch import concerns_us
from ipsec.errors import BackendError
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.sa import IkeSa
from ipsec.net import udp
from ipsec.net.marks import default_mark
from ipsec.vici.logs import LogRelay
from ipsec.wire.iana import Encr, Integ
from tests.backend.disk import no_room

OURS, OUR_DEVICE = 205, 7
MANUAL = f"""sas {{ one {{
    local = 192.0.2.1
    remote = 192.0.2.2
    spi_in = 0x1001
    spi_out = 0x1002
    esp_proposals = null-sha256
    key_in = 0x{"01" * 32}
    key_out = 0x{"02" * 32}
    local_ts = 10.1.0.0/16
    remote_ts = 10.2.0.0/16
}} }}"""


def netlink(kind: int, protocol: int = 0, index: int = 0) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, protocol, 0, 1, 0)
    if index:
        body = struct.pack("=BBBBI", 2, 24, 0, 0, index)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("data", "concerned"),
    [
        (netlink(24, OURS), False),
        (netlink(25, OURS) * 3, False),
        (netlink(24, OURS) + netlink(24, 3), True),
        (netlink(20), True),
        (netlink(17), True),
        (netlink(16, index=3), True),
        (netlink(16, index=OUR_DEVICE) + netlink(20, index=OUR_DEVICE), False),
        (netlink(21, index=OUR_DEVICE) + netlink(21, index=3), True),
        (netlink(16, index=3)[:18], False),
        (netlink(28), True),
        (b"", False),
        (netlink(24, 3)[:20], False),
        (bytes(64), False),
    ],
    ids=["ours", "several of ours", "another route", "address", "link", "another link", "our device",
         "another address too", "a link, cut", "something else", "nothing", "cut", "zeros"],
)  # fmt: skip
def test_our_own_routes_and_device_are_no_news(data: bytes, concerned: bool) -> None:
    assert concerns_us(data, OURS, lambda: OUR_DEVICE) is concerned


@pytest.mark.parametrize(
    ("texts", "address", "expected"),
    [
        (("%any",), "192.0.2.1", True),
        (("192.0.2.0/24",), "192.0.2.1", True),
        (("192.0.2.0/24",), "2001:db8::1", False),
        (("192.0.2.1-192.0.2.9",), "192.0.2.9", True),
        (("192.0.2.1-192.0.2.9",), "192.0.2.10", False),
        (("gw.example.org", "2001:db8::1"), "2001:db8::1", True),
        (("gw-1.example.org",), "192.0.2.1", False),
        ((), "192.0.2.1", False),
    ],
)
def test_address_lists(texts: tuple[str, ...], address: str, expected: bool) -> None:
    assert allows(texts, ip_address(address)) is expected


def test_ways_out() -> None:
    loopback = ip_address("127.0.0.1")
    assert source_address(loopback, 0) == loopback
    assert usable(loopback, loopback, 0)
    assert not usable(ip_address("192.0.2.123"), loopback, 0)


@pytest.mark.parametrize("journal", [False, True])
def test_lines_have_the_time_unless_the_journal_has_it(monkeypatch: pytest.MonkeyPatch, journal: bool) -> None:
    there = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino if journal else there.st_ino + 1}")
    record = logging.LogRecord("ipsec.x", logging.INFO, "", 0, "up", None, None)
    record.created, record.msecs = 0.25, 250
    time = "" if journal else "1970-01-01T00:00:00.250Z "
    lines = formatter("text")
    assert lines.format(record) == f"{time}INFO ipsec.x: up"
    record.created, record.msecs = 1.999, 999
    assert lines.format(record) == f"{time.replace('00.250', '01.999')}INFO ipsec.x: up"
    record.created, record.msecs = 0.001, 1
    assert lines.format(record) == f"{time.replace('250', '001')}INFO ipsec.x: up"


HOSTILE = "a\nINFO ipsec.x: forged\r\t\x1b[2J\x7f\u2028\u202e\udcff\U000e0001 \u00e9"
ESCAPED = r"a\nINFO ipsec.x: forged\r\t\x1b[2J\x7f\u2028\u202e\udcff\U000e0001 " + "\u00e9"


@pytest.mark.parametrize("journal", [False, True])
def test_a_line_is_one_line_whoever_has_a_word_in_it(journal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities of peers, and what vici clients say."""
    monkeypatch.setattr("ipsec.daemon.logs._in_journal", lambda: journal)
    line = formatter("text").format(logging.LogRecord("ipsec.x", logging.INFO, "", 0, "%s", (HOSTILE,), None))
    assert line.endswith(f"INFO ipsec.x: {ESCAPED}")
    assert line.isprintable()


def test_lines_need_neither_caller_nor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> list[str]:
        out = io.StringIO()
        heard: list[str] = []
        logger = logging.Logger("ipsec.test")
        for kind in ("text", "json"):
            handler = logging.StreamHandler(out)
            handler.setFormatter(formatter(kind))
            logger.addHandler(handler)
        logger.addHandler(LogRelay(lambda record, sa: heard.append(record.getMessage())))
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("%s of %d", "one", 2)
        assert heard == ["one of 2"]
        text = re.sub(r"[0-9T:.-]{23}Z|[0-9T:.+-]{29}", "TIME", out.getvalue())
        return re.sub(r"line [0-9]+", "line N", text).splitlines()

    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    before = lines()
    leave_out_what_no_line_says()
    assert not logging.logThreads
    assert lines() == before
    assert any("ValueError: why" in line for line in before)


def test_a_traceback_forges_no_line() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    first, *others = (
        formatter("text").format(logging.LogRecord("ipsec.x", logging.ERROR, "", 0, "bug", (), info)).split("\n")
    )
    assert first.endswith("ERROR ipsec.x: bug")
    assert others
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_json_lines_can_be_written_whatever_is_in_them() -> None:
    line = JsonFormatter().format(logging.LogRecord("ipsec.x", logging.INFO, "", 0, "%s", (HOSTILE,), None))
    assert "\n" not in line
    assert json.loads(line.encode())["message"] == HOSTILE


def test_json_lines_hold_whatever_is_said() -> None:
    line = JsonFormatter().format(
        logging.LogRecord("ipsec.x", logging.WARNING, "f", 1, 'two\nlines of "%s" \u00e9', ("%any",), None)
    )
    assert "\n" not in line
    assert json.loads(line)["message"] == 'two\nlines of "%any" \u00e9'
    assert json.loads(line)["level"] == "warning"
    try:
        raise ValueError("why")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("ipsec.x", logging.ERROR, "f", 1, "%(a)s is bad", ({"a": 1},), info)
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["exception"]


# -- our own addresses


def own_addresses(monkeypatch: pytest.MonkeyPatch, *found: str) -> OwnAddresses:
    def reachable(netlink: object, *, without: str) -> list[object]:
        assert without == "ipsec7"
        return list(map(ip_address, found))

    monkeypatch.setattr("ipsec.daemon.reach.reachable_addresses", reachable)
    resolver = Resolver()
    resolver._known["gw.example"] = (ip_address("198.51.100.1"),)
    made = OwnAddresses(resolver, device="ipsec7", fwmark=0)
    assert made.of(["%any"]) == ()
    made.read()
    return made


@pytest.mark.parametrize(
    ("local_addrs", "wanted"),
    [
        (["%any"], ["192.0.2.1", "198.51.100.1", "2001:db8::1"]),
        (["192.0.2.1"], ["192.0.2.1"]),
        (["192.0.2.0/24", "2001:db8::/32"], ["192.0.2.1", "2001:db8::1"]),
        (["gw.example"], ["198.51.100.1"]),
        (["203.0.113.1"], []),
    ],
)
def test_addresses_for_a_connection(monkeypatch: pytest.MonkeyPatch, local_addrs: list[str], wanted: list[str]) -> None:
    """A peer hears of no address that its connection has no room for."""
    made = own_addresses(monkeypatch, "192.0.2.1", "198.51.100.1", "2001:db8::1")
    assert list(map(str, made.of(local_addrs))) == wanted


def test_addresses_from_which_a_way_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """192.0.2.1 is read, and is no address of this host any more; on loopback there is always a way."""
    made = own_addresses(monkeypatch, "192.0.2.1")
    assert list(map(str, made.towards(ip_address("127.0.0.9"), ["%any"]))) == ["127.0.0.1"]


def test_addresses_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was known stays known."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    made = own_addresses(monkeypatch, "192.0.2.1")
    monkeypatch.setattr("ipsec.daemon.reach.reachable_addresses", refuse)
    made.read()
    assert made.of(["%any"]) == (ip_address("192.0.2.1"),)
    assert "cannot be read: Operation not permitted" in caplog.text


@pytest.fixture
def patient() -> Iterator[tuple[logging.Logger, io.StringIO, PatientHandler]]:
    stream = io.StringIO()
    handler = PatientHandler(stream)
    logger = logging.getLogger("test.patient")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, stream, handler
    logger.removeHandler(handler)


def test_lines_are_written_a_moment_later(
    patient: tuple[logging.Logger, io.StringIO, PatientHandler],
) -> None:
    log, stream, handler = patient

    async def main() -> None:
        log.info("one")
        log.info("two")
        assert stream.getvalue() == "before\n"
        await asyncio.sleep(0)
        assert stream.getvalue() == "before\n", "whoever waits for the next message does not wait for this"
        await asyncio.sleep(3 * SOON_S)
        assert stream.getvalue() == "before\none\ntwo\n"
        log.info("three")
        log.warning("four")
        assert stream.getvalue().endswith("three\nfour\n"), "what is wrong is told at once"
        log.info("five")
        thread = threading.Thread(target=log.info, args=("six",))
        thread.start()
        thread.join()
        assert stream.getvalue().endswith("five\nsix\n")
        for _ in range(WAITING_MAX):
            log.info("many")
        assert stream.getvalue().count("many") == WAITING_MAX
        log.info("last")

    log.info("before")
    assert stream.getvalue() == "before\n"
    asyncio.run(main())
    handler.flush()
    assert stream.getvalue().endswith("last\n")

    async def again() -> None:
        log.info("in another loop")
        await asyncio.sleep(3 * SOON_S)

    asyncio.run(again())
    assert stream.getvalue().endswith("in another loop\n")


def test_a_line_that_cannot_be_made_costs_no_other(
    patient: tuple[logging.Logger, io.StringIO, PatientHandler], capsys: pytest.CaptureFixture[str]
) -> None:
    _, stream, handler = patient

    async def main() -> None:
        for text in ("%d", "good, %s"):
            handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, text, ("no number",), None))

    asyncio.run(main())
    handler.flush()
    assert stream.getvalue() == "good, no number\n"
    assert "no number" in capsys.readouterr().err


def test_what_waits_is_written_when_the_log_is_closed(
    patient: tuple[logging.Logger, io.StringIO, PatientHandler],
) -> None:
    log, stream, handler = patient

    async def main() -> None:
        log.info("the last")

    asyncio.run(main())
    assert not stream.getvalue()
    handler.close()
    assert stream.getvalue() == "the last\n"


def test_json_says_where_a_peer_was(
    patient: tuple[logging.Logger, io.StringIO, PatientHandler], capsys: pytest.CaptureFixture[str]
) -> None:
    """It may move before the line is written."""
    log, stream, handler = patient
    handler.setFormatter(JsonFormatter())
    sa: Any = IkeSa.__new__(IkeSa)
    sa.connection, sa.uid = SimpleNamespace(name="site"), 7

    async def main() -> None:
        sa.path = SimpleNamespace(remote=ip_address("192.0.2.1"))
        log.info("%s: a line", sa)
        handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, "%d is no number", (sa,), None))
        sa.path = SimpleNamespace(remote=ip_address("192.0.2.2"))

    asyncio.run(main())
    handler.flush()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["peer"] == "192.0.2.1"
    assert "is no number" in capsys.readouterr().err


# -- key files


def an_ike_sa() -> Any:
    return SimpleNamespace(spi_i=bytes(7) + b"\1", spi_r=bytes(7) + b"\2")


def test_key_files_are_for_their_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "esp_sa").touch(mode=0o644)
    keylog = KeyLog(str(tmp_path))
    assert "ALL KEYS" in caplog.text
    keys = IkeKeys(*(bytes((n,)) * 4 for n in range(7)))
    keylog.ike(an_ike_sa(), sk_suite(Encr.AES_GCM_16, 128, Integ.NONE), keys)
    keylog.close()
    (line,) = (tmp_path / "ikev2_decryption_table").read_text().splitlines()
    name = '"AES-GCM-128 with 16 octet ICV [RFC5282]"'
    assert line == f'0000000000000001,0000000000000002,03030303,04040404,{name},01010101,02020202,"NONE [RFC4306]"'
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in ("esp_sa", "ikev2_decryption_table"))


def test_a_full_disk_costs_key_lines_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keylog = KeyLog(str(tmp_path))

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ipsec.daemon.keylog.os.write", full)
        keys = IkeKeys(*[bytes(4)] * 7)
        for _ in range(2):
            keylog.ike(an_ike_sa(), sk_suite(Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128), keys)
    (said,) = [line for line in caplog.messages if "No space left on device" in line]
    assert said == f"keys are lost: {tmp_path}/ikev2_decryption_table: No space left on device"
    keylog.ike(an_ike_sa(), sk_suite(Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128), keys)
    assert caplog.messages[-1] == f"keys are written to {tmp_path}/ikev2_decryption_table again, 2 lines lost"
    keylog.close()


def test_a_disk_that_is_full_in_the_middle_of_a_key_line_costs_that_one_alone(tmp_path: Path) -> None:
    keylog = KeyLog(str(tmp_path))
    file = tmp_path / "ikev2_decryption_table"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(3):
        if number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, hard))
        keys = IkeKeys(*[bytes((number,)) * 4] * 7)
        keylog.ike(an_ike_sa(), sk_suite(Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128), keys)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    keylog.close()
    assert [line.split(",")[2] for line in file.read_text().splitlines()] == ["00000000", "02020202"]


def test_key_files_that_are_a_trap(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "esp_sa").symlink_to(tmp_path / "target")
    with pytest.raises(BackendError, match="cannot be written"):
        KeyLog(str(tmp_path))


@pytest.mark.parametrize("kind", ["FIFO", "second name", "device"])
def test_key_files_that_are_no_files(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "esp_sa"
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind == "second name":
        (tmp_path / "elsewhere").touch(mode=0o644)
        place.hardlink_to(tmp_path / "elsewhere")
    else:
        place.symlink_to("/dev/null")
    begun = open_files()
    with pytest.raises(BackendError, match="cannot be written"):
        KeyLog(str(tmp_path))
    assert open_files() == begun
    if kind == "second name":
        assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_files_of_somebody_else(tmp_path: Path) -> None:
    """Whoever has made it beforehand has it open, and reads all keys."""
    file = tmp_path / "esp_sa"
    file.touch()
    os.chown(file, 1000, 1000)
    with pytest.raises(BackendError, match="esp_sa is somebody else's"):
        KeyLog(str(tmp_path))
    assert file.stat().st_uid == 1000


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- the secret that outlives us


def test_a_full_disk_has_no_room_for_the_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_text(f"ipsecd {{ state_dir = {tmp_path}\nport = 0 }}\n" + connection("remote_ts = 10.2.0.0/16"))

    def checked() -> str:
        return {one.name: one for one in check_ike(config, backend_settings(config))}["state of IKE"].state.value

    with no_room():
        assert checked() == "hint"
        assert qcd_secret(tmp_path) == b""
    assert "cannot keep" in caplog.text
    assert list(tmp_path.iterdir()) == []
    qcd_secret(tmp_path)
    with no_room():
        assert checked() == "found"


def test_the_secret_stays(tmp_path: Path) -> None:
    secret = qcd_secret(tmp_path / "state")
    assert len(secret) == SECRET_LEN
    assert qcd_secret(tmp_path / "state") == secret
    assert (tmp_path / "state" / "qcd.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("harm", ["short", "open"])
def test_a_bad_secret_is_replaced(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = qcd_secret(tmp_path)
    path = tmp_path / "qcd.secret"
    if harm == "short":
        path.write_bytes(secret[:5])
    else:
        path.chmod(0o644)
    assert qcd_secret(tmp_path) not in (secret, secret[:5], b"")
    assert "making another one" in caplog.text


def test_no_secret_without_a_place(caplog: pytest.LogCaptureFixture) -> None:
    assert qcd_secret(Path("/dev/null/state")) == b""
    assert "cannot keep /dev/null/state/qcd.secret" in caplog.text


# -- what a configuration means


def connection(child: str, *, remote: str = "192.0.2.2", more: str = "") -> str:
    return f"""
    connections {{ c {{ remote_addrs = {remote}
        local {{ auth = psk }}
        remote {{ auth = psk }}
        {more}
        children {{ n {{ {child} }} }} }} }}
    secrets {{ ike-1 {{ secret = "long enough for this" }} }}
    """


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (connection("remote_ts = 10.2.0.0/16\nstart_action = trap"), False),
        (connection("remote_ts = 0.0.0.0/0\nstart_action = trap"), True),
        (connection("remote_ts = 0.0.0.0/0\nstart_action = trap", remote="gw.example.org"), True),
        (connection("remote_ts = 10.2.0.0/16\nstart_action = trap", remote="gw.example.org"), False),
        (connection("remote_ts = 0.0.0.0/0"), False),
        (connection("remote_ts = dynamic"), True),
        (connection("remote_ts = ::/0\nstart_action = start", remote="2001:db8::1"), True),
    ],
)
def test_our_packets_are_marked_where_the_tunnel_would_swallow_them(
    text: str, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if that may fail; elsewhere only if it may be done."""
    monkeypatch.setattr(udp, "may_mark", lambda: False)
    settings = backend_settings(load_text(text))
    assert settings.fwmark == (default_mark(220) if marked else 0)


def test_check_names_the_ways_to_peers(tmp_path: Path) -> None:
    text = f"ipsecd {{ state_dir = {tmp_path}\nport = 0\nkeylog = {tmp_path} }}\n"
    text += connection("remote_ts = 10.2.0.0/16", remote="127.0.0.2").replace("c {", "near {", 1)
    config = load_text(text)
    found = {one.name: one for one in check_ike(config, backend_settings(config))}
    assert found["peer of near"].detail.startswith("127.0.0.2, reached from 127.")
    assert "whoever reads them reads all traffic" in found["key files"].detail
    assert found["state of IKE"].state.value == "found"
    assert not any("IKE over" in name for name in found)


def test_of_many_peers_those_are_shown_that_want_something() -> None:
    """What is missing must not be lost among hundreds of lines that say that all is well."""
    rest = [Requirement("ML-KEM", State.FOUND, "x"), Requirement("vici socket", State.MISSING, "x", "y")]
    peers = [Requirement(f"peer of c{number}", State.FOUND, "x") for number in range(PEERS_SHOWN + 1)]
    unknown = Requirement("peer of d", State.HINT, "no address is known", "check the name")
    few = [rest[0], *peers[1:], unknown, rest[1]]
    assert in_short(few) == few
    short = Requirement(f"{PEERS_SHOWN + 1} peers", State.FOUND, "a route leads to each")
    assert in_short([rest[0], *peers[:3], unknown, *peers[3:], rest[1]]) == [rest[0], short, unknown, rest[1]]


def test_check_says_whether_tls_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs it is a warning of the configuration; the daemon starts without."""
    text = f"ipsecd {{ state_dir = {tmp_path}\nport = 0 }}\n{connection('remote_ts = 10.2.0.0/16')}"
    config = load_text(text)

    def tls() -> Requirement:
        return next(one for one in check_ike(config, backend_settings(config)) if one.name == "EAP-TLS")

    assert tls().state is State.FOUND
    assert re.fullmatch(r"pyOpenSSL \S+, OpenSSL .*", tls().detail)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    assert (tls().state, tls().detail) == (State.HINT, "not there")
    assert tls().remedy.endswith("pip install pyOpenSSL")


def test_check_without_ike_has_nothing_to_say() -> None:
    config = load_text(MANUAL)
    assert check_ike(config, backend_settings(config)) == []
    assert check_control(config) == []


def test_check_looks_at_the_ports_of_ike_where_vici_can_load_connections() -> None:
    config = load_text("ipsecd { port = 0\nport_nat_t = 4500 }")
    assert check_ike(config, backend_settings(config)) == []
    config = load_text("ipsecd { port = 5500 }")
    assert {one.name for one in check_ike(config, backend_settings(config))} == {"IKE over IPv4", "IKE over IPv6"}


def test_check_sees_what_steering_needs(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def refuse(file: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def checked(keys: str = "") -> dict[str, tuple[str, str]]:
        config = load_text(f"ipsecd {{ vici_socket = {path}\n{keys} }}")
        return {one.name: (one.state.value, one.detail) for one in check_control(config)}

    assert checked() == {"vici socket": ("found", f"{path} can be made")}
    assert checked("vici_group = no-such-group")["vici socket"][0] == "missing"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.chown", refuse)
        why = "the vici socket cannot be given to the group 'daemon'"
        assert checked("vici_group = daemon")["vici socket"] == ("missing", why)
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as other:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = checked(f"vici_tcp = 127.0.0.1:{port}\nhttp {{ listen = {port} }}")
        for name in ("vici over TCP", "metrics and health"):
            assert found[name] == ("missing", f"TCP 127.0.0.1:{port}: Address already in use")
        other.bind(str(path))
        other.listen()
        assert checked()["vici socket"] == ("missing", f"another daemon listens on {path}")
    assert checked()["vici socket"] == ("found", f"{path} is of a daemon that is gone")
    assert path.exists()
    path.unlink()
    path.touch()
    assert checked()["vici socket"] == ("missing", f"{path} is there and is no socket")
    found = checked(f"http {{ listen = {port} }}")
    assert found["metrics and health"] == ("found", f"TCP 127.0.0.1:{port} is free")


def test_check_of_a_place_below_a_file(tmp_path: Path) -> None:
    place = tmp_path / "file" / "x"
    place.parent.touch()
    config = load_text(f"ipsecd {{ vici_socket = {place}\nkeylog = {place}\nport = 0 }}")
    assert [one.state.value for one in check_control(config)] == ["missing"]
    assert [one.state.value for one in check_ike(config, backend_settings(config))] == ["missing"]


def test_check_makes_what_a_start_would_make_and_leaves_nothing(tmp_path: Path) -> None:
    def checked(place: Path) -> tuple[Requirement, ...]:
        keys = f"vici_socket = {place}/run/vici\nkeylog = {place}/keys\nstate_dir = {place}/state\nport = 0"
        config = load_text(f"ipsecd {{ {keys} }}\n" + connection("remote_ts = 10.2.0.0/16"))
        found = {one.name: one for one in (*check_control(config), *check_ike(config, backend_settings(config)))}
        return found["vici socket"], found["key files"], found["state of IKE"]

    # even root makes nothing there, whatever the permissions are
    assert [one.state.value for one in checked(Path("/proc"))] == ["missing", "missing", "hint"]
    assert [one.state.value for one in checked(Path("/proc/x"))] == ["missing", "missing", "hint"]
    assert [one.state.value for one in checked(tmp_path / "a" / "b")] == ["found", "hint", "found"]
    assert list(tmp_path.iterdir()) == []
    # what is in the way of a key file
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "esp_sa").symlink_to("/dev/null")
    assert [one.state.value for one in checked(tmp_path)] == ["found", "missing", "found"]


def test_a_start_does_not_load_what_only_check_needs() -> None:
    look = "import sys, ipsec.daemon.run; print('ipsec.backend.requirements' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
