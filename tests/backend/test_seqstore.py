"""ipsec.backend.seqstore: whatever happens in between, no number is handed out twice for one key."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.backend import seqstore
from ipsec.backend.seqstore import BLOCK_32, BLOCK_ESN, Block, SequenceStore, counter_mode
from ipsec.crypto.suites import all_esp_suites, esp_suite
from ipsec.errors import BackendError, SequenceError

KEY = bytes(range(20))


def test_blocks_follow_each_other_and_are_on_disk_first(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=False)
    first = held.next_block()
    assert first == Block(1, BLOCK_32)
    assert first.count == BLOCK_32
    assert 0 < first.margin < first.count
    (path,) = tmp_path.glob("*.seq")
    assert int(path.read_text().split()[1]) == first.last
    assert held.next_block().first == first.last + 1
    held.close()


def test_a_mark_outlives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its octets are on the disk before it has its name, and the name is before a number is used."""
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=False)
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def renamed(old: Path, new: Path) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    held.next_block()
    assert done == ["file", "name", "directory"]
    held.close()
    # what was received may be lost, as it is by a kill
    store.remember(KEY, b"", 77)
    assert done[3:] == ["name"]


def test_a_crash_skips_what_was_reserved(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=True)
    block = held.next_block()
    held.close()  # the kernel drops the lock of a process that is killed; the file stays
    again = store.claim(KEY, b"", esn=True)
    assert again.next_block() == Block(block.last + 1, block.last + BLOCK_ESN)
    again.close()


def test_a_clean_stop_gives_back(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=False)
    held.next_block()
    held.give_back(17)
    held.close()
    again = store.claim(KEY, b"", esn=False)
    assert again.next_block().first == 18
    # never upwards: that would claim numbers that nobody reserved
    again.give_back(1 << 40)
    assert again.next_block().first == 18 + BLOCK_32
    again.close()


def test_the_last_block_ends_exactly_and_then_it_is_over(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=False)
    last = 0
    for _ in range(1 << 32 >> 26):
        block = held.next_block()
        assert block.first == last + 1
        last = block.last
    assert last == (1 << 32) - 1
    with pytest.raises(SequenceError, match=r"used up.*new keys"):
        held.next_block()
    held.close()


def test_extended_numbers_end_as_well(tmp_path: Path) -> None:
    """The mark is just before the last number of all."""
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=True)
    assert held.next_block() == Block(1, BLOCK_ESN)
    held.close()
    (path,) = tmp_path.glob("*.seq")
    path.write_text(f"{path.read_text().split()[0]} {(1 << 64) - 2}\n")
    held = store.claim(KEY, b"", esn=True)
    assert held.next_block() == Block((1 << 64) - 1, (1 << 64) - 1)
    assert held.used_up
    held.close()


def test_a_later_version_finds_what_this_one_has_written(tmp_path: Path) -> None:
    """By another name a key would begin anew with numbers that were used."""
    held = SequenceStore(tmp_path).claim(KEY, b"", esn=False)
    held.next_block()
    held.close()
    assert (tmp_path / "5b4f71281504bed23c5e8b72f0ad3b06.seq").read_bytes() == b"ipsecd-sequence-1 67108864\n"


def test_one_key_has_one_holder(tmp_path: Path) -> None:
    first = SequenceStore(tmp_path).claim(KEY, b"", esn=False)
    with pytest.raises(SequenceError, match="in use by another SA"):
        SequenceStore(tmp_path).claim(KEY, b"", esn=False)
    other = SequenceStore(tmp_path).claim(KEY[::-1], b"", esn=False)
    first.close()
    SequenceStore(tmp_path).claim(KEY, b"", esn=False).close()
    other.close()


