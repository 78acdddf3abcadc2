"""The systems of a comparison: checkpoints with flags of ``fairseq-generate``, and what they output."""

import statistics
import time
from argparse import Namespace
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq import tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.generators.beam import BeamGenerator
from nar_plugins.hub.decoder import Decoder, load_models
from nar_plugins.hub.errors import in_one_line
from nar_plugins.hub.options import parse
from nar_plugins.hub.text import Text
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
    tokens: float = 0.0  # mean tokens per sentence, with </s>

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the decoder adds to a sentence on average."""
        return self.tokens / self.passes if self.passes else 0.0


class System:
    """A checkpoint with flags of ``fairseq-generate``, loaded as that command loads it.

    Args:
        name: the system's name in the table.
        path: a checkpoint, or several joined by colons (an ensemble).
        data: folder of binarised data.
        flags: further flags of ``fairseq-generate``.
        threads: of another engine; None: as many as PyTorch has.

    Attributes:
        parallel: the data are those of a parallel model, which the task is not told by building one.
    """

    parallel = False

    def __init__(self, name: str, path: str, data: str, flags: Sequence[str] = (), threads: Optional[int] = None):
        self.threads = torch.get_num_threads() if threads is None else threads
        self.name, self.arguments = name, self.parse(path, data, flags)
        args = self.arguments
        self.cfg = cfg = convert_namespace_to_omegaconf(args)
        self.task = tasks.setup_task(cfg.task)
        self.models = self.load_models(path)
        self.task.load_dataset(cfg.dataset.gen_subset, task_cfg=cfg.task)  # as fairseq-generate does
        self.dataset = self.task.dataset(cfg.dataset.gen_subset)
        self.start()
        self.prefix = cfg.generation.prefix_size
        self.text = Text(cfg, self.task)
        # the task infers languages that are not given
        languages = {"source_lang": self.task.cfg.source_lang, "target_lang": self.task.cfg.target_lang}
        self.settings = {**{option: getattr(args, option, None) for option in SHARED}, **languages}
        if args.truncate_source:
            self.settings["truncate_source"] = f"to --max-source-positions {self.task.cfg.max_source_positions}"

    @classmethod
    def parse(cls, path: str, data: str, flags: Sequence[str]) -> Namespace:
        """The flags, parsed.

        Raises:
            ValueError: see ``parse_flags``.
        """
        return parse_flags(path, data, flags)

    def load_models(self, path: str) -> list:
        """The models of a checkpoint, or of an ensemble's."""
        return load_models(self.cfg, self.task)

    def start(self) -> None:
        """Make the models ready; sets ``cuda``, ``generator`` and ``autoregressive``."""
        self.decoder = Decoder(self.cfg, self.task, self.models)
        self.cuda, self.generator = self.decoder.cuda, self.decoder.generator
        self.generator.give_weights_back()  # nothing else reads the models
        self.autoregressive = isinstance(self.generator, BeamGenerator)

    def close(self) -> None:
        """Give back what does not end by itself."""

    def weight_bytes(self) -> int:
        """The size of the weights in the type that they are decoded in; of an ensemble's all."""
        return sum(prepared.weight_bytes() for prepared in self.generator.prepared)

    def max_positions(self) -> List[tuple]:
        """The longest source and target of every model."""
        return self.decoder.max_positions()

    def check_lengths(self) -> None:
        """Raise where a source has more tokens than the models have positions, as ``fairseq-generate`` does."""
        positions = utils.resolve_max_positions(self.task.max_positions(), *self.max_positions())
        limit, sizes = self.task.max_source_tokens(positions), self.dataset.src_sizes
        longest = int(sizes.argmax())
        if limit is not None and sizes[longest] > limit:
            raise ValueError(
                f"{int((sizes > limit).sum())} of {len(sizes)} sources are longer than the {limit} source positions, "
                f"sentence {longest} has {sizes[longest]} tokens: take them out of the data, or give all systems "
                f'--flags "--truncate-source --max-source-positions {limit}"'
            )

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
        """(sentence index, its hypotheses) for every sentence.

        Raises:
            ValueError: see ``decoded``.
        """
        return [pair for pairs in self.decoded(batches) for pair in pairs]

    def decoded(self, batches: List[Dict]) -> Iterator[List[tuple]]:
        """``decode``, batch by batch; the random seed is that of ``fairseq-generate``.

        Raises:
            ValueError: the decoding failed, with the batch.
        """
        if self.cfg.common.seed is not None and not self.cfg.generation.no_seed_provided:
            utils.set_torch_seed(self.cfg.common.seed)
        for sample in batches:
            sentences = sample["id"].tolist()
            try:
                hypotheses = self.hypotheses(sample)
            except Exception as error:  # of any kind: it ends the system's row and not the comparison
                more = f" and {len(sentences) - 1} more" * (len(sentences) > 1)
                raise ValueError(f"sentence {sentences[0]}{more}: {in_one_line(error)}") from error
            yield list(zip(sentences, hypotheses))

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        """fairseq's hypotheses of the sentences of a batch."""
        return self.decoder(sample, sample["target"][:, : self.prefix] if self.prefix else None)

    def latencies(self, batches: List[Dict]) -> List[float]:
        """Wall-clock seconds of every batch."""
        seconds, start = [], self.clock()
        for _ in self.decoded(batches):
            end = self.clock()
            seconds.append(end - start)
            start = end
        return seconds

    def clock(self) -> float:
        """Seconds, when the device has done its work."""
        self.synchronize()
        return time.perf_counter()

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
        length = statistics.mean(len(hypothesis["tokens"]) for hypothesis in best)
        return Output(text, passes, 1 - tokens / masks if masks else None, length)

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
        return self.text.decode(tokens, dictionary, ignored, **kwargs)


def parse_flags(path: str, data: str, flags: Sequence[str]) -> Namespace:
    """Parse flags of ``fairseq-generate``.

    Raises:
        ValueError: ``fairseq-generate`` would refuse them, or they have no meaning in a benchmark.
    """
    args, parser = parse([data, "--path", path, *flags])
    for name, hint in REFUSED.items():
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{flag(name)}: {hint}")
    if args.path != path:
        raise ValueError(f"--path {args.path}: the checkpoint stands before the flags")
    return args
