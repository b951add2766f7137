"""``ipsecd healthcheck``: asks the running daemon, prints one line, exits with 0 or 1. For containers without a shell.

It runs every few seconds, so it imports little: no event loop, no cryptography, no data path.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ipsec.cli.output import say
from ipsec.config.environment import read_environment
from ipsec.config.grammar import Section
from ipsec.config.settings import DaemonSettings, Listen, read_settings
from ipsec.errors import ConfigError, ParseError
from ipsec.vici.codec import PacketType, emit_packet, parse_length, parse_packet, text, texts

#: a daemon that takes longer hangs
PATIENCE_S = 5.0
ANSWER_MAX = 1 << 16

#: question -> path of the HTTP endpoint, and what a good answer is called
QUESTIONS = {"healthy": "/healthz", "ready": "/readyz", "alive": "/livez"}


class UnreachableError(Exception):
    """Nobody answers; the text says where that was tried."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(arguments)
    question = options.question
    try:
        environment = read_environment(os.environ)
        root = environment.parse(options.config or environment.file)
        settings = read_settings(root.sections.get("ipsecd") or Section("ipsecd", root.file, 1))
        problems = ask(settings, question)
    except ConfigError as error:
        answer = f"cannot tell: {error}"
    except UnreachableError as error:
        answer = f"not {question}: {error}"
    else:
        answer = f"not {question}: {'; '.join(problems)}" if problems else question
    # the status is for the container's runtime, whatever becomes of the line
    say(answer, 0)
    return 0 if answer == question else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipsecd healthcheck",
        description="Ask the running daemon how it is: over HTTP if ipsecd.http.listen is set, else over vici.",
        epilog="exit status: 0 yes, 1 no, or nobody answers",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the daemon's, with the same default; it needs the same variables IPSEC_*"
    )
    kind = parser.add_mutually_exclusive_group()
    for option, question, help in (
        ("--ready", "ready", "whether traffic can be sent its way: tunnels that are to be up are up"),
        ("--live", "alive", "whether it does anything at all"),
    ):
        kind.add_argument(option, dest="question", action="store_const", const=question, help=help)
    parser.set_defaults(question="healthy")
    return parser


def ask(settings: DaemonSettings, question: str) -> list[str]:
    """Why the answer is no; empty for yes. UnreachableError."""
    tried = []
    for name, how in _ways(settings):
        try:
            return how(question)
        except TimeoutError:
            # it has a socket and does not serve it: the other one would tell no more
            raise UnreachableError(f"no answer from {name} in {PATIENCE_S:g} s") from None
        except OSError as error:
            tried.append(f"{name}: {error.strerror or error}")
        except (ParseError, ValueError, RecursionError) as error:
            tried.append(f"{name}: an answer that makes no sense: {error}")
    raise UnreachableError("; ".join(tried) or "neither ipsecd.http.listen nor ipsecd.vici_socket is set")


def _ways(settings: DaemonSettings) -> Iterator[tuple[str, Callable[[str], list[str]]]]:
    for endpoint in settings.http.listen:
        yield f"http://{endpoint}", partial(_ask_http, endpoint)
    if settings.vici_socket:
        yield settings.vici_socket, partial(_ask_vici, settings.vici_socket)


def _ask_http(endpoint: Listen, question: str) -> list[str]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(endpoint.address), str(endpoint.address))
    deadline = time.monotonic() + PATIENCE_S
    with socket.create_connection((host, endpoint.port), PATIENCE_S) as sock:
        sock.sendall(f"GET {QUESTIONS[question]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = _receive(sock, ANSWER_MAX, deadline).partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200 "):
        return []
    if not head.startswith(b"HTTP/1.1 503 "):
        raise ParseError(f"it begins with {head[:40]!r}")
    answer = json.loads(body)
    problems = answer.get("problems") if isinstance(answer, dict) else None
    if not isinstance(problems, list) or not problems:
        raise ParseError("it does not say why")
    return [str(problem) for problem in problems]


def _ask_vici(path: str, question: str) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        sock.sendall(emit_packet(PacketType.CMD_REQUEST, "ipsecd-health"))
        head = _receive(sock, 4, deadline)
        if len(head) < 4:
            raise ParseError("it ends early")
        packet = parse_packet(_receive(sock, parse_length(head), deadline))
    section = packet.message.get(question)
    if not isinstance(section, dict):
        raise ParseError("whoever listens there is not ipsecd")
    return [] if text(section, question) == "yes" else texts(section, "problems")


def _receive(sock: socket.socket, length: int, deadline: float) -> bytes:
    """``length`` octets, or fewer if the other end has no more. TimeoutError."""
    found = b""
    while len(found) < length:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data = sock.recv(length - len(found))
        if not data:
            break
        found += data
    return found
