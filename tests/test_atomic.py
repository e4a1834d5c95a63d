"""Files that others see whole or not at all."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from fl_darex.files.atomic import (
    PRIVATE,
    open_atomically,
    write_atomically,
    write_text_atomically,
)


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
