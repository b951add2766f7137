"""Scripts of ``updown``: two of ours run them as two charons do, with the same variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import gw, make_sides, merge
from tests.interop.charon import PLUGINS, CharonGateway
from tests.interop.gateway import Gateway, Side
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import Lab, eventually
from tools import strongswan

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

#: what is another one each time, or with us: the inner packets come out of a device of ours
DIFFERENT = ("PATH=", "PWD=", "PLUTO_INTERFACE=")
#: charon's is that of the IKE_SA as it is then; a script that undoes what it has done needs what it was told before
NUMBER = "PLUTO_UNIQUEID="

POOLS = {"four": {"addrs": "10.9.0.0/24"}, "six": {"addrs": "fd09::/120"}}
VIRTUAL: tuple[dict[str, Any], dict[str, Any]] = (
    gw({"vips": "0.0.0.0, ::", "children": {"net": {"local_ts": "dynamic[tcp/80]", "remote_ts": "0.0.0.0/0, ::/0"}}}),
    merge(
        {"pools": POOLS},
        gw({"pools": "four, six", "children": {"net": {"local_ts": "0.0.0.0/0, ::/0", "remote_ts": "dynamic"}}}),
    ),
)
#: kernel-libipsec makes no routes between the two hosts themselves, nor some to ranges
UNROUTED = {"policies": "no"}
BETWEEN_HOSTS = {**UNROUTED, "local_ts": "dynamic", "remote_ts": "dynamic", "hostaccess": "yes"}
HOSTS = gw({"encap": "yes", "children": {"net": BETWEEN_HOSTS}})
HERE, THERE = "10.1.0.3-10.1.0.9[udp/100-200]", "10.2.0.0/25, 10.2.4.0/24"
RANGES = (
    gw({"children": {"net": {**UNROUTED, "local_ts": HERE, "remote_ts": THERE}}}),
    gw({"children": {"net": {**UNROUTED, "local_ts": "10.2.0.0/16", "remote_ts": "10.1.0.0/16"}}}),
)
ICMP = "10.1.0.0/24[icmp/8], 10.1.1.0/24[icmp/772], 10.1.2.0/24[icmp/3-4], 10.1.3.0/24[icmp], 10.1.4.0/24[tcp/opaque]"
TYPES = (
    gw({"children": {"net": {**UNROUTED, "local_ts": ICMP, "remote_ts": "10.2.0.0/25"}}}),
    gw({"children": {"net": {**UNROUTED, "local_ts": "10.2.0.0/16", "remote_ts": "10.1.0.0/16"}}}),
)
CASES = {"types": TYPES, "networks": ({}, {}), "hosts": (HOSTS, HOSTS), "virtual": VIRTUAL, "ranges": RANGES}


class ScriptingCharon(CharonGateway):
    """With the plugin for scripts, which the other tests have no use for."""

    plugins = f"{PLUGINS} updown"


def play(kind: type[Gateway], lab: Lab, credentials: Path, home: Path, changes: tuple[Any, Any]) -> list[list[str]]:
    """What the scripts of both ends are told while a tunnel comes up, is rekeyed in both ways and goes."""
    home.mkdir()
    lab.reset(one_address=True)
    ends: list[Gateway] = []
    heard = [home / "a.told", home / "b.told"]
    for index, (side, change) in enumerate(zip(make_sides(both=gw({"mobike": "no"})), changes, strict=True)):
        script = home / f"{index}.sh"
        script.write_text(f'#!/bin/sh\n{{ echo "= $*"; env | sort; }} >> {heard[index]}\necho "said at $PLUTO_VERB"\n')
        script.chmod(0o755)
        child = {"updown": f"{script} one 'and two'"}
        conf = merge(merge(side.swanctl, change), gw({"children": {"net": child}}))
        settings = {**side.settings, "vici_socket": f"unix://{home}/{'ab'[index]}/charon.vici"}
        ends.append(kind(lab.ends[index], index, home / "ab"[index], Side(conf, settings), credentials))
    a, b = ends
    a.plans |= {"child", "ike"}
    try:
        b.start()
        a.start()
        assert a.initiate()
        for end in ends:
            eventually(lambda end=end: "said at up" in end.log(), "the script has run, and what it says is in the log")
        a.rekey("child")
        a.rekey("ike")
        b.terminate("ike")
        for end in ends:
            eventually(lambda end=end: "said at down" in end.log(), "the script has run once more")
        told = []
        for end, path in zip(ends, heard, strict=True):
            ups = end.log().count("said at up")
            eventually(lambda end=end, ups=ups: end.log().count("said at down") == ups, "as often as before")
            told.append([line for line in path.read_text().splitlines() if not line.startswith(DIFFERENT)])
        return told
    except BaseException as error:
        error.add_note(f"--- a\n{a.log()[-3000:]}\n--- b\n{b.log()[-3000:]}")
        raise
    finally:
        a.kill()
        b.kill()


#: of those that take ten seconds each, these two differ most
QUICK = ("types", "virtual")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_scripts_are_told_what_charon_tells_them(lab: Lab, credentials: Path, tmp_path: Path, case: str) -> None:
    if not strongswan.exists(f"{strongswan.PLUGIN_FOLDER}/libstrongswan-updown.so"):
        pytest.skip("this strongSwan has no updown")
    theirs = play(ScriptingCharon, lab, credentials, tmp_path / "theirs", CASES[case])
    ours = play(IpsecdGateway, lab, credentials, tmp_path / "ours", CASES[case])
    for their, our in zip(theirs, ours, strict=True):
        assert [line for line in our if not line.startswith(NUMBER)] == [
            line for line in their if not line.startswith(NUMBER)
        ]
        assert any(line.startswith("PLUTO_VERB=up-") for line in our)
        assert any(line.startswith("PLUTO_VERB=down-") for line in our)
