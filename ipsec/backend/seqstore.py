"""Sequence numbers of manual SAs across restarts: an (IV, key) pair never repeats.

The IV of counter-mode suites comes from the sequence number (RFC 4106 section 3.1), and RFC 3686 section 2.1 and RFC
4106 section 2 forbid static keys unless something makes sure that no IV is used twice with one. This is that
something. The IV of CBC is the sequence number too, enciphered (SP 800-38A appendix C). Before an outbound SA sends
packet n, a file says that numbers up to some mark >= n may have been used. A restart begins after the mark, so what
was reserved and not used is skipped, never what was used.

The data path cannot pass the mark: the SA is installed with a hard limit of exactly the numbers reserved, and the
soft limit in front of it asks for the next block. Nothing depends on a timer or on the speed of the line.

What comes in needs less care: the highest number received is written down now and then, and a restart takes all up to
it as seen, so that what an attacker recorded before is a replay still.

A file is named after a hash of the key, never the key, so it follows a key that moves to another SPI. An exclusive
lock per key keeps two SAs, or two daemons, from sealing with one key. Losing the directory loses the protection: it
belongs on storage that outlives the container, or the keys must change with it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ipsec.crypto.suites import Encr, EspSuite
from ipsec.errors import BackendError, SequenceError

#: 32-bit numbers: 64 kills are affordable, and at 20 Mpps a block is renewed about every 3 seconds
BLOCK_32 = 1 << 26
#: 64-bit numbers (ESN): a receiver recovers the high half only if the jump stays far below 2^32 (RFC 4303 A2.2)
BLOCK_ESN = 1 << 30
#: the next block is asked for when this many numbers are left: 0.4 s at 20 Mpps
RENEW_BEFORE = 1 << 23

_MAGIC = "ipsecd-sequence-1"


def counter_mode(suite: EspSuite) -> bool:
    """Whether a repeated IV under one key breaks this suite, rather than show which packets begin alike."""
    return suite.aead or suite.encr is Encr.AES_CTR


@dataclass(frozen=True)
class Block:
    """Numbers ``first`` .. ``last`` are reserved on disk."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many packets the SA may send."""
        return self.last - self.first + 1

    @property
    def margin(self) -> int:
        """How many packets before its end to ask for the next block."""
        return min(RENEW_BEFORE, self.count // 8)


class SequenceStore:
    """A directory of reservations. Blocking, but every call is one small file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def claim(self, encr_key: bytes, integ_key: bytes, *, esn: bool) -> Reservation:
        """Take the key for this process. BackendError if it is taken, the directory unwritable or the file damaged."""
        name = _name(encr_key, integ_key)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark = _read(self._directory / f"{name}.seq")
            if mark is None:
                raise SequenceError(
                    f"{self._directory}/{name}.seq is damaged, so nobody knows which sequence numbers were used",
                    remedy="configure new keys for this SA and remove the file",
                )
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise SequenceError(
                    "an outbound key is in use by another SA or another ipsecd",
                    remedy="give every outbound SA a key of its own",
                ) from error
            raise self._unwritable(error) from error
        except BackendError:
            os.close(lock)
            raise
        return Reservation(self._directory, name, lock, mark, esn=esn)

    def check(self, encr_key: bytes, integ_key: bytes, *, esn: bool) -> None:
        """Raise what ``claim`` would raise for a key that was used before; nothing is changed."""
        if (self._directory / f"{_name(encr_key, integ_key)}.lock").exists():
            self.claim(encr_key, integ_key, esn=esn).close()

    def seen(self, encr_key: bytes, integ_key: bytes, *, esn: bool) -> int:
        """The highest number received with this key that was written down; 0 if none was, or nobody can read it."""
        try:
            seen = _read(self._directory / f"{_name(encr_key, integ_key)}.seen") or 0
        except OSError:
            return 0
        # of a key that had ESN before
        return seen if seen < 1 << (64 if esn else 32) else 0

    def remember(self, encr_key: bytes, integ_key: bytes, seq: int) -> None:
        """Write down the highest number received. BackendError if the disk refuses."""
        name = _name(encr_key, integ_key)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # not synced: what a power failure takes is as much as a kill takes anyway
            _write(self._directory, f"{name}.seen", seq, sync=False)
        except OSError as error:
            raise BackendError(
                f"cannot write {self._directory}/{name}.seen: {error.strerror}; after a restart old packets could be "
                "played again",
                remedy="set ipsecd.state_dir to a directory that this user can write and that outlives a restart",
            ) from error

    def _unwritable(self, error: OSError) -> BackendError:
        return BackendError(
            f"state directory {self._directory}: {error.strerror}; without it a restart would use an IV twice",
            remedy="set ipsecd.state_dir to a directory that this user can write and that outlives a restart",
        )


class Reservation:
    """The sequence numbers of one key, held until ``close``."""

    def __init__(self, directory: Path, name: str, lock: int, mark: int, *, esn: bool) -> None:
        self._directory = directory
        self._name = name
        self._lock = lock
        self._mark = mark
        self._last = (1 << 64) - 1 if esn else (1 << 32) - 1
        self._block = BLOCK_ESN if esn else BLOCK_32

    @property
    def used_up(self) -> bool:
        """Whether all numbers that the key can have are reserved."""
        return self._mark >= self._last

    def next_block(self) -> Block:
        """Reserve the block that follows the last one: it is on the disk when this returns.

        BackendError if that fails, or none is left.
        """
        if self.used_up:
            raise SequenceError(
                "the sequence numbers of this key are used up (RFC 4303 section 3.3.3)",
                remedy="configure new keys, and esn = yes for 64-bit numbers",
            )
        block = Block(self._mark + 1, min(self._mark + self._block, self._last))
        try:
            self._write(block.last)
        except OSError as error:
            raise BackendError(
                f"cannot write {self._directory}/{self._name}.seq: {error.strerror}",
                remedy="make room there; the SA stops at the numbers that are already reserved",
            ) from error
        self._mark = block.last
        return block

    def give_back(self, used: int) -> None:
        """On a clean stop: ``used`` is the last number sent, and the SA is gone. Failure costs numbers, no more."""
        if used < self._mark:
            try:
                self._write(used)
            except OSError:
                return
            self._mark = used

    def close(self) -> None:
        """Let go of the key."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write(self, mark: int) -> None:
        _write(self._directory, f"{self._name}.seq", mark)


def _name(encr_key: bytes, integ_key: bytes) -> str:
    return hashlib.sha256(b"ipsecd sequence numbers\0" + (encr_key or integ_key)).hexdigest()[:32]


def _read(path: Path) -> int | None:
    """The number in a file: 0 if there is no file, None if it is damaged. OSError if it cannot be read."""
    try:
        text = path.read_text("ascii", "replace")
    except FileNotFoundError:
        return 0
    # with its end, without which a number is another one
    found = re.fullmatch(rf"{_MAGIC} ([0-9]{{1,20}})\n", text)
    return int(found[1]) if found else None


def _write(directory: Path, name: str, number: int, *, sync: bool = True) -> None:
    """Replace a file as a whole; with ``sync`` it is on the disk when this returns."""
    temporary = directory / f"{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            data = f"{_MAGIC} {number}\n".encode()
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, directory / name)
    except OSError:
        # on a full disk nothing is left behind
        temporary.unlink(missing_ok=True)
        raise
    if not sync:
        return
    # the rename itself is on the disk only once the directory is
    holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(holder)
    finally:
        os.close(holder)
