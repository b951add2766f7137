"""``ipsecctl load`` and ``ipsecctl reload``: configuration into a daemon."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich.text import Text

from ipsec.ctl.app import FILE, App, Verb, current
from ipsec.ctl.check import wrong_file
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.output import BAD, DIM, GOOD
from ipsec.ctl.view import text, texts
from ipsec.errors import ConfigError
from ipsec.text import plural, printable
from ipsec.vici.client import Session, ViciError

if TYPE_CHECKING:
    from ipsec.ctl.swanctl import Item

#: what a daemon has by name: how to ask for it, the key of the answer, how to forget it, the key that names it.
#: The later ones need the earlier ones, so they go first.
_LOADED = {
    "connection": ("get-conns", "conns", "unload-conn", "name"),
    "pool": ("get-pools", "", "unload-pool", "name"),
    "authority": ("get-authorities", "authorities", "unload-authority", "name"),
    "secret": ("get-shared", "keys", "unload-shared", "id"),
    "key": ("get-keys", "keys", "unload-key", "id"),
}


@dataclass
class Result:
    """What became of a load."""

    loaded: list[tuple[str, str]] = field(default_factory=list)
    "kind and name"
    unloaded: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    "kind, name and why"
    names: dict[str, set[str]] = field(default_factory=dict)
    "what the daemon calls what was loaded, by kind"


@click.command(cls=Verb)
@click.argument("file", required=False, type=FILE)
@click.option("--clear", is_flag=True, help="First forget all secrets, keys and certificates.")
@click.option("--keep", is_flag=True, help="Leave loaded what the file does not name.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what is refused.")
def load(file: str | None, clear: bool, keep: bool, quiet: bool) -> int:
    """Load a swanctl.conf and its credentials into the daemon.

    It sends what the file and the directories next to it hold, as `swanctl --load-all` does. FILE is
    /etc/swanctl/swanctl.conf if it is not given; SWANCTL_DIR names the directory of the credentials, if that is
    another one. Connections, pools, authorities, secrets and keys that the daemon has and the file does not name are
    unloaded, unless --keep is given; a file with nothing in it unloads all of it only with --clear. What the daemon
    refuses is left as it was, the rest is loaded.

    An ipsecd reads its own file at its start and with `ipsecctl reload`; it needs `load` for files of others only, a
    charon for all of them. Passphrases of keys are asked for, if they are not in the file.
    """
    # what reads keys and certificates takes its time to load, and no other verb needs it
    from ipsec.config import DEFAULT_FILE
    from ipsec.ctl.swanctl import read

    app = current()
    items = read(file or DEFAULT_FILE, _ask)
    if not items and not (clear or keep):
        # most often it is the wrong file, as Debian's default one is until something is put next to it
        raise CtlError(
            f"{file or DEFAULT_FILE}: there is nothing to load, and all that the daemon has would be unloaded",
            "name another file; --clear if that is what you want; an ipsecd reads its own file with `ipsecctl reload`",
            code=ExitCode.CONFIG,
        )
    result = app.run(lambda: _load(app, items, clear=clear, keep=keep))
    if app.json:
        app.document(
            "load",
            loaded=[{"kind": kind, "name": name} for kind, name in result.loaded],
            unloaded=[{"kind": kind, "name": name} for kind, name in result.unloaded],
            refused=[{"kind": kind, "name": name, "reason": why} for kind, name, why in result.refused],
        )
    else:
        _print(app, result, quiet)
    return ExitCode.FAILED if result.refused else ExitCode.OK


def _ask(path: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError("needs a passphrase: put it into secrets { private-... { file, secret } }", file=path)
    return str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _print(app: App, result: Result, quiet: bool) -> None:
    for kind, name, why in result.refused:
        app.err.print(Text.assemble((f"{kind} {name}", "bold"), (" refused", BAD), f": {why}"), soft_wrap=True)
    if quiet:
        return
    for word, style, found in (("loaded", GOOD, result.loaded), ("unloaded", DIM, result.unloaded)):
        kinds = Counter(kind for kind, _ in found)
        for kind, number in kinds.items():
            names = ", ".join(os.path.basename(name) for one, name in found if one == kind)
            many = f"{kind[:-1]}ies" if kind.endswith("y") and kind != "key" else f"{kind}s"
            line = Text.assemble((word, style), f" {plural(number, kind, many)}: ", names)
            app.out.print(line, soft_wrap=True)
    if not (result.loaded or result.unloaded or result.refused):
        app.out.print("there is nothing to load")


async def _load(app: App, items: Sequence[Item], *, clear: bool, keep: bool) -> Result:
    result = Result()
    async with app.session() as session:
        if clear:
            await session.request("clear-creds")
        for item in items:
            try:
                answer = await session.request(item.command, item.message)
            except ViciError as error:
                if not error.message:
                    raise
                result.refused.append((item.kind, item.name, text(error.message, "errmsg", "no reason given")))
                # it is not unloaded either
                result.names.setdefault(item.kind, set()).add(item.name)
                continue
            result.loaded.append((item.kind, item.name))
            result.names.setdefault(item.kind, set()).add(text(answer, "id", item.name))
        if not keep:
            await _unload(session, result)
    return result


async def _unload(session: Session, result: Result) -> None:
    """Unload what has a name that the file does not have."""
    for kind, (ask, key, forget, named) in _LOADED.items():
        if kind == "key" and any(refused == "key" for refused, _, _ in result.refused):
            # one of those there may be it
            continue
        answer = await session.request(ask)
        for name in texts(answer, key) if key else map(printable, answer):
            if name in result.names.get(kind, ()):
                continue
            try:
                await session.request(forget, {named: name})
                result.unloaded.append((kind, name))
            except ViciError as error:
                if not error.message:
                    raise
                result.refused.append((kind, name, text(error.message, "errmsg", "no reason given")))


@click.command(cls=Verb)
def reload() -> None:
    """Have the daemon read its own file again, as SIGHUP does.

    ipsecd takes it as a whole or not at all: if the file is wrong, everything stays as it is, and the error says what
    and where. Connections that did not change keep their SAs; `ipsecctl diff` shows before what would change. A charon
    reads strongswan.conf again; its connections come with `ipsecctl load`.
    """
    app = current()

    async def work() -> str:
        async with app.session() as session:
            who = text(await session.request("version"), "daemon")
            try:
                await session.request("reload-settings")
            except ViciError as error:
                if not error.message or who != "ipsecd":
                    raise
                raise wrong_file(error) from error
            return who

    who = app.run(work)
    if app.json:
        app.document("reload", daemon=who)
    elif who == "ipsecd":
        app.out.print("ipsecd has read its configuration again")
    else:
        app.out.print(f"{who} has read strongswan.conf again; its connections come with `ipsecctl load`")
