"""``ipsecctl flush``: what was fetched about certificates."""

from __future__ import annotations

import click

from ipsec.ctl.app import Verb, current
from ipsec.ctl.errors import ExitCode


@click.command(cls=Verb)
def flush() -> int:
    """Forget the revocation lists and OCSP responses that were fetched.

    They are fetched again when a peer authenticates, for instance because an authority has just revoked a certificate.
    What is loaded stays, and so does what is up.
    """
    app = current()

    async def work() -> None:
        async with app.session() as session:
            await session.request("flush-certs")

    app.run(work)
    if app.json:
        app.document("flush")
    else:
        app.out.print("revocation lists and OCSP responses that were fetched are forgotten")
    return ExitCode.OK
