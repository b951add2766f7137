"""What README.md shows works as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

from ipsec.cli import demo_strongswan
from ipsec.config import load
from ipsec.config.schema import load_text
from ipsec.ike.config import Action, AuthClass
from tests.config import pki

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = [block for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) if block.startswith("ipsecd {")]


def test_configuration_with_ikev2_is_accepted() -> None:
    (example,) = (block for block in EXAMPLES if "connections {" in block)
    config = load_text(example)
    (connection,) = config.connections
    (child,) = connection.children
    assert child.start_action == Action.START | Action.TRAP
    assert not config.warnings


def test_configuration_with_certificates_is_accepted(tmp_path: Path) -> None:
    homes = tmp_path / "a", tmp_path / "b"
    demo_strongswan._certificates(homes)
    (example,) = (block for block in EXAMPLES if "connections {" in block)
    changed = example.replace(
        "auth = psk\n            id = a", "auth = pubkey\n            certs = gateway.pem\n            id = a"
    )
    changed = changed.replace("auth = psk", "auth = pubkey")
    changed = changed.replace("a.example", demo_strongswan.IDENTITIES[0])
    (homes[0] / "swanctl.conf").touch(mode=0o600)
    (homes[0] / "swanctl.conf").write_text(changed)
    (connection,) = load(str(homes[0] / "swanctl.conf")).connections
    assert connection.local.method is AuthClass.PUBKEY


def test_examples_of_operations_are_accepted(tmp_path: Path) -> None:
    """Each by itself: whoever copies one lacks nothing but a secret."""
    pki.lay_out(tmp_path)
    for name in ("gw", "laptop"):
        pki.write(tmp_path, f"x509/{name}.pem", pki.pem(name))
        pki.write(tmp_path, f"private/{name}.pem", pki.key_pem(name))
    text = (ROOT / "docs/operations.md").read_text()
    text = text.replace("secret = ...", "secret = x").replace("secret = 0x...", f"secret = 0x{'1' * 64}")
    examples = re.findall(r"^    (?:connections|secrets|ipsecd) \{.*\n(?: {4}.*\n)*", text, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        load_text(example, directory=str(tmp_path))


def test_configuration_of_manual_sas_is_accepted(tmp_path: Path) -> None:
    (example,) = (block for block in EXAMPLES if "sas {" in block)
    for name, octet in (("to-b.in", "11"), ("to-b.out", "22")):
        (tmp_path / name).write_text("0x" + octet * 20 + "\n")
        (tmp_path / name).chmod(0o600)
    config = load_text(example.replace("/etc/swanctl/ipsecd", str(tmp_path)))
    (sa,) = config.sas
    inbound, outbound = sa.params()
    assert (inbound.encr_key, outbound.encr_key) == (b"\x11" * 20, b"\x22" * 20)
    assert sa.encap == (4500, 4500)


def test_every_make_target_and_path_exists() -> None:
    targets = set(re.findall(r"^([\w-]+): ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)(?=`|\s{2,}#)", README)) <= targets
    paths = re.findall(r"`((?:ipsec|tests|docs)/[\w./]+)`", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
