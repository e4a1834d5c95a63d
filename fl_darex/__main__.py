"""``python -m fl_darex``: the command, where the script ``fl-darex`` is not on the path."""

from fl_darex.cli import main

main()
