"""Becomes another program that dies with the process which started it.

    python -I -S bound_child.py PARENT_PID COMMAND ARGUMENT…

A closed stdin ends a well-behaved MCP server, but not one that is busy or stuck: on Linux the
kernel kills it when its parent is gone (PR_SET_PDEATHSIG, which exec keeps). Run as a file, before
any package of ours is there, so that it costs next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`; the exit code is 127 when there is no such program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the adapter died before its server started")
    try:
        os.execvp(command[0], command)  # noqa: S606 # the operator's own command, and no shell
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
