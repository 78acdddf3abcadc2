"""What PyTorch does not say of the processor."""

import platform
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=None)
def cpuinfo(field: str) -> str:
    """A field of Linux's description of the first processor; elsewhere Python's name of it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    values = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field]
    return values[0] if values else platform.processor() or platform.machine()


def made_by_intel() -> bool:
    """Whether the processor is Intel's."""
    return "Intel" in cpuinfo("vendor_id")


def made_by_amd() -> bool:
    """Whether the processor is AMD's."""
    return "AMD" in cpuinfo("vendor_id")
