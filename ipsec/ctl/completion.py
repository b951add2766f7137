"""``ipsecctl completion SHELL``: the script that makes a shell complete verbs, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ipsec.ctl.app import Verb
from ipsec.ctl.errors import CtlError

VARIABLE = "_IPSECCTL_COMPLETE"


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    Verbs and options are completed, and the names of connections and children, for which the daemon is asked.

    \b
      bash   ipsecctl completion bash > /usr/share/bash-completion/completions/ipsecctl
      zsh    ipsecctl completion zsh > "${fpath[1]}/_ipsecctl"
      fish   ipsecctl completion fish > ~/.config/fish/completions/ipsecctl.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise CtlError(f"no completion for {shell}")
    click.echo(made(context.find_root().command, {}, "ipsecctl", VARIABLE).source())
