"""DVC's command line in three quarters of the time: its garbage collector wakes seldom.

Run by its path, so that it is this one in whatever folder, also in the worktree of an old commit.
"""

import atexit
import gc
import sys

if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 50)  # importing makes many objects that stay
    atexit.register(gc.freeze)  # else ending looks through all of them
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))
