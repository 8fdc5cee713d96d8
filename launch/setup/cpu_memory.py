"""How the C library holds a step's temporaries on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # <malloc.h>


def keep_freed() -> None:
    """Lets glibc's malloc keep what a step frees for the next one.

    Given back to the kernel, as it does with large arrays, a step's temporaries cost a page fault for every 4 KiB: half
    of a small model's time. A thread's own heap ends at 64 MB, and what is larger is given back all the same; threads
    share the main heap where they begin after this, so that it is best called before JAX has a backend.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26), (M_ARENA_MAX, 1)):
            mallopt(option, value)
