"""Which process a pid stands for: pids are used again, and they differ between containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

STOPPED: Final = "Tt"  # the states of a process that a signal, or a debugger, stopped
DEAD: Final = "ZXx"  # it has ended, and its parent has not asked for its exit status


def look_up(pid: int) -> tuple[str, int] | None:
    """Return the state of a process, a letter as `ps` shows it, and when it started, in ticks since the boot; None if
    there is none. Without /proc, it returns ("", 0) for every process that exists.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the name before may hold anything
        state, started = text[0].decode(), int(text[19])
    except (OSError, ValueError, IndexError):
        return ("", 0) if not Path("/proc/self/stat").exists() and _exists(pid) else None
    return None if state in DEAD else (state, started)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def where() -> str:
    """Return what tells this boot of this machine, and this space of pids in it (a container's), from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return f"{boot}:{space}"
