"""Files that others see whole or not at all."""

from __future__ import annotations

import os
import resource
import stat
import time

import numpy as np
import pytest

from fl_darex.errors import ConfigError
from fl_darex.files.atomic import (
    PRIVATE,
    UNFINISHED_SECONDS,
    open_atomically,
    write_atomically,
    write_text_anyway,
    write_text_atomically,
)
from fl_darex.files.tensors import open_tensors


def test_parts_are_written_one_after_the_other(tmp_path):
    write_atomically(tmp_path / "a", [b"ab", np.arange(3, dtype=np.uint8), memoryview(b"c"), b""])
    assert (tmp_path / "a").read_bytes() == b"ab\x00\x01\x02c"


def test_text_is_written_as_utf_8_with_the_line_ends_that_it_has(tmp_path):
    write_text_atomically(tmp_path / "a", "größe\n\r\n")
    assert (tmp_path / "a").read_bytes() == b"gr\xc3\xb6\xc3\x9fe\n\r\n"


def test_the_old_file_is_seen_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, [b"old"])
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_is_given_up_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    write_atomically(path, [b"old"])

    def parts():
        yield b"new"
        raise error

    with pytest.raises(error):
        write_atomically(path, parts())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "a", [b"x"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_what_the_umask_allows_unless_it_is_private(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "shared", [b""])
        write_atomically(tmp_path / "private", [b""], PRIVATE)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"shared": 0o640, "private": 0o600}


def test_the_next_writer_removes_what_a_killed_one_left_of_the_same_file(tmp_path):
    past = time.time() - UNFINISHED_SECONDS - 10
    for name in ("a[1].0123.part", "a[1].4567.part", "a1.0123.part"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("a[1].0123.part", "a1.0123.part"):
        os.utime(tmp_path / name, (past, past))
    write_atomically(tmp_path / "a[1]", [b"whole"])
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a1.0123.part", "a[1]", "a[1].4567.part"]


@pytest.mark.timeout(20)  # whoever opens a pipe waits for ever
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
def test_a_pipe_is_neither_replaced_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(OSError, match=r"a\.npz' is there and is no file; remove it"):
        write_atomically(tmp_path / "a.npz", [b"x"])
    with pytest.raises(ConfigError, match=r"a\.npz' is there and is no file"):
        open_tensors(tmp_path / "a.npz")


def test_what_cannot_be_cleared_away_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def busy(*_: object, **__: object) -> None:
        raise OSError("device or resource busy")

    monkeypatch.setattr(os, "unlink", busy)
    with pytest.raises(ValueError, match="the reason"), open_atomically(tmp_path / "a"):
        raise ValueError("the reason")


@pytest.mark.parametrize("text", ["new", "a longer text than before", ""])
def test_the_last_word_is_written_where_there_is_no_place_for_a_second_file(tmp_path, text):
    path = tmp_path / ("x" * 250)  # with its ending, the second file's name would be too long
    with pytest.raises(OSError, match="too long"):
        write_text_atomically(path, text)
    with pytest.raises(OSError, match="too long"):
        write_text_anyway(path, text)
    path.write_text("what was before")
    write_text_anyway(path, text)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_the_last_word_leaves_the_old_text_where_it_does_not_fit(tmp_path):
    path = tmp_path / ("x" * 250)
    path.write_text("old" * 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(OSError, match="too long"):
            write_text_anyway(path, "new" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" * 100
