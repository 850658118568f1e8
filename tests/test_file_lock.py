# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""A command that was given twice: the second process is told, and one that is killed is in nobody's way."""

import errno
import fcntl
import os
import re

import pytest

from nemo_mshubert import file_lock
from nemo_mshubert.file_lock import alone, in_turn

pytestmark = pytest.mark.unit


def test_a_second_process_is_told_of_the_first(tmp_path, held_elsewhere):
    lock = tmp_path / "out" / ".lock"
    first = held_elsewhere(lock)
    with pytest.raises(RuntimeError, match=f"^{re.escape(str(lock))}: another process packs. Wait for it.$"):
        with alone(lock, "packs. Wait for it."):
            pytest.fail("two at once")
    first.kill()
    first.wait()
    assert lock.exists()  # but nobody holds it
    with alone(lock, "packs. Wait for it."):
        assert lock.exists()
    assert not lock.exists()
    with pytest.raises(KeyboardInterrupt), alone(lock, "packs. Wait for it."):
        raise KeyboardInterrupt
    assert not lock.exists()


def test_a_second_process_waits_for_its_turn(tmp_path, held_elsewhere, monkeypatch, caplog):
    lock = tmp_path / "out" / ".lock"
    first, waits = held_elsewhere(lock), []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            first.kill()
            first.wait()

    monkeypatch.setattr(file_lock.time, "sleep", sleep)
    with in_turn(lock, "fills this cache."):
        assert len(waits) == 2 and lock.exists()
    assert not lock.exists()
    assert caplog.text.count("another process fills this cache. This one waits for it.") == 1
    with pytest.raises(RuntimeError, match="of the work itself"), in_turn(lock, "fills this cache."):
        raise RuntimeError("of the work itself")
    assert len(waits) == 2 and not lock.exists()


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_that_was_removed_behind_the_open_holds_nobody_off(tmp_path, monkeypatch, made_anew):
    """The first process ends between open and lock of the second: a third would make a file of its own, or has made
    it, and run beside the second."""
    lock, tries = tmp_path / ".lock", []

    def ended_meanwhile(stream, kind):
        tries.append(stream.fileno())
        if len(tries) == 1:
            lock.unlink()
            if made_anew:
                lock.touch()
        return True

    monkeypatch.setattr(file_lock, "try_to_lock", ended_meanwhile)
    with alone(lock, "packs."):
        assert len(tries) == 2 and lock.exists()


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, caplog):
    """Some clusters mount Lustre so: no command that takes a lock would run there."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock = tmp_path / "made" / ".lock"
    with alone(lock, "packs. Wait for it."):
        assert f"{lock}: cannot be locked ([Errno 37] No locks available)" in caplog.text
        lock.unlink()  # as a second process does when it ends
