"""Masked spans for BANG's pre-training (Qi et al. 2021; the release's first commit, masked_dataset.py).

A sample is S consecutive tokens of text. Its first token is never masked. The others are cut into blocks, and one span
of each block is masked. The encoder reads the masked sample; the decoder predicts the spans, concatenated.
"""

import logging
import re
from fractions import Fraction
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils
from torch import Tensor

from nar_plugins.data.noise import SPAN_STREAM, uniform

logger = logging.getLogger(__name__)

MASKED, KEPT = 0.8, 0.9  # 80 % of the span tokens become the mask, 10 % are kept, 10 % become a random word
NO_WORD = re.compile(r"\[.+\]|<.+>|madeupword\d{4}")  # special and unused symbols of BERT and of fairseq


class Spans(NamedTuple):
    """A sample of S tokens, T of them in spans. All fields but ``source`` are (T,) int64."""

    source: Tensor  # (S,) int64, the encoder's input
    target: Tensor  # the original tokens of the spans, concatenated
    previous: Tensor  # the original token before each target
    position: Tensor  # index of each target in the sample, from 1
    offset: Tensor  # index of each target in its span, from 0


def span_sizes(tokens: int, block: int, ratio: Fraction) -> List[Tuple[int, int, int]]:
    """(first token, tokens, span length) of every block of a sample; the last block may be short.

    With the release's 64 and 0.15 a span has 9 of 64 tokens; a block of fewer than 7 has none.
    """
    ends = [(first, min(block, tokens - first)) for first in range(1, tokens, block)]
    return [(first, size, int(ratio * size)) for first, size in ends]


def hidden_tokens(sizes: np.ndarray, block: int, ratio: Fraction) -> np.ndarray:
    """The number of tokens in spans, (n,) int64, for samples of ``sizes`` (n,) tokens."""
    distinct, inverse = np.unique(sizes, return_inverse=True)
    counts = [sum(hidden for *_, hidden in span_sizes(int(size), block, ratio)) for size in distinct]
    return np.array(counts, dtype=np.int64)[inverse]


def mask_spans(
    tokens: Tensor, draws: Tensor, blocks: List[Tuple[int, int, int]], mask: int, candidates: Tensor
) -> Spans:
    """Mask one span of every block.

    Args:
        tokens: (S,) int64, the sample.
        draws: (number of blocks + 2 T,) float64 in [0, 1): the start of each span; for each target, whether it is
            masked, kept or replaced; and the replacement.
        blocks: as ``span_sizes`` returns them, without blocks that have no span.
        candidates: (n,) int64, the ids that replacements are drawn from.
    """
    starts, token_draws = draws[: len(blocks)].tolist(), draws[len(blocks) :].view(2, -1)
    positions, offsets = [], []
    for u, (first, size, hidden) in zip(starts, blocks):
        begin = first + int(u * (size - hidden + 1))
        positions.append(torch.arange(begin, begin + hidden))
        offsets.append(torch.arange(hidden))
    position, offset = torch.cat(positions), torch.cat(offsets)
    target = tokens[position]
    random = candidates[(token_draws[1] * len(candidates)).long()]
    noised = torch.where(token_draws[0] < MASKED, mask, torch.where(token_draws[0] < KEPT, target, random))
    return Spans(tokens.scatter(0, position, noised), target, tokens[position - 1], position, offset)


def ordinary_words(dictionary: Dictionary, mask: int) -> Tensor:
    """The ids (n,) int64 of the dictionary's words, without special, unused and filler symbols.

    In BERT's uncased vocabulary they start at 999, as in the release.
    """
    first = dictionary.nspecial
    words = [i for i, s in enumerate(dictionary.symbols) if i >= first and i != mask and not NO_WORD.fullmatch(s)]
    if not words:
        raise ValueError("the dictionary has no words: was it cut short?")
    return torch.tensor(words)


