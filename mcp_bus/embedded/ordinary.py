"""`python ordinary.py PARENT SIGNAL PROGRAM ARGUMENT…`: becomes PROGRAM, as an ordinary user.

Root outside, an ordinary user in its own eyes: the files stay root's. A program of its own, because
the kernel gives a user namespace only to a process with one thread, and a library may start one in
every fork of ours (OpenTelemetry's exporters do). It gets SIGNAL when the process PARENT is gone.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
ORDINARY_ID = 1000
REFUSED = 77  # the exit code where the system gives no user namespace


def become(parent: int, death_signal: int, program: list[str]) -> None:
    """Does not return, but for an exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    maps = (
        ("setgroups", "deny"),
        ("uid_map", f"{ORDINARY_ID} {os.geteuid()} 1"),
        ("gid_map", f"{ORDINARY_ID} {os.getegid()} 1"),
    )
    try:
        if libc.unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for name, value in maps:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(value)
    except OSError as error:
        sys.stderr.write(f"user namespace refused: {error}\n")
        sys.exit(REFUSED)
    # last, because a new namespace clears it
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0 or os.getppid() != parent:
        sys.exit(1)  # it died before it could be watched
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
