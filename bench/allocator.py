"""Keeping freed memory in the process: page faults of every large temporary would otherwise hide what is measured.

glibc gives large freed blocks back to the system, so each activation of the next layer is paged in again; how often depends on
sizes, not on work.  Kept memory is what long-running processes and other allocators (jemalloc, tcmalloc) have.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
KEPT, DEFAULT = "glibc, freed memory kept", "the C library's default"


def keep_freed_memory() -> str:
    """Stop this process from giving memory back, if its C library can; returns which behaviour it has now."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return DEFAULT
    kept = mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0)
    return KEPT if kept else DEFAULT
