"""Files of a capture, copies of keys above all: nobody else may read them, whatever was there before."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ipsec.ctl.capture import _opened
from ipsec.ctl.errors import CtlError
from ipsec.ctl.keys import Keys


def test_what_was_there_before_is_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "keylog", tmp_path / "profile"
    source.mkdir()
    for name in ("ikev2_decryption_table", "esp_sa"):
        (source / name).write_text(f"keys of {name}")
    target.mkdir()
    (target / "esp_sa").write_text("of somebody else, for all to read")
    (target / "esp_sa").chmod(0o666)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (target / "ikev2_decryption_table").symlink_to(elsewhere)
    with open(target / "esp_sa") as before:
        Keys(str(source), str(target)).copy("x.pcapng")
        assert before.read() == "of somebody else, for all to read"
    assert elsewhere.read_text() == "untouched"
    assert (target / "esp_sa").read_text() == "keys of esp_sa"
    for one in target.iterdir():
        assert stat.S_IMODE(one.lstat().st_mode) == 0o600


def test_a_daemon_that_writes_none(tmp_path: Path) -> None:
    with pytest.raises(CtlError, match="writes no keys"):
        Keys("", str(tmp_path))
    with pytest.raises(CtlError, match="cannot copy"):
        Keys(str(tmp_path / "nowhere"), str(tmp_path / "profile")).copy("x.pcapng")


def test_a_capture_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    file.write_text("an older one")
    file.chmod(0o644)
    with _opened(str(file)) as stream:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        stream.write(b"new")
    assert file.read_bytes() == b"new"
    before = Path("/dev/null").stat().st_mode
    with _opened("/dev/null"):
        pass
    assert Path("/dev/null").stat().st_mode == before
