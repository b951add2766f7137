"""What a shell offers while names are typed: it asks the daemon, shortly, and says nothing if that does not work."""

from __future__ import annotations

import asyncio

import click
from click.shell_completion import CompletionItem

from ipsec.ctl.app import App
from ipsec.ctl.names import Known, known
from ipsec.errors import IpsecError

PATIENCE_S = 1.0


def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Connections, and with a slash their children; those already on the line are left out."""
    found = _ask(context)
    if found is None:
        return []
    given = context.params.get(parameter.name or "") or ()
    if "/" in incomplete:
        offered = [f"{conn}/{child}" for conn, child in found.children()]
    else:
        offered = found.conn_names()
        matching = [name for name in offered if name.startswith(incomplete)]
        if not matching or matching == [incomplete]:
            offered += [f"{conn}/{child}" for conn, child in found.children()]
    return [CompletionItem(name) for name in offered if name.startswith(incomplete) and name not in given]


def conns(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Connections only."""
    found = _ask(context)
    return [CompletionItem(name) for name in found.conn_names() if name.startswith(incomplete)] if found else []


def names_and_manual(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """As ``names``, and manual SAs, for verbs that only look."""
    return names(context, parameter, incomplete) + _manual(context, parameter, incomplete)


def conns_and_manual(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Connections and manual SAs."""
    return conns(context, parameter, incomplete) + _manual(context, parameter, incomplete)


def _manual(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    found = _ask(context)
    given = context.params.get(parameter.name or "") or ()
    offered = found.manual if found else ()
    return [CompletionItem(name) for name in offered if name.startswith(incomplete) and name not in given]


def _ask(context: click.Context) -> Known | None:
    app = context.ensure_object(App)

    async def ask() -> Known:
        async with asyncio.timeout(PATIENCE_S), await app.connect() as session:
            return await known(session)

    try:
        return asyncio.run(ask())
    except (IpsecError, OSError, TimeoutError):
        return None
