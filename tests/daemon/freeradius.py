"""Debian's freeradius as a RADIUS server on loopback, with a configuration of its own and as an ordinary user."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipsec.ike.radius.server import RadiusServer

PROGRAM = shutil.which("freeradius", path="/usr/sbin:/usr/bin:/sbin:/bin")
needs_freeradius = pytest.mark.skipif(PROGRAM is None, reason="no freeradius: apt-get install freeradius")
SECRET = "of freeradius and nobody else"
START_S = 20.0

_CONFIG = """
libdir = /usr/lib/freeradius
raddbdir = {directory}
logdir = {directory}
run_dir = {directory}
max_request_time = 5
cleanup_delay = 2
security {{
    max_attributes = 200
    reject_delay = 0
    status_server = no
}}
client loopback {{
    ipaddr = 127.0.0.1
    secret = "{secret}"
    require_message_authenticator = yes
}}
modules {{
    eap {{
        default_eap_type = {method}
        timer_expire = 60
        md5 {{ }}
        mschapv2 {{ }}
    }}
    mschap {{ }}
    files {{
        usersfile = {directory}/users
    }}
    detail {{
        filename = {directory}/records
        permissions = 0600
        header = "%t"
    }}
}}
server default {{
    listen {{
        type = auth
        ipaddr = 127.0.0.1
        port = {port}
    }}
    listen {{
        type = acct
        ipaddr = 127.0.0.1
        port = {acct_port}
    }}
    authorize {{
        eap
        files
    }}
    accounting {{
        detail
    }}
    authenticate {{
        Auth-Type MS-CHAP {{
            mschap
        }}
        eap
    }}
}}
"""

#: whom it knows, with his password
USERS = {"alice": "wonderland", "carol": "fO0-b4r of carol"}

_USER = """
{name} Cleartext-Password := "{password}"
    Service-Type = Framed-User,
    Framed-IP-Address = 10.3.0.9,
    Filter-Id = "staff",
    Class = "first",
    Session-Timeout = 3600
"""


def records(directory: Path) -> list[dict[str, str]]:
    """What it has been told with accounting: the attributes of each record by name."""
    file = directory / "records"
    text = file.read_text() if file.exists() else ""
    return [
        dict(tuple(part.strip().strip('"') for part in line.split(" = ", 1)) for line in block if " = " in line)
        for block in (one.splitlines() for one in text.split("\n\n") if one.strip())
    ]


@contextmanager
def freeradius(directory: Path, method: str, namespace: str = "") -> Iterator[RadiusServer]:
    """A running server that begins with an EAP method; it knows USERS. In that network namespace, or in ours."""
    assert PROGRAM is not None
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
        port, acct_port = one.getsockname()[1], two.getsockname()[1]
    text = _CONFIG.format(directory=directory, secret=SECRET, port=port, acct_port=acct_port, method=method)
    (directory / "radiusd.conf").write_text(text)
    users = (_USER.format(name=name, password=password) for name, password in USERS.items())
    (directory / "users").write_text("".join(users))
    (directory / "dictionary").write_text("$INCLUDE /usr/share/freeradius/dictionary\n")
    output = directory / "output"
    with output.open("wb") as log:
        command = [PROGRAM, "-X", "-d", str(directory), "-n", "radiusd"]
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        process = subprocess.Popen([*inside, *command], stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_S
        while b"Ready to process requests" not in output.read_bytes():
            assert process.poll() is None, output.read_text(errors="replace")
            assert time.monotonic() < end, output.read_text(errors="replace")
            time.sleep(0.02)
        yield RadiusServer("freeradius", "127.0.0.1", SECRET.encode(), port, acct_port=acct_port)
    finally:
        process.terminate()
        process.wait()
