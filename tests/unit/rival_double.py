"""Stand-ins for another engine of ``nar-bench``, loaded in a process of their own."""

import os
import signal
import time

import torch

from nar_plugins.measure.systems import System


class Rival(System):
    """Says one word; its times are the number of its process."""

    def load_models(self, path):
        return []

    def start(self):
        self.cuda, self.autoregressive, self.generator = False, True, None

    def weight_bytes(self):
        return 1000 * self.threads + torch.get_num_threads()

    def max_positions(self):
        return [(1024, 1024)]

    def hypotheses(self, sample):
        return [[{"tokens": torch.tensor([self.task.target_dictionary.index("w3"), 2])}] for _ in sample["id"]]

    def latencies(self, batches):
        return [float(os.getpid()) for _ in batches]


class Dying(Rival):
    """Is killed when it decodes, as by a system without memory."""

    def hypotheses(self, sample):
        os.kill(os.getpid(), signal.SIGKILL)


class DyingInTime(Rival):
    """Ends while it is timed."""

    def latencies(self, batches):
        os._exit(3)


class DyingInLoading(Rival):
    """Ends before it is loaded."""

    def start(self):
        os._exit(4)


class Alone:
    """What ``Worker`` needs of a system, without data."""

    cuda, autoregressive = False, True

    def __init__(self, given):
        if given == "lacks memory":
            raise MemoryError("too large")

    def weight_bytes(self):
        return 7

    def max_positions(self):
        return [(1024, 1024)]

    def hypotheses(self, sample):
        if sample == "error":
            raise IndexError("list index\nout of range")
        if sample == "memory":
            raise torch.OutOfMemoryError("a GPU's")
        print("printed by the engine")
        return [sample, os.getpid(), torch.get_num_threads()]

    def latencies(self, batches):
        begin = time.process_time()
        while time.process_time() < begin + 0.01:
            pass
        return [time.process_time() - begin]
