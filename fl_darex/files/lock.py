"""A file that one process holds; the system lets go of it when that process ends, however it ends.

What stands in the file does not matter: who reads and writes it is not kept from doing so.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> None:
        file.seek(2**30)  # there it keeps nobody from reading or writing what is in the file
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Lock:
    """A hold on a file, to be taken and given back.

    Where a file system has no such holds, as some network shares, everybody gets one.

    Args:
        path: The file; it is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def take(self) -> bool:
        """Take hold of the file; False: another process, or another `Lock`, has it.

        Raises:
            OSError: If the file cannot be opened for writing.
        """
        if self._file is not None:
            return True
        file = open(self.path, "ab")
        try:
            _take(file)
        except OSError as error:
            if error.errno in _HELD:
                file.close()
                return False
        self._file = file
        return True

    def give_back(self) -> None:
        """Let go of the file. May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
