"""This project's daemon as one end. What it is to do comes from its configuration, SIGHUP and SIGTERM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ipsec.config.schema import load_text
from ipsec.errors import ConfigError
from tests.interop.charon import parse_sas, swanctl
from tests.interop.gateway import Gateway, Side
from tests.interop.lab import eventually, render

#: what to test instead of this checkout's daemon, for instance a build under valgrind
COMMAND = shlex.split(os.environ.get("IPSEC_E2E_COMMAND", "")) or [sys.executable, "-m", "ipsec"]
ROOT = Path(__file__).parent.parent.parent
#: settings of charon that the section ipsecd has under the same name
SETTINGS = (
    *("retransmit_tries", "retransmit_timeout", "retransmit_base", "retransmit_limit", "half_open_timeout"),
    *("cookie_threshold", "cookie_threshold_ip", "keep_alive", "fragment_size", "delete_rekeyed_delay"),
    *("port", "port_nat_t", "make_before_break", "redirect_to", "vici_socket"),
)
#: seconds between an SA and its successor where a step asks this end to rekey
REKEY_TIME = 2
#: the plan of a step that asks by swanctl what there is
VICI = "vici"
#: what the log says about a child that is up, and about an attempt that came to nothing
UP = r"CHILD_SA \S+ up"
FAILED = r"(?i)giving up|gone|CHILD_SA \S+ (was )?not|no CHILD_SA|failed"


def obstacle() -> str:
    """Why this version has nothing to test; empty if it has."""
    try:
        load_text("connections {\n gw {\n remote_addrs = 192.0.2.2\n }\n}\n")
    except ConfigError as error:
        return str(error) if "not part of this version" in str(error) else ""
    return ""


def own_copy(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, none of which is another one's; ``copy.deepcopy`` keeps a section that two share as one."""
    return {key: own_copy(value) if isinstance(value, dict) else value for key, value in values.items()}


class IpsecdGateway(Gateway):
    """One ipsecd. It initiates by ``start_action``, and rekeys when it is time to."""

    kind = "ipsecd"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.output = self.log_file
        self._started: set[str] = set()
        "children that have start_action = start"

    def swanctl(self) -> dict[str, Any]:
        """The configuration with what the case asked of this end so far."""
        values = own_copy(self.side.swanctl)
        for connection in values["connections"].values():
            timing = {"ike": "rekey_time", "reauth": "reauth_time"}
            for plan, key in timing.items():
                if plan in self.plans:
                    connection |= {key: f"{REKEY_TIME}s", "over_time": "10s", "rand_time": "0s"}
            for name, child in connection.get("children", {}).items():
                if "child" in self.plans:
                    child |= {"rekey_time": f"{REKEY_TIME}s", "life_time": "20s", "rand_time": "0s"}
                if name in self._started:
                    child["start_action"] = "start"
        return values

    def _write(self) -> None:
        daemon: dict[str, Any] = {
            "state_dir": self.home / "state",
            "offload": {"udp_gso": "no"},
            "allow_weak": "yes",
            # other runs of these tests go on beside this one
            "vici_socket": f"unix://{self._socket}" if VICI in self.plans else "none",
            **{key: value for key, value in self.side.settings.items() if key in SETTINGS},
        }
        path = self.home / "swanctl.conf"
        path.touch(mode=0o600)
        path.write_text(render({"ipsecd": daemon, **self.swanctl()}))

    @property
    def environment(self) -> dict[str, str]:
        return {"SWANCTL_DIR": str(self.home), "PYTHONPATH": str(ROOT)}

    def _launch(self) -> None:
        ready = self.log().count("ready")
        self._spawn(*COMMAND, "--config", str(self.home / "swanctl.conf"))
        eventually(
            lambda: self._alive() and self.log().count("ready") > ready, f"ipsecd is ready:\n{self.log()}", timeout=30
        )

    def reload(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def initiate(self, child: str = "net", *, timeout: float = 8.0) -> bool:
        if child in self._started:
            # what does not change is not started again
            self._started.discard(child)
            self._write()
            self.reload()
            time.sleep(0.3)
        self._started.add(child)
        before = self.log()
        self._write()
        self.reload()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            said = self.log()[len(before) :]
            if re.search(UP, said):
                return True
            if re.search(FAILED, said):
                return False
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        super().kill()
        self._started.clear()

    def rekey(self, what: str) -> None:
        # comes by itself: the step waits for what it looks like on the wire
        assert what in self.plans

    def sas(self) -> list[dict[str, Any]] | None:
        if VICI not in self.plans:
            return None
        return parse_sas(swanctl(str(self._socket), "--list-sas", "--raw", check=True))

    @property
    def _socket(self) -> Path:
        return self.home / "ipsecd.vici"

    def terminate(self, what: str) -> None:
        if what == "ike":
            self.stop()
            return
        self._started.clear()
        values = self.swanctl()
        for connection in values["connections"].values():
            connection["children"] = {}
        self.change(Side(values, self.side.settings, self.side.files))
