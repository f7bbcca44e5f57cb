"""What a process costs: its CPU, and that of what it started; its memory."""

import os
from pathlib import Path

__all__ = ["cpu_seconds", "rss_mb"]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its children have used, ended ones as well, in seconds."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid or int(stat.parent.name) == pid:
            ticks += int(fields[11]) + int(fields[12])
        if int(stat.parent.name) == pid:
            # Processes that have ended are counted by the one that started them.
            ticks += int(fields[13]) + int(fields[14])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB of 2**20 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
