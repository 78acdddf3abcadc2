"""Sentences a second of several systems, side by side in one process."""

import ast
import shlex
import statistics
import time
from argparse import Namespace
from contextlib import contextmanager
from typing import Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from nar_plugins.checkpoint_io.read import place
from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.models.flags import flag

REFUSED = {  # options of fairseq-generate that mean nothing here, and what to do
    "batch_size": "nar-bench makes its own batches: give it --batch-sizes",
    "max_tokens": "nar-bench makes its own batches: give it --batch-sizes",
    "skip_invalid_size_inputs_valid_test": "nar-bench scores every sentence: take long ones out of the data",
    "num_shards": "nar-bench decodes every sentence",
    "shard_id": "nar-bench decodes every sentence",
    "results_path": "nar-bench writes no such files: give it --output",
    "lm_path": "nar-bench loads no language model",
    "replace_unk": "nar-bench replaces no words",
    "score_reference": "nar-bench scores what a system says",
}
ALIKE = (
    "gen_subset",
    "prefix_size",
    "source_lang",
    "target_lang",
    "post_process",
    "bpe",
    "tokenizer",
    "cpu",
    "truncate_source",
    "dataset_impl",
)  # in all rows


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
        self.name, args = name, parsed(path, data, flags)
        self.cfg = cfg = convert_namespace_to_omegaconf(args)
        self.task = tasks.setup_task(cfg.task)
        self.models, _ = checkpoint_utils.load_model_ensemble(
            utils.split_paths(path),
            arg_overrides=ast.literal_eval(cfg.common_eval.model_overrides),
            task=self.task,
            suffix=cfg.checkpoint.checkpoint_suffix,
            strict=cfg.checkpoint.checkpoint_shard_count == 1,
            num_shards=cfg.checkpoint.checkpoint_shard_count,
        )
        self.cuda = place(self.models, cfg)
        self.task.load_dataset(cfg.dataset.gen_subset, task_cfg=cfg.task)  # as fairseq-generate does
        self.dataset = self.task.dataset(cfg.dataset.gen_subset)
        self.generator = self.task.build_generator(self.models, cfg.generation)
        self.prefix = cfg.generation.prefix_size
        self.decoders = [
            d for d in (self.task.build_bpe(cfg.bpe), self.task.build_tokenizer(cfg.tokenizer)) if d is not None
        ]
        languages = {
            "source_lang": self.task.cfg.source_lang,
            "target_lang": self.task.cfg.target_lang,
        }  # inferred or given
        self.settings = {**{name: getattr(args, name, None) for name in ALIKE}, **languages}
        if args.truncate_source:
            self.settings["truncate_source"] = f"to --max-source-positions {self.task.cfg.max_source_positions}"

    def batches(self, size: int, sentences: int = 0) -> List[Dict]:
        """Batches of ``size``: the first ``sentences`` (0: all), in file order for size 1 and else by length."""
        indices = list(range(min(len(self.dataset), sentences or len(self.dataset))))
        if size > 1:
            indices.sort(key=lambda i: self.dataset.src_sizes[i])
        return [
            self.dataset.collater([self.dataset[i] for i in indices[at : at + size]])
            for at in range(0, len(indices), size)
        ]

    def decode(self, batches: List[Dict]) -> List[tuple]:
        """(number of the sentence, its hypotheses) for every sentence; tokens in and out. Seeded as
        ``fairseq-generate`` is.

        Raises:
            ValueError: the decoding failed, with the system's name and the batch.
        """
        if self.cfg.common.seed is not None and not self.cfg.generation.no_seed_provided:
            utils.set_torch_seed(self.cfg.common.seed)
        found = []
        for sample in batches:
            numbers = sample["id"].tolist()
            try:
                sample = utils.move_to_cuda(sample) if self.cuda else sample
                prefix = sample["target"][:, : self.prefix] if self.prefix else None
                found += zip(
                    numbers, self.task.inference_step(self.generator, self.models, sample, prefix_tokens=prefix)
                )
            except (
                Exception
            ) as error:  # anything: the others' minutes are lost with it, so it says at least whose it is
                more = f" and {len(numbers) - 1} more" * (len(numbers) > 1)
                raise ValueError(f"--system {self.name}, sentence {numbers[0]}{more}: {in_one_line(error)}") from error
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
        counts = getattr(self.generator, "statistics", None)
        return (counts.mask_positions, counts.tokens) if hasattr(counts, "mask_positions") else (0, 0)

    def reference(self) -> List[str]:
        """The split's own targets as text, with unknown words that nothing matches."""
        return [self.string(self.dataset.tgt[i], unk_string=UNKNOWN_IN_REFERENCE) for i in range(len(self.dataset))]

    def string(self, tokens, **kwargs) -> str:
        """What ``fairseq-generate`` prints of tokens in its D- and T- lines."""
        ignored = getattr(self.generator, "symbols_to_strip_from_output", None)
        dictionary, pieces = self.task.target_dictionary, self.cfg.common_eval.post_process
        text = dictionary.string(tokens, pieces, extra_symbols_to_ignore=ignored, **kwargs)
        for decoder in self.decoders:
            text = decoder.decode(text)
        return text


def parsed(path: str, data: str, flags: Sequence[str]) -> Namespace:
    """What ``fairseq-generate`` makes of the flags.

    Raises:
        ValueError: it would refuse them, or they mean nothing in a benchmark.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = options.get_generation_parser(default_task="nar_translation")
    parser.error = refuse  # instead of pages of usage and an exit
    args = options.parse_args_and_arch(parser, input_args=[data, "--path", path, *flags])
    for name, why in REFUSED.items():
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{flag(name)}: {why}")
    if args.path != path:
        raise ValueError(f"--path {args.path}: the checkpoint stands before the flags")
    return args


def load_systems(data: str, systems: Sequence[Sequence[str]], flags: str) -> List[System]:
    """The systems, ready to decode.

    Args:
        systems: of each the name, the checkpoint, and its flags of ``fairseq-generate`` in one string.
        flags: those of all systems.

    Raises:
        ValueError: one cannot be loaded, and is named, or they would not decode the same text.
    """
    arguments, loaded = [], []
    for name, path, more in systems:
        with named(name):
            arguments.append((name, path, data, [*shlex.split(flags), *shlex.split(more)]))
            parsed(*arguments[-1][1:])  # all flags are looked at before the first checkpoint is loaded
    for given in arguments:
        with named(given[0]):
            loaded.append(System(*given))
    check_alike(loaded)
    return loaded


@contextmanager
def named(system: str):
    """Turn whatever goes wrong into a ValueError with the system's name: fairseq's loading has no error class."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"--system {system}: {in_one_line(error)}") from error


def check_alike(systems: Sequence[System]) -> None:
    """Raise where a system would decode other sentences than the first, or the same otherwise than it is compared."""
    first = systems[0]
    for system in systems[1:]:
        for name in ALIKE:
            there, here = first.settings[name], system.settings[name]
            if there != here:
                given = flag("remove_bpe" if name == "post_process" else name)
                raise ValueError(
                    f"--system {system.name} has {given} {here}, {first.name} has {there}: all systems are "
                    "compared on the same text, so give it to all, in --flags"
                )


def in_one_line(error: Exception) -> str:
    """The message of an error, with its type where a person did not write it for another."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"


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
