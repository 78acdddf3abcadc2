"""The memory that a process has freed and keeps."""

import ctypes


def trim_heap() -> None:
    """Give freed memory back to the system.

    Loading a checkpoint frees as much as the model has, and glibc keeps it. It is not needed again in decoding.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other systems have none
    if trim is not None:
        trim(0)
