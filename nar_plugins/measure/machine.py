"""What a figure depends on besides the code: the processor, threads, versions; and the memory of this process."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Dict, Optional

import torch

from nar_plugins.modules.cpu import cpuinfo
from nar_plugins.modules.fast.heap import trim_heap

PROC = Path("/proc/self")
FAIRSEQ = ("fairseq-fixed", "fairseq", "ve-fairseq")  # the distributions that install it
PACKAGES = ("nar-plugins", *FAIRSEQ, "torch", "ctranslate2", "onnxruntime", "sacrebleu", "numpy")


def machine(cuda: bool) -> Dict[str, object]:
    """The device, the processor and its instructions for PyTorch, PyTorch's threads, and the packages' versions.

    Args:
        cuda: whether a GPU decodes.
    """
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
    }


def cpu_name() -> str:
    """The processor's name: Linux's, elsewhere Python's."""
    return cpuinfo("model name")


def version_of(package: str) -> Optional[str]:
    """The version of an installed distribution; None: it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def counts_memory() -> bool:
    """Whether this system counts a process's peak memory and can start anew: Linux."""
    return (PROC / "clear_refs").exists() and (PROC / "status").exists()


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, resident now, or VmHWM, the most since ``restart_peak``."""
    lines = (PROC / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def restart_peak() -> None:
    """Give freed memory back to the system, and count the peak from what is resident now."""
    trim_heap()
    (PROC / "clear_refs").write_text("5")
