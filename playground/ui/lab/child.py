"""`python -m playground.ui.lab.child MODULE …`: runs a module as `python -m` does, and ends when its parent does.

The parent holds the other end of standard input. That closes when the parent ends, however it ends; then this process
and everything it has started are killed, so that no benchmark is left behind to disturb whoever uses the machine next.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
