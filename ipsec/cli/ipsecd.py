"""The command ``ipsecd``."""

from __future__ import annotations

import argparse
import grp
import json
import logging
import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ipsec import daemon
from ipsec.backend.requirements import Requirement, State
from ipsec.backend.ways import Way, ways
from ipsec.cli.output import say
from ipsec.cli.version import version_text
from ipsec.config import DEFAULT_FILE, Config, load
from ipsec.config.environment import forget_secrets, read_environment
from ipsec.config.settings import BackendKind, LogFormat, LogLevel
from ipsec.daemon import ExitCode, backend_settings
from ipsec.daemon.logs import TEXT, PatientHandler, TextFormatter, formatter, leave_out_what_no_line_says
from ipsec.daemon.ready import in_short, requirements
from ipsec.errors import BackendError, ConfigError

log = logging.getLogger(__name__)

EXIT_CODES = """\
exit status:
  0  stopped on request; with --check: everything is there
  1  a bug; please report it with the log
  2  wrong command line
  3  the configuration is wrong
  4  the machine lacks something; the text says what mends it
  5  an SA or policy was refused, or sequence numbers cannot be kept safe
  6  the device was lost and could not be made again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(arguments)
    handler = PatientHandler(sys.stderr)
    handler.setFormatter(TextFormatter(TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if options.json and not options.check:
        _parser().error("--json needs --check")
    if not options.prepare and (options.undo or options.sysctl or options.owner):
        _parser().error("--undo, --owner and --sysctl need --prepare")
    if options.prepare and not options.undo and options.owner is None:
        _parser().error("--prepare needs --owner: who will run ipsecd")
    try:
        environment = read_environment(os.environ)
        forget_secrets(os.environ)
        config = load(options.config or environment.file, environment)
    except ConfigError as error:
        if options.check or options.prepare or os.environ.get("IPSEC_LOG_FORMAT") != LogFormat.JSON.value:
            _complain(error)
        else:
            # what the file says of it is not known yet
            handler.setFormatter(formatter(LogFormat.JSON.value))
            for line in error.lines():
                log.error("%s", line)
        return ExitCode.CONFIG
    if not (options.check or options.prepare):
        handler.setFormatter(formatter(config.settings.log_format.value))
    level = options.log_level or config.settings.log_level.value
    logging.getLogger("ipsec").setLevel(level.upper())
    if options.check:
        return _check(config, as_json=options.json)
    if options.prepare:
        return _prepare(config, options)
    leave_out_what_no_line_says()
    return daemon.run(config)


def _complain(error: ConfigError) -> None:
    for line in error.lines():
        print(f"ipsecd: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipsecd",
        description="IPsec in user space. Runs in the foreground until SIGTERM or SIGINT; a second one forces. "
        "'ipsecd healthcheck --help' tells how to ask a running one how it is.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"default: IPSEC_CONFIG, else {DEFAULT_FILE}; IPSEC_* variables may describe a connection without any",
    )
    parser.add_argument("--check", action="store_true", help="say what would be used and what is missing, and exit")
    parser.add_argument("--json", action="store_true", help="with --check: for programs")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="make device, addresses and routes (CAP_NET_ADMIN), so that ipsecd itself needs no capability, and exit",
    )
    parser.add_argument("--owner", metavar="UID[:GID]", type=_owner, help="with --prepare: who will run ipsecd")
    parser.add_argument("--sysctl", action="store_true", help="with --prepare: also set what sysctls are wanted")
    parser.add_argument("--undo", action="store_true", help="with --prepare: remove it all again")
    parser.add_argument(
        "--log-level", choices=[level.value for level in LogLevel], help="instead of ipsecd.log_level in the file"
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print version and crypto providers, and exit")
    return parser


def _owner(text: str) -> tuple[int, int | None]:
    """Numbers, or names of this machine."""
    user, colon, group = text.partition(":")
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        gid = None if not colon else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no such user or group here: {text!r}") from None
    if uid >= 1 << 32 or (gid or 0) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is too large")
    return uid, gid


class _Version(argparse.Action):
    """Like argparse's own, but looks for providers only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        parser.exit(say(version_text(), ExitCode.OK))


def _prepare(config: Config, options: argparse.Namespace) -> int:
    from ipsec.daemon.prepare import Owner, prepare, undo

    try:
        lines = undo(config) if options.undo else prepare(config, Owner(*options.owner), sysctls=options.sysctl)
    except ConfigError as error:
        print(f"ipsecd: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    except BackendError as error:
        print(f"ipsecd: {error}", file=sys.stderr)
        return ExitCode.REQUIREMENT
    return say("\n".join(lines), ExitCode.OK)


def _check(config: Config, *, as_json: bool) -> int:
    try:
        found = requirements(config)
        possible = ways(backend_settings(config)) if config.settings.backend is BackendKind.USERSPACE else []
    except ConfigError as error:
        print(f"ipsecd: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    except BackendError as error:
        print(f"ipsecd: {error}", file=sys.stderr)
        return ExitCode.REQUIREMENT
    complete = all(requirement.state is not State.MISSING for requirement in found)
    status = ExitCode.OK if complete else ExitCode.REQUIREMENT
    if as_json:
        lines = [{**asdict(requirement), "state": requirement.state.value} for requirement in found]
        document = {"backend": config.settings.backend.value, "complete": complete, "requirements": lines}
        more = {"ways": [asdict(way) for way in possible], "warnings": list(config.warnings)}
        return say(json.dumps({**document, **more}, indent=2), status)
    return say(_table(config, in_short(found), possible, complete), status)


def _table(config: Config, found: Sequence[Requirement], possible: Sequence[Way], complete: bool) -> str:
    width = max(len(requirement.name) for requirement in found)
    lines = [f"{config.file}: {config.contents()}, backend {config.settings.backend.value}", ""]
    for requirement in found:
        lines.append(f"  {requirement.state.value:7}  {requirement.name:{width}}  {requirement.detail}")
        if requirement.state is not State.FOUND:
            lines.append(f"  {'':7}  {'':{width}}  -> {requirement.remedy}")
    if possible:
        lines += ["", "ways to run:"]
    for way in possible:
        state = "used" if way.used else "possible" if not way.missing else "missing"
        lines.append(f"  {state:8}  {way.name:9}  {way.what}")
        lines += [f"  {'':8}  {'':9}  no {what} -> {remedy}" for what, remedy in way.missing]
    lines += ["", *(f"warning: {warning}" for warning in config.warnings)]
    lines.append("ready to run" if complete else "something is missing: ipsecd would not start")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