class SpanMaskedDataset(FairseqDataset):
    """Samples of text with masked spans; the noise is a pure function of (seed, epoch, index).

    Args:
        samples: token ids by sample (fairseq's ``TokenBlockDataset``); samples too short for a span are
            skipped, and a warning counts them.
        dictionary: its words replace span tokens at random; its pad symbol pads batches.
        mask: id of the mask symbol.
        block: tokens per block.
        ratio: share of a block that its span has, rounded down to tokens.
        epochs: False for validation: the same spans in every epoch, and batches in the order of the text.
        name: the split's name in messages.

    Raises:
        ValueError: no sample is long enough for a span.
    """

    def __init__(
        self,
        samples,
        dictionary: Dictionary,
        mask: int,
        seed: int,
        block: int = 64,
        ratio: str = "0.15",
        epochs: bool = True,
        name: str = "train",
    ):
        self.samples, self.mask, self.pad, self.seed, self.epochs = samples, mask, dictionary.pad(), seed, epochs
        self.block, self.ratio, self.epoch = block, Fraction(str(ratio)), 1
        self.candidates = ordinary_words(dictionary, mask)
        sizes = np.asarray(samples.sizes).astype(np.int64)
        hidden = hidden_tokens(sizes, block, self.ratio)
        self.kept = np.flatnonzero(hidden)
        if not len(self.kept):
            least = next(n for n in range(1, block + 1) if int(self.ratio * n)) + 1
            raise ValueError(
                f"{name}: no sample is long enough to mask (the longest has {sizes.max(initial=0)} tokens, a span "
                f"needs {least}): give more text, or longer samples (--tokens-per-sample)"
            )
        if len(self.kept) < len(sizes):
            logger.warning(
                f"{name}: {len(sizes) - len(self.kept)} of {len(sizes)} samples are too short to mask: skipped"
            )
        self.sizes, self.tgt_sizes = sizes[self.kept], hidden[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Dict:
        tokens = self.samples[int(self.kept[index])].long()
        blocks = [b for b in span_sizes(len(tokens), self.block, self.ratio) if b[2]]
        draws = len(blocks) + 2 * sum(hidden for *_, hidden in blocks)
        stream = SPAN_STREAM + (self.epoch if self.epochs else 0)
        uniforms = uniform(self.seed, stream, torch.tensor([index]), draws)[0]
        return {"id": index, "spans": mask_spans(tokens, uniforms, blocks, self.mask, self.candidates)}

    def collater(self, samples: List[Dict]) -> Dict:
        """fairseq's batch, padded on the right.

        Returns:
            ``net_input`` has src_tokens (B, S), src_lengths (B,) and, (B, T) int64 each, prev_output_tokens, positions
            (the position id of prev_output_tokens, which is pad + the target's index in the source; the mask that
            predicts the target has one more; pad on padding) and target_idx (the target's index in its span; 0 on
            padding). ``target`` is (B, T), ``ntokens`` the number of targets.
        """
        if not samples:
            return {}
        spans = [sample["spans"] for sample in samples]

        def padded(values, pad: int) -> Tensor:
            return data_utils.collate_tokens(list(values), pad)

        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(len(s.target) for s in spans),
            "net_input": {
                "src_tokens": padded((s.source for s in spans), self.pad),
                "src_lengths": torch.tensor([len(s.source) for s in spans]),
                "prev_output_tokens": padded((s.previous for s in spans), self.pad),
                "positions": padded((s.position + self.pad for s in spans), self.pad),
                "target_idx": padded((s.offset for s in spans), 0),
            },
            "target": padded((s.target for s in spans), self.pad),
        }

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    # -- fairseq's batching --------------------------------------------------------------------------------------------

    def num_tokens(self, index) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """All indices by size; ties are shuffled in training by NumPy's generator, which fairseq seeds by epoch."""
        order = np.random.permutation(len(self)) if self.epochs else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="mergesort")]

    def filter_indices_by_size(self, indices, max_sizes):
        """Split indices into those that fit and the others; decoder positions are source positions: one limit counts.

        Raises:
            ValueError: no sample fits.
        """
        limit = min(max_sizes) if isinstance(max_sizes, (tuple, list)) else max_sizes
        fit = self.sizes[indices] <= limit
        if not fit.any():
            raise ValueError(
                f"no sample fits {limit} tokens, the shortest has {self.sizes[indices].min()}: give a larger "
                "--max-tokens, or smaller samples (--tokens-per-sample)"
            )
        return indices[fit], indices[~fit].tolist()
