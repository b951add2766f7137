"""A daemon that says what it is told to, on a socket, in a thread of its own; and ipsecctl run against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ipsec.ctl.main import main
from ipsec.ctl.schema import schema_text
from ipsec.vici.codec import Message, text
from ipsec.vici.events import NAMES
from ipsec.vici.server import Client, CommandError, ViciServer


def conn(remote: str = "192.0.2.2", children: Sequence[str] = ("net",), **more: Any) -> Message:
    """A connection as ``list-conn`` has it."""
    return {
        "local_addrs": ["%any"],
        "remote_addrs": [remote],
        "version": "IKEv2",
        "reauth_time": 0,
        "rekey_time": 14400,
        "unique": "UNIQUE_NO",
        "local-1": {"class": "pre-shared key", "id": "a.example", "groups": [], "certs": [], "cacerts": []},
        "remote-1": {"class": "pre-shared key", "id": "b.example", "groups": [], "certs": [], "cacerts": []},
        "children": {
            name: {
                "mode": "TUNNEL",
                "rekey_time": 3600,
                "rekey_bytes": 0,
                "rekey_packets": 0,
                "dpd_action": "none",
                "close_action": "none",
                "local-ts": ["10.1.0.0/16"],
                "remote-ts": ["10.2.0.0/16"],
            }
            for name in children
        },
        **more,
    }


def child_sa(name: str = "net", uid: int = 1, **more: Any) -> Message:
    """A CHILD_SA as ``list-sa`` has it."""
    return {
        "name": name,
        "uniqueid": uid,
        "reqid": 1,
        "state": "INSTALLED",
        "mode": "TUNNEL",
        "protocol": "ESP",
        "encap": "yes",
        "spi-in": f"c{uid:07x}",
        "spi-out": f"d{uid:07x}",
        "encr-alg": "AES_GCM_16",
        "encr-keysize": 128,
        "bytes-in": 1000,
        "packets-in": 10,
        "bytes-out": 2000,
        "packets-out": 20,
        "rekey-time": 3000,
        "life-time": 3900,
        "install-time": 60,
        "local-ts": ["10.1.0.0/16"],
        "remote-ts": ["10.2.0.0/16"],
        **more,
    }


def ike_sa(uid: int = 1, children: Sequence[Message] = (), **more: Any) -> Message:
    """An IKE_SA as ``list-sa`` has it."""
    return {
        "uniqueid": uid,
        "version": 2,
        "state": "ESTABLISHED",
        "local-host": "192.0.2.1",
        "local-port": 4500,
        "local-id": "a.example",
        "remote-host": "192.0.2.2",
        "remote-port": 4500,
        "remote-id": "b.example",
        "initiator": "yes",
        "initiator-spi": f"{uid:016x}",
        "responder-spi": f"{uid + 1:016x}",
        "encr-alg": "AES_GCM_16",
        "encr-keysize": 256,
        "prf-alg": "PRF_HMAC_SHA2_256",
        "dh-group": "CURVE_25519",
        "established": 120,
        "rekey-time": 13000,
        **more,
        "child-sas": {f"{child['name']}-{child['uniqueid']}": child for child in children},
    }


class FakeDaemon:
    """Answers from what its attributes hold; knows nothing that begins with ``without``. A context manager."""

    def __init__(self, socket: Path, *, without: str = "-") -> None:
        self.socket = socket
        self._without = without
        self.conns: dict[str, Message] = {}
        self.sas: list[tuple[str, Message]] = []
        self.policies: dict[str, str] = {}
        "traps and shunts that are in place: conn/child and mode"
        self.refuses: set[str] = set()
        "what cannot be put in place"
        self.growth = 0
        "octets that come in between two looks at a CHILD_SA"
        self.problems: list[Message] = []
        self.drops: dict[tuple[str, int, str], dict[str, int]] = {}
        self.manual: dict[str, Message] = {}
        "SAs that are configured by hand"
        self.radius: dict[str, Message] = {}
        self.certs: list[Message] = []
        "as list-cert has them"
        self.log: list[str] = []
        "what is logged while a command runs"
        self.fails: str | None = None
        "how commands fail: at once, or not before their time is over (never); always: also with force"
        self.begun = threading.Event()
        self.asked: list[tuple[str, Message]] = []
        "commands that came, with their messages"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake daemon")

    def __enter__(self) -> FakeDaemon:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has gone by itself
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        commands = {
            name: self._noted(attribute)
            for attribute in dir(self)
            if attribute.startswith("do_")
            and not (name := attribute.removeprefix("do_").replace("_", "-")).startswith(self._without)
        }
        self.server = ViciServer(commands, [event for event in NAMES if not event.startswith(self._without)])
        await self.server.start(str(self.socket))
        self._ready.set()
        await self._stop.wait()
        await self.server.stop()

    def _noted(self, name: str) -> Any:
        command = getattr(self, name)

        async def run(client: Client, message: Message) -> Mapping[str, Any]:
            self.asked.append((name.removeprefix("do_").replace("_", "-"), message))
            answer: Mapping[str, Any] = await command(client, message)
            return answer

        return run

    def hang_up(self) -> None:
        """Go away, as a daemon that is killed."""
        self._stop.set()

    def problem(self, conn: str, **more: Any) -> None:
        """Something has failed, right now."""
        base = {"ike": conn, "cause": "no-answer", "reason": "no answer", "by": "us", "initiator": "yes"}
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.problems.append(base | {"time": when, "count": 1, "over": "no"} | more)

    async def do_ipsecd_problems(self, client: Client, message: Message) -> Mapping[str, Any]:
        for problem in self.problems:
            if text(message, "ike") in ("", problem["ike"]):
                client.send_event("ipsecd-problem", problem)
        return {}

    async def do_ipsecd_drops(self, client: Client, message: Message) -> Mapping[str, Any]:
        for (name, uid, child), drops in self.drops.items():
            sas = {child: {"name": child.rpartition("-")[0], "drops": drops}}
            client.send_event("ipsecd-drop", {name: {"uniqueid": uid, "child-sas": sas}})
        return {}

    async def do_ipsecd_manual_sas(self, client: Client, message: Message) -> Mapping[str, Any]:
        for name, value in self.manual.items():
            client.send_event("ipsecd-manual-sa", {name: value})
            value["bytes-in"] += self.growth
        return {}

    async def do_ipsecd_data_path(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {
            "device": "ipsec0",
            "mtu": 1422,
            "workers": 1,
            "raw-esp": "no",
            "offloads": {"udp_gso": "no", "udp_gro": "yes"},
            "counters": {"tun_rx_packets": 7},
            "drops": {"OUT_NO_POLS": 1, "IN_STATE_SEQ_ERROR": 12},
        }

    async def do_ipsecd_radius(self, client: Client, message: Message) -> Mapping[str, Any]:
        return self.radius

    async def do_ipsecd_health(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"alive": {"alive": "yes"}, "healthy": {"healthy": "no", "problems": ["the disk is full"]}}

    async def do_version(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"daemon": "ipsecd", "version": "1.2.3"}

    async def do_stats(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"uptime": {"running": "3 days", "since": "long ago"}}

    async def do_flush_certs(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"success": "yes"}

    async def do_install(self, client: Client, message: Message) -> Mapping[str, Any]:
        name = f"{text(message, 'ike')}/{text(message, 'child')}"
        if name in self.refuses:
            raise CommandError(f"installing policy '{text(message, 'child')}' failed")
        self.policies[name] = "TRAP"
        return {"success": "yes"}

    async def do_uninstall(self, client: Client, message: Message) -> Mapping[str, Any]:
        del self.policies[f"{text(message, 'ike')}/{text(message, 'child')}"]
        return {"success": "yes"}

    async def do_list_policies(self, client: Client, message: Message) -> Mapping[str, Any]:
        for name, mode in self.policies.items():
            ike, child = name.split("/")
            client.send_event("list-policy", {name: {"ike": ike, "child": child, "mode": mode}})
        return {}

    async def do_list_certs(self, client: Client, message: Message) -> Mapping[str, Any]:
        for one in self.certs:
            client.send_event("list-cert", one)
        return {}

    async def do_list_authorities(self, client: Client, message: Message) -> Mapping[str, Any]:
        client.send_event("list-authority", {"root": {"cacert": "CN=root", "crl_uris": ["http://a/"], "ocsp_uris": []}})
        return {}

    async def do_get_pools(self, client: Client, message: Message) -> Mapping[str, Any]:
        pool: Message = {"base": "10.9.0.0", "size": 254, "online": 2, "offline": 1}
        if text(message, "leases") == "yes":
            pool["leases"] = {"0": {"address": "10.9.0.1", "identity": "carol", "status": "online"}}
        return {"road": pool}

    async def do_get_algorithms(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"aead": {"AES_GCM_16": "openssl"}, "prf": {"PRF_HMAC_SHA2_256": "openssl"}}

    async def do_get_counters(self, client: Client, message: Message) -> Mapping[str, Any]:
        if text(message, "all") == "yes":
            found = {name: {"ike-init-out-req": 1, "invalid": 0} for name in self.conns}
        elif text(message, "name"):
            raise CommandError("no counters found for this connection", counters={})
        else:
            found = {"": {"ike-init-out-req": 7, "invalid": 0}}
        return {"success": "yes", "counters": found}

    async def do_reset_counters(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"success": "yes"}

    async def do_list_conns(self, client: Client, message: Message) -> Mapping[str, Any]:
        for name, value in self.conns.items():
            client.send_event("list-conn", {name: value})
            await client.flush()
        return {}

    async def do_list_sas(self, client: Client, message: Message) -> Mapping[str, Any]:
        wanted = text(message, "ike")
        for name, value in self.sas:
            if wanted in ("", name):
                client.send_event("list-sa", {name: value})
                await client.flush()
                for child in value["child-sas"].values():
                    child["bytes-in"] += self.growth
        return {}

    async def do_initiate(self, client: Client, message: Message) -> Mapping[str, Any]:
        name, child = text(message, "ike"), text(message, "child")
        for line in self.log:
            client.send_event("control-log", {"group": "IKE", "level": 1, "ikesa-name": name, "msg": line})
        timeout = int(text(message, "timeout"))
        if self.fails is None and timeout >= 0:
            self.sas.append((name, ike_sa(77, [child_sa(child, 78)] if child else [])))
        elif self.fails == "never":
            self.sas.append((name, ike_sa(99, state="CONNECTING")))
            self.begun.set()
            await asyncio.sleep(timeout / 1000 if timeout else 600)
            raise CommandError(f"CHILD_SA '{child}' not established after {timeout}ms")
        elif self.fails is not None:
            raise CommandError(f"establishing CHILD_SA '{child}' failed")
        return {"success": "yes"}

    async def do_terminate(self, client: Client, message: Message) -> Mapping[str, Any]:
        ike, ike_id = text(message, "ike"), text(message, "ike-id")
        if self.fails == "always" or (self.fails == "never" and text(message, "force") != "yes"):
            raise CommandError("not all matching SAs could be terminated", matches=1, terminated=0)
        if not text(message, "child"):
            self.sas = [sa for sa in self.sas if ike not in ("", sa[0]) or ike_id not in ("", str(sa[1]["uniqueid"]))]
        return {"success": "yes", "matches": 1, "terminated": 1}

    async def do_rekey(self, client: Client, message: Message) -> Mapping[str, Any]:
        if not any(name == text(message, "ike") for name, _ in self.sas):
            raise CommandError("no matching SAs to rekey found", matches="0")
        for name, sa in self.sas:
            if name == text(message, "ike") and not text(message, "child") and not self.fails:
                sa["uniqueid"] += 100
            for child in sa["child-sas"].values():
                if child["name"] == text(message, "child") and not self.fails:
                    child["uniqueid"] += 100
        return {"success": "yes", "matches": 1}

    async def do_redirect(self, client: Client, message: Message) -> Mapping[str, Any]:
        if not any(name == text(message, "ike") for name, _ in self.sas):
            raise CommandError("no matching SAs to redirect found", matches="0")
        if self.fails == "always":
            raise CommandError("no matching SAs to redirect found: none can be", matches="0", unsupported=1)
        return {"success": "yes", "matches": 1} | ({"unsupported": 2} if self.fails else {})


@dataclass(frozen=True)
class Done:
    """How a run of ipsecctl ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document that it printed, which is as the schema says."""
        found = json.loads(self.out)
        VALIDATOR.validate(found)
        return found


VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema_text()))


class Ctl:
    """Runs ipsecctl within the test's process."""

    def __init__(self, socket: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.socket = socket
        self._capture = capture

    def __call__(self, *arguments: str) -> Done:
        self._capture.readouterr()
        status = main(["--socket", str(self.socket), *arguments])
        out, err = self._capture.readouterr()
        return Done(status, out, err)