def test_the_key_is_nowhere_in_the_directory(tmp_path: Path) -> None:
    held = SequenceStore(tmp_path / "deep" / "er").claim(KEY, b"", esn=False)
    held.next_block()
    held.close()
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "deep" / "er").iterdir():
        assert KEY.hex() not in path.name
        assert KEY not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_integrity_key_does_where_there_is_no_cipher_key(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    first = store.claim(b"", b"a" * 32, esn=False)
    second = store.claim(b"", b"b" * 32, esn=False)
    first.close()
    second.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"ipsecd-sequence-1", b"ipsecd-sequence-1 -5\n", b"ipsecd-sequence-1 5 6\n", b"\xff 7\n", b"other 7\n",
      b"ipsecd-sequence-1 6710886"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    store = SequenceStore(tmp_path)
    held = store.claim(KEY, b"", esn=False)
    held.next_block()
    held.close()
    (path,) = tmp_path.glob("*.seq")
    path.write_bytes(damage)
    with pytest.raises(SequenceError, match=r"damaged.*new keys"):
        store.claim(KEY, b"", esn=False)
    path.unlink()
    store.claim(KEY, b"", esn=False).close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="IV twice"):
        SequenceStore(tmp_path / "file" / "state").claim(KEY, b"", esn=False)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def half(fd: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    """What a disk does that has room for no more: a mark that is cut off is a lower one."""
    return write(fd, data[:-3])


@pytest.mark.parametrize(("call", "instead"), [("fsync", full), ("write", half)])
def test_a_full_disk_keeps_the_old_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, instead: Callable[..., object]
) -> None:
    held = SequenceStore(tmp_path).claim(KEY, b"", esn=False)
    block = held.next_block()
    monkeypatch.setattr(os, call, instead)
    with pytest.raises(BackendError, match=r"No space left.*make room"):
        held.next_block()
    monkeypatch.undo()
    assert list(tmp_path.glob("*.new")) == []
    assert held.next_block().first == block.last + 1
    held.close()


@given(st.lists(st.sampled_from(["block", "crash", "stop"]), max_size=30), st.data())
def test_no_number_twice_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], data: st.DataObject
) -> None:
    store = SequenceStore(tmp_path_factory.mktemp("state"))
    held = store.claim(KEY, b"", esn=True)
    used = 0  # the highest number sent
    block: Block | None = None
    for step in steps:
        if step == "block" or block is None:
            block = held.next_block()
            assert block.first > used
        used = data.draw(st.integers(max(used, block.first), block.last))
        if step == "stop":
            held.give_back(used)
        if step != "block":
            held.close()
            held = store.claim(KEY, b"", esn=True)
            block = None
    held.close()


def test_counter_mode_covers_every_suite_whose_iv_is_a_counter() -> None:
    weak = {suite.name for suite in all_esp_suites() if not counter_mode(suite)}
    assert all(name.split("-")[0] in ("null", "3des", "aes128", "aes192", "aes256") for name in weak)
    assert counter_mode(esp_suite("aes128gmac"))
    assert counter_mode(esp_suite("aes256ctr-sha256"))
    assert seqstore.RENEW_BEFORE < BLOCK_32 // 4


def test_what_was_received_is_kept_apart_from_what_was_sent(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path / "state")
    assert store.seen(KEY, b"", esn=False) == 0
    store.remember(KEY, b"", 77)
    assert store.seen(KEY, b"", esn=False) == 77
    assert store.seen(KEY[::-1], b"", esn=False) == 0
    held = store.claim(KEY, b"", esn=False)
    assert held.next_block().first == 1
    held.close()
    assert store.seen(KEY, b"", esn=False) == 77


def test_a_number_beyond_what_the_sa_has_is_none(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    store.remember(KEY, b"", 1 << 33)
    assert store.seen(KEY, b"", esn=True) == 1 << 33
    assert store.seen(KEY, b"", esn=False) == 0


def test_a_damaged_record_of_the_past_stops_nobody(tmp_path: Path) -> None:
    """Unlike a lost mark of our own numbers, it costs protection against old packets only."""
    store = SequenceStore(tmp_path)
    store.remember(KEY, b"", 77)
    (path,) = tmp_path.glob("*.seen")
    path.write_bytes(b"\xff\xff")
    assert store.seen(KEY, b"", esn=False) == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="played again"):
        SequenceStore(tmp_path / "file" / "state").remember(KEY, b"", 1)


def test_check_says_what_claim_would_and_changes_nothing(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path)
    store.check(b"k" * 20, b"", esn=False)
    assert list(tmp_path.iterdir()) == []
    reservation = store.claim(b"k" * 20, b"", esn=False)
    with pytest.raises(SequenceError, match="in use by another SA"):
        SequenceStore(tmp_path).check(b"k" * 20, b"", esn=False)
    reservation.next_block()
    reservation.close()
    store.check(b"k" * 20, b"", esn=False)
    (mark,) = tmp_path.glob("*.seq")
    mark.write_text("nonsense")
    with pytest.raises(SequenceError, match="damaged"):
        store.check(b"k" * 20, b"", esn=False)
    assert mark.read_text() == "nonsense"
