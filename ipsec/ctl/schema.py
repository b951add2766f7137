"""``ipsecctl schema``: the JSON Schema of everything that --json prints."""

from __future__ import annotations

from importlib import resources

import click

from ipsec.ctl.app import Verb


def schema_text() -> str:
    """The schema, a JSON document."""
    return (resources.files("ipsec.ctl") / "schema.json").read_text("utf-8")


@click.command(cls=Verb)
def schema() -> None:
    """Print the JSON Schema of what --json prints.

    Every document has the members `schema`, a number, and `kind`. The number becomes higher when something that
    programs use changes or goes; new members can come at any time. Verbs that print as things happen (watch, log)
    print one document per line.
    """
    click.echo(schema_text(), nl=False)
