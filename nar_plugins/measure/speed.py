"""Sentences a second of several systems, side by side in one process."""
import statistics
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf


class Output(NamedTuple):
    """What a system says of every sentence, in the data's order, and what that took."""

    text: List[str]  # the best hypotheses
    passes: float  # of the decoder, a sentence
    wasted: Optional[float] = None  # part of the computed masks whose tokens were not accepted; None without masks


class System:
    """A checkpoint with ``fairseq-generate``'s flags, loaded as that command loads it.

    Args:
        name: for the table.
        path: checkpoint, or several joined by colons.
        data: binarised data.
        flags: further flags of ``fairseq-generate``.
    """

    def __init__(self, name: str, path: str, data: str, flags: Sequence[str] = ()):
        parser = options.get_generation_parser(default_task="nar_translation")
        args = options.parse_args_and_arch(parser, input_args=[data, "--path", path, *flags])
        self.name, self.cfg = name, convert_namespace_to_omegaconf(args)
        self.cuda = torch.cuda.is_available() and not self.cfg.common.cpu
        self.task = tasks.setup_task(self.cfg.task)
        self.models, _ = checkpoint_utils.load_model_ensemble(utils.split_paths(path), task=self.task)
        for model in self.models:
            if self.cfg.common.fp16:
                model.half()
            if self.cuda:
                model.to("cuda")
            model.prepare_for_inference_(self.cfg)
        self.task.load_dataset(self.cfg.dataset.gen_subset, task_cfg=self.cfg.task)  # as fairseq-generate does
        self.dataset = self.task.dataset(self.cfg.dataset.gen_subset)
        self.generator = self.task.build_generator(self.models, self.cfg.generation)

    def batches(self, size: int, sentences: int = 0) -> List[Dict]:
        """Batches of ``size``: the first ``sentences`` (0: all), in file order for size 1 and else by length."""
        indices = list(range(min(len(self.dataset), sentences or len(self.dataset))))
        if size > 1:
            indices.sort(key=lambda i: self.dataset.src_sizes[i])
        return [self.dataset.collater([self.dataset[i] for i in indices[at : at + size]]) for at in range(0, len(indices), size)]

    def decode(self, batches: List[Dict]) -> List[tuple]:
        """(number of the sentence, its hypotheses) for every sentence; tokens in, tokens out."""
        found = []
        for sample in batches:
            sample = utils.move_to_cuda(sample) if self.cuda else sample
            found += zip(sample["id"].tolist(), self.task.inference_step(self.generator, self.models, sample))
        return found

    def seconds(self, batches: List[Dict]) -> float:
        """Wall-clock of ``decode``."""
        self.wait()
        start = time.perf_counter()
        self.decode(batches)
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def output(self, size: int = 32) -> Output:
        """Text, passes and wasted masks of the whole split."""
        before = self.mask_counts()
        found = dict(self.decode(self.batches(size)))
        masks, tokens = (after - first for after, first in zip(self.mask_counts(), before))
        best = [found[i][0] for i in range(len(self.dataset))]
        # an autoregressive search calls its decoder once a token
        passes = statistics.mean(h.get("steps", len(h["tokens"])) for h in best)
        return Output([self.string(h["tokens"]) for h in best], passes, 1 - tokens / masks if masks else None)

    def mask_counts(self) -> Tuple[int, int]:
        """Masks computed and tokens accepted so far; zeros for a generator that does not count masks."""
        counts = getattr(self.generator, "statistics", {})
        return (counts["masks"], counts["tokens"]) if "masks" in counts else (0, 0)

    def reference(self) -> List[str]:
        """The split's own targets as text."""
        return [self.string(self.dataset.tgt[i]) for i in range(len(self.dataset))]

    def string(self, tokens) -> str:
        return self.task.target_dictionary.string(tokens, self.cfg.common_eval.post_process)


def sentences_per_second(systems: List[System], size: int, sentences: int, repeats: int = 3) -> List[float]:
    """Median speed of every system at one batch size; they take turns, so that a slow minute meets all of them."""
    batches = [system.batches(size, sentences) for system in systems]
    count = sum(len(sample["id"]) for sample in batches[0])
    times = [[] for _ in systems]
    for system, own in zip(systems, batches):
        system.decode(own[:8])  # warm-up
    for _ in range(repeats):
        for system, own, seconds in zip(systems, batches, times):
            seconds.append(system.seconds(own))
    return [count / statistics.median(seconds) for seconds in times]
