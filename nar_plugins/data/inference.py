"""The lines that ``fairseq-interactive`` reads and the hub is given: every one gets an answer, however long it is."""

import logging
from typing import Dict, Optional

import numpy as np
import torch
from fairseq.data import LanguagePairDataset
from torch import Tensor

logger = logging.getLogger(__name__)

ROWS = (
    "id",
    "target",
    "constraints",
    "src_tokens",
    "src_lengths",
    "prev_output_tokens",
)  # what a batch has once a sentence


class InferenceDataset(LanguagePairDataset):
    """Sources without targets, some of which may be longer than can be translated.

    fairseq raises for such a line, and the lines around it get no translation either. Here its row of a batch keeps its
    tokens,
    which fairseq prints, but has the length 0, which no other row has: it is not for the model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.src_sizes = self.sizes = np.array(self.src_sizes, dtype=np.int64)
        self.too_long = frozenset()

    def bound(self, positions: Optional[int], max_tokens: Optional[int], cut: bool, skip: bool, first: int = 0) -> None:
        """Cut the sources that are too long, as ``--truncate-source`` does, or mark them; the log says which.

        Args:
            positions: of the source, which the models have. max_tokens: those of a batch. None: as many as you like.
            cut: ``--truncate-source``.
            skip: ``--skip-invalid-size-inputs-valid-test``: what the positions are too few for is left to fairseq.
            first: lines before these, for the log.
        """
        unbounded = np.iinfo(np.int64).max
        positions, most = (unbounded if limit is None else limit for limit in (positions, max_tokens))
        longest = min(positions, most)
        marked = []
        for i in (self.src_sizes > longest).nonzero()[0].tolist():
            size = int(self.src_sizes[i])
            said = f"line {first + i + 1} (H-{first + i}) has {size} tokens"
            if cut:
                logger.warning(f"{said}: cut to {longest}")
            elif size <= positions:
                marked.append(i)
                logger.warning(
                    f"{said}, more than --max-tokens {most}: its translation is empty; raise it, or cut the line "
                    "with --truncate-source"
                )
            elif not skip:
                marked.append(i)
                logger.warning(
                    f"{said}, more than the {positions} source positions: its translation is empty; cut it "
                    "with --truncate-source"
                )
        if cut:
            self.src = [tokens if len(tokens) <= longest else truncated(tokens, longest) for tokens in self.src]
        self.too_long = frozenset(marked)
        np.minimum(self.src_sizes, longest, out=self.src_sizes, where=np.isin(np.arange(len(self)), marked) | cut)

    def collater(self, samples, pad_to_length=None) -> Dict:
        """fairseq's batch, with the length 0 for the sources that are too long."""
        batch = super().collater(samples, pad_to_length)
        if self.too_long and batch:
            marked = torch.tensor([i in self.too_long for i in batch["id"].tolist()])
            batch["net_input"]["src_lengths"].masked_fill_(marked, 0)
        return batch


def truncated(tokens: Tensor, longest: int) -> Tensor:
    """The first tokens of a source and its last, ``</s>``: ``longest`` in all."""
    return torch.cat([tokens[: longest - 1], tokens[-1:]])


def part_of(sample: Dict, rows: Tensor) -> Dict:
    """The batch of some sentences (n,) of a batch padded on the right, no wider than they are."""
    part = {**sample, **{key: sample[key][rows] for key in ROWS if sample.get(key) is not None}}
    inputs = sample["net_input"]
    part["net_input"] = {**inputs, **{key: inputs[key][rows] for key in ROWS if inputs.get(key) is not None}}
    longest = int(part["net_input"]["src_lengths"].max())
    part["net_input"]["src_tokens"] = part["net_input"]["src_tokens"][:, :longest]
    return part
