"""What README.md shows works as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

from ipsec.config.schema import load_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_configuration_is_accepted(tmp_path: Path) -> None:
    (example,) = (block for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) if block.startswith("ipsecd {"))
    for name, octet in (("to-b.in", "11"), ("to-b.out", "22")):
        (tmp_path / name).write_text("0x" + octet * 20 + "\n")
        (tmp_path / name).chmod(0o600)
    config = load_text(example.replace("/etc/swanctl/ipsecd", str(tmp_path)))
    (sa,) = config.sas
    inbound, outbound = sa.params()
    assert (inbound.encr_key, outbound.encr_key) == (b"\x11" * 20, b"\x22" * 20)
    assert sa.encap == (4500, 4500)


def test_every_make_target_and_path_exists() -> None:
    targets = set(re.findall(r"^(\w+): ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)(?=`|\s{2,}#)", README)) <= targets
    paths = re.findall(r"`((?:ipsec|tests|docs)/[\w./]+)`", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
