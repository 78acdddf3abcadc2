"""Decoding speed of several systems, side by side in one process."""

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

from nar_plugins.checkpoint_io.read import prepare_models
from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.models.flags import flag

REFUSED = {  # options of fairseq-generate that have no meaning here, and what to do instead
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
# the options that all systems must have in common
SHARED = (
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
)


class Output(NamedTuple):
    """A system's outputs in the data's order, and their cost."""

    text: List[str]  # the best hypothesis of every sentence
    passes: float  # mean decoder passes per sentence
    wasted: Optional[float] = None  # share of the computed masks whose tokens were rejected; None without masks


class System:
    """A checkpoint with flags of ``fairseq-generate``, loaded as that command loads it.

    Args:
        name: the system's name in the table.
        path: a checkpoint, or several joined by colons (an ensemble).
        data: folder of binarised data.
        flags: further flags of ``fairseq-generate``.
    """

    def __init__(self, name: str, path: str, data: str, flags: Sequence[str] = ()):
        self.name, args = name, parse_flags(path, data, flags)
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
        self.cuda = prepare_models(self.models, cfg)
        self.task.load_dataset(cfg.dataset.gen_subset, task_cfg=cfg.task)  # as fairseq-generate does
        self.dataset = self.task.dataset(cfg.dataset.gen_subset)
        self.generator = self.task.build_generator(self.models, cfg.generation)
        self.prefix = cfg.generation.prefix_size
        detokenizers = self.task.build_bpe(cfg.bpe), self.task.build_tokenizer(cfg.tokenizer)
        self.detokenizers = [detokenizer for detokenizer in detokenizers if detokenizer is not None]
        # the task infers languages that are not given
        languages = {"source_lang": self.task.cfg.source_lang, "target_lang": self.task.cfg.target_lang}
        self.settings = {**{option: getattr(args, option, None) for option in SHARED}, **languages}
        if args.truncate_source:
            self.settings["truncate_source"] = f"to --max-source-positions {self.task.cfg.max_source_positions}"

    def batches(self, size: int, sentences: int = 0) -> List[Dict]:
        """Batches of the first ``sentences`` (0: all), in file order for size 1, by length for larger ones."""
        indices = list(range(min(len(self.dataset), sentences or len(self.dataset))))
        if size > 1:
            indices.sort(key=lambda i: self.dataset.src_sizes[i])
        return [
            self.dataset.collater([self.dataset[i] for i in indices[start : start + size]])
            for start in range(0, len(indices), size)
        ]

    def decode(self, batches: List[Dict]) -> List[tuple]:
        """(sentence index, its hypotheses) for every sentence; the random seed is that of ``fairseq-generate``.

        Raises:
            ValueError: the decoding failed, with the system's name and the batch.
        """
        if self.cfg.common.seed is not None and not self.cfg.generation.no_seed_provided:
            utils.set_torch_seed(self.cfg.common.seed)
        decoded = []
        for sample in batches:
            sentences = sample["id"].tolist()
            try:
                sample = utils.move_to_cuda(sample) if self.cuda else sample
                prefix = sample["target"][:, : self.prefix] if self.prefix else None
                hypotheses = self.task.inference_step(self.generator, self.models, sample, prefix_tokens=prefix)
            except Exception as error:  # of any kind: the message names the system, whose error ends the comparison
                more = f" and {len(sentences) - 1} more" * (len(sentences) > 1)
                raise ValueError(
                    f"--system {self.name}, sentence {sentences[0]}{more}: {in_one_line(error)}"
                ) from error
            decoded += zip(sentences, hypotheses)
        return decoded

    def seconds(self, batches: List[Dict]) -> float:
        """Wall-clock time of ``decode``."""
        self.synchronize()
        start = time.perf_counter()
        self.decode(batches)
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def output(self, size: int = 32) -> Output:
        """Text, mean passes and wasted masks of the whole split."""
        before = self.mask_counts()
        decoded = dict(self.decode(self.batches(size)))
        masks, tokens = (count - earlier for count, earlier in zip(self.mask_counts(), before))
        best = [decoded[i][0] for i in range(len(self.dataset))]
        # autoregressive search calls the decoder once per token
        passes = statistics.mean(hypothesis.get("steps", len(hypothesis["tokens"])) for hypothesis in best)
        text = [self.string(hypothesis["tokens"]) for hypothesis in best]
        return Output(text, passes, 1 - tokens / masks if masks else None)

    def mask_counts(self) -> Tuple[int, int]:
        """Masks computed and tokens accepted so far; zeros if the generator does not count masks."""
        counts = getattr(self.generator, "statistics", None)
        return (counts.mask_positions, counts.tokens) if hasattr(counts, "mask_positions") else (0, 0)

    def reference(self) -> List[str]:
        """The split's targets as text, with a placeholder for unknown words that no hypothesis matches."""
        return [self.string(self.dataset.tgt[i], unk_string=UNKNOWN_IN_REFERENCE) for i in range(len(self.dataset))]

    def source(self, index: int) -> str:
        """The text of a sentence's source, without sub-words."""
        return self.string(self.dataset.src[index], self.task.source_dictionary)

    def string(self, tokens, dictionary=None, **kwargs) -> str:
        """The text of tokens as in the D- and T- lines of ``fairseq-generate``.

        Args:
            dictionary: of the tokens; None: the target's.
        """
        ignored = getattr(self.generator, "symbols_to_strip_from_output", None)
        dictionary, sub_words = dictionary or self.task.target_dictionary, self.cfg.common_eval.post_process
        text = dictionary.string(tokens, sub_words, extra_symbols_to_ignore=ignored, **kwargs)
        for detokenizer in self.detokenizers:
            text = detokenizer.decode(text)
        return text


def parse_flags(path: str, data: str, flags: Sequence[str]) -> Namespace:
    """Parse flags of ``fairseq-generate``.

    Raises:
        ValueError: ``fairseq-generate`` would refuse them, or they have no meaning in a benchmark.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = options.get_generation_parser(default_task="nar_translation")
    parser.error = refuse  # argparse would print the usage and exit
    args = options.parse_args_and_arch(parser, input_args=[data, "--path", path, *flags])
    for name, hint in REFUSED.items():
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{flag(name)}: {hint}")
    if args.path != path:
        raise ValueError(f"--path {args.path}: the checkpoint stands before the flags")
    return args


def load_systems(data: str, systems: Sequence[Sequence[str]], flags: str) -> List[System]:
    """Load the systems of a comparison.

    Args:
        systems: (name, checkpoint, flags of ``fairseq-generate`` in one string) of each system.
        flags: flags of all systems, in one string.

    Raises:
        ValueError: a system cannot be loaded, or the systems would not decode the same text; the system is named.
    """
    arguments, loaded = [], []
    for name, path, system_flags in systems:
        with errors_named(name):
            arguments.append((name, path, data, [*shlex.split(flags), *shlex.split(system_flags)]))
            parse_flags(*arguments[-1][1:])  # all flags are checked before the first checkpoint is loaded
    for system_arguments in arguments:
        with errors_named(system_arguments[0]):
            loaded.append(System(*system_arguments))
    check_comparable(loaded)
    return loaded


@contextmanager
def errors_named(system: str):
    """Turn any error into a ValueError with the system's name: fairseq's loading raises errors of many classes."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"--system {system}: {in_one_line(error)}") from error


def check_comparable(systems: Sequence[System]) -> None:
    """Raise when a system decodes other sentences than the first, or turns tokens into text in another way."""
    first = systems[0]
    for system in systems[1:]:
        for name in SHARED:
            expected, actual = first.settings[name], system.settings[name]
            if expected != actual:
                option = flag("remove_bpe" if name == "post_process" else name)
                raise ValueError(
                    f"--system {system.name} has {option} {actual}, {first.name} has {expected}: all systems are "
                    "compared on the same text, so give it to all, in --flags"
                )


def in_one_line(error: Exception) -> str:
    """The message of an error on one line; the type is prepended unless it is a ValueError, written for users."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"


def sentences_per_second(systems: List[System], size: int, sentences: int, repeats: int = 3) -> List[float]:
    """Median speed of every system at one batch size; the systems alternate, so that slow phases affect all."""
    batches = [system.batches(size, sentences) for system in systems]
    count = sum(len(sample["id"]) for sample in batches[0])
    times = [[] for _ in systems]
    for system, system_batches in zip(systems, batches):
        system.decode(system_batches[:8])  # warm-up
    for _ in range(repeats):
        for system, system_batches, seconds in zip(systems, batches, times):
            seconds.append(system.seconds(system_batches))
    return [count / statistics.median(seconds) for seconds in times]
