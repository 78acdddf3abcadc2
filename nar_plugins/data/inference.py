"""Sources without targets, as ``fairseq-interactive`` and the hub read them: every line gets an output line."""

import logging
from typing import Dict, Optional

import numpy as np
import torch
from fairseq.data import LanguagePairDataset
from torch import Tensor

logger = logging.getLogger(__name__)

PER_SENTENCE = (
    "id",
    "target",
    "constraints",
    "src_tokens",
    "src_lengths",
    "prev_output_tokens",
)  # the entries of a batch with one row per sentence


class InferenceDataset(LanguagePairDataset):
    """Sources without targets, some of which may be too long for the model.

    fairseq raises for such a line, and then translates none of the lines. Here the batch keeps the tokens, which
    fairseq prints, and marks the sentence by the length 0: the model does not see it, and its output is empty.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.src_sizes = self.sizes = np.array(self.src_sizes, dtype=np.int64)
        self.too_long = frozenset()

    def bound(self, positions: Optional[int], max_tokens: Optional[int], cut: bool, skip: bool, first: int = 0) -> None:
        """Truncate the sources that are too long, or mark them; the log names each.

        Args:
            positions: source positions of the models; None: no limit.
            max_tokens: tokens of a batch; None: no limit.
            cut: ``--truncate-source``: truncate instead of marking.
            skip: ``--skip-invalid-size-inputs-valid-test``: leave sources beyond ``positions`` to fairseq.
            first: number of lines read before, for the log.
        """
        unbounded = np.iinfo(np.int64).max
        positions, max_tokens = (unbounded if limit is None else limit for limit in (positions, max_tokens))
        longest = min(positions, max_tokens)
        marked = []
        for i in (self.src_sizes > longest).nonzero()[0].tolist():
            size = int(self.src_sizes[i])
            message = f"line {first + i + 1} (H-{first + i}) has {size} tokens"
            if cut:
                logger.warning(f"{message}: cut to {longest}")
            elif size <= positions:
                marked.append(i)
                logger.warning(
                    f"{message}, more than --max-tokens {max_tokens}: its translation is empty; raise it, or cut the "
                    "line with --truncate-source"
                )
            elif not skip:
                marked.append(i)
                logger.warning(
                    f"{message}, more than the {positions} source positions: its translation is empty; cut it "
                    "with --truncate-source"
                )
        if cut:
            self.src = [tokens if len(tokens) <= longest else truncated(tokens, longest) for tokens in self.src]
        self.too_long = frozenset(marked)
        np.minimum(self.src_sizes, longest, out=self.src_sizes, where=np.isin(np.arange(len(self)), marked) | cut)

    def collater(self, samples, pad_to_length=None) -> Dict:
        """fairseq's batch, with length 0 for the sources that are too long."""
        batch = super().collater(samples, pad_to_length)
        if self.too_long and batch:
            marked = torch.tensor([i in self.too_long for i in batch["id"].tolist()])
            batch["net_input"]["src_lengths"].masked_fill_(marked, 0)
        return batch


def truncated(tokens: Tensor, longest: int) -> Tensor:
    """The first ``longest`` - 1 tokens of a source, and its ``</s>``."""
    return torch.cat([tokens[: longest - 1], tokens[-1:]])


def select_sentences(sample: Dict, sentences: Tensor, pad: int) -> Dict:
    """The batch of some sentences of a batch that is padded on the right, cut to the longest of them.

    Args:
        sentences: (n,) int64, their indices in the batch. pad: index of ``<pad>``, which may be a word of a text, too.
    """

    def select(entries: Dict) -> Dict:
        return {**entries, **{key: entries[key][sentences] for key in PER_SENTENCE if entries.get(key) is not None}}

    selected = select(sample)
    selected["net_input"] = inputs = select(sample["net_input"])
    last = inputs["src_tokens"].ne(pad).any(0).nonzero().max()  # lengths do not count <pad> where it is a word
    inputs["src_tokens"] = inputs["src_tokens"][:, : int(last) + 1]
    return selected
