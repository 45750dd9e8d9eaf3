"""Become another program: give up root, ask to be signalled when the parent dies, then exec. Run by path, before any
import.

    python -I -S launch.py <parent pid> <signal when orphaned, or 0> <uid, or -1> <gid, or -1> <program> [argument ...]

It is a program of its own because `preexec_fn` may deadlock in a process that has threads, and because the order
matters: the kernel forgets a death signal whenever a process changes its user. The signal is tied to the *thread* that
started the program: it is sent when that thread ends. Only Linux has it; elsewhere a program outlives its parent.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the program named on the command line."""
    parent, orphan_signal, uid, gid = (int(value) for value in sys.argv[1:5])
    argv = sys.argv[5:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if orphan_signal and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, orphan_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask
            raise SystemExit("The process that wanted this program is gone.")
    os.execv(argv[0], argv)  # noqa: S606 - the one purpose of this program


if __name__ == "__main__":
    main()
