"""strongSwan's client of the command line, which asks for the password at its terminal, and a gateway of ours."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.interop.cases import Values, gw, make_sides, merge
from tests.interop.certificates import name_of
from tests.interop.charon import PLUGINS
from tests.interop.eap_cases import PASSWORD, USER, secrets_of
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import INNER, OUTER, Lab, eventually, render
from tools import strongswan

COMMAND = "/usr/sbin/charon-cmd"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.e2e,
    pytest.mark.skipif(not strongswan.exists(COMMAND), reason="apt-get install charon-cmd"),
]

EAP: Values = {"auth": "eap-mschapv2", "eap_id": "%any"}
#: by profile: what the gateway wants to see
WANTED: dict[str, Values] = {
    "ikev2-eap": {"remote": EAP},
    "ikev2-pub-eap": {"remote": None, "remote-1": {"auth": "pubkey", "id": name_of(0)}, "remote-2": EAP},
}
DNS = "10.2.0.53"


def gateway(lab: Lab, folder: Path, credentials: Path, wanted: Values) -> IpsecdGateway:
    pools = {"pools": {"users": {"addrs": "10.9.0.0/24", "dns": DNS}}}
    own = {"pools": "users", "send_cert": "always", "children": {"net": {"remote_ts": "dynamic"}}, **wanted}
    side = make_sides(certs="rsa", responder=merge(merge(secrets_of({USER: PASSWORD}), pools), gw(own)))[1]
    return IpsecdGateway(lab.b, 1, folder / "b", side, credentials)


@contextmanager
def client(lab: Lab, folder: Path, password: str, *args: str) -> Iterator[Path]:
    """charon-cmd in a, told the password when it asks; gives where its output is. It is interrupted in the end."""
    plugins = f"{PLUGINS} eap-identity eap-mschapv2".replace(" vici", "")
    modules = {"resolve": {"file": f"{folder}/resolv.conf", "resolvconf": {"path": "/nonexistent"}}}
    conf = {"charon-cmd": {"load_modular": "no", "load": plugins, "plugins": modules}}
    (folder / "strongswan.conf").write_text(render(conf))
    where = "env", f"STRONGSWAN_CONF={folder}/strongswan.conf"
    there = strongswan.command(*where, COMMAND, "--host", OUTER[4][1], *args)
    output = folder / "output"
    # it has a terminal of its own
    terminal = ["script", "-qefc", shlex.join(lab.a.command(*there)), "/dev/null"]
    pipe = subprocess.PIPE
    with output.open("wb") as out, subprocess.Popen(terminal, stdin=pipe, stdout=out, stderr=out, bufsize=0) as process:
        assert process.stdin is not None
        try:
            eventually(lambda: "password:" in output.read_text(errors="replace"), "it asks for the password")
            process.stdin.write(password.encode() + b"\n")
            yield output
            # where it has not ended by itself
            with suppress(BrokenPipeError):
                process.stdin.write(b"\x03")
            process.wait(10)
        finally:
            process.kill()


@pytest.mark.parametrize("profile", WANTED)
def test_charon_cmd(profile: str, lab: Lab, credentials: Path, tmp_path: Path) -> None:
    lab.reset()
    end = gateway(lab, tmp_path, credentials, WANTED[profile])
    keys = ("--cert", f"{credentials}/x509/a-rsa.pem", "--rsa", f"{credentials}/private/a-rsa.pem")
    args = ("--cert", f"{credentials}/x509ca/root.pem", *(keys if profile != "ikev2-eap" else ()))
    names = ("--identity", name_of(0), "--eap-identity", USER, "--remote-identity", name_of(1), "--profile", profile)
    end.start()
    try:
        with client(lab, tmp_path, PASSWORD, *args, *names) as output:
            eventually(lambda: "CHILD_SA cmd{1} established" in output.read_text(errors="replace"), "it is up")
            links = json.loads(lab.a.ip("-j", "addr", "show"))
            every = [info["local"] for link in links for info in link.get("addr_info", ())]
            (mine,) = [address for address in every if address.startswith("10.9.0.")]
            assert lab.a.ping(mine, INNER[4][1])
            assert f"installing DNS server {DNS} " in output.read_text(errors="replace")
            assert f"{USER} has shown by EAP (MSCHAPV2) who it is" in end.log()
        eventually(lambda: "closed by the peer" in end.log(), "the gateway hears that it is over")
    finally:
        end.kill()


def test_a_wrong_password(lab: Lab, credentials: Path, tmp_path: Path) -> None:
    lab.reset()
    end = gateway(lab, tmp_path, credentials, WANTED["ikev2-eap"])
    args = ("--cert", f"{credentials}/x509ca/root.pem", "--remote-identity", name_of(1), "--profile", "ikev2-eap")
    end.start()
    try:
        with client(lab, tmp_path, "wrong", *args, "--identity", name_of(0), "--eap-identity", USER) as output:
            eventually(lambda: "ERROR_AUTHENTICATION_FAILURE" in output.read_text(errors="replace"), "it is refused")
        eventually(lambda: "the response of EAP-MSCHAPv2 is wrong" in end.log(), "the gateway says so")
    finally:
        end.kill()
