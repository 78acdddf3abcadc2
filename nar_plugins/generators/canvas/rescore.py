"""An autoregressive model orders the candidates of a parallel one (Gu et al. 2018, section 4.2: noisy parallel
decoding).
"""

from argparse import Namespace

import torch
from torch import Tensor

from nar_plugins.modules.linear import CPU_ROWS
from nar_plugins.modules.teacher_forcing import check_forced, encode_source, token_lprobs


class Rescorer:
    """Scores candidates in one teacher-forced pass; equal candidates are scored once.

    A candidate is scored as it is printed: without a ``</s>`` inside it and with one at its end, so that a truncated
    translation gets a low score. ``--lenpen`` and ``--unnormalized`` apply as they do to the generator's scores.

    Args:
        model: an AR model (``checkpoint_io.teachers.load_teacher``).
        pad, eos, mask: indices in the target dictionary.
        options: fairseq's ``GenerationConfig``.

    Raises:
        ValueError: the model cannot score given targets.
    """

    def __init__(self, model, pad: int, eos: int, mask: int, options: Namespace):
        check_forced(model, "--rescorer")
        self.model, self.pad, self.eos, self.mask, self.options = model, pad, eos, mask, options
        self.candidates = self.scored = 0

    def __call__(self, source: Tensor, tokens: Tensor, lengths: Tensor, sentences: Tensor) -> Tensor:
        """Scores (R,) of the candidates.

        Args:
            source: (B, S) int64. tokens: (R, T) int64. lengths: (R,) int64. sentences: (R,) int64, the sentence of
                each candidate.

        Raises:
            ValueError: a source or a candidate is longer than the model's positions.
        """
        text, sizes = self.printed(tokens, lengths)
        longest = self.model.max_decoder_positions()
        if text.size(1) > longest:
            raise ValueError(
                f"a candidate of {text.size(1)} tokens is longer than the rescorer's {longest} positions: "
                "give --max-len-a and --max-len-b"
            )
        candidates = torch.cat([sentences.unsqueeze(1), text], 1)
        unique, inverse = torch.unique(candidates, dim=0, return_inverse=True)
        self.candidates, self.scored = self.candidates + candidates.size(0), self.scored + unique.size(0)

        sentences, text = unique[:, 0], unique[:, 1:]
        real = text.ne(self.pad)
        encoded = encode_source(self.model, source, self.pad, "rescorer")
        size = CPU_ROWS if source.device.type == "cpu" else max(1, text.size(0))
        lprobs = torch.cat(
            [
                token_lprobs(self.model, encoded, *chunk, self.pad, self.eos, self.mask)
                for chunk in zip(sentences.split(size), text.split(size))
            ]
        )
        score = lprobs.sum(1)
        if not self.options.unnormalized:
            score = score / real.sum(1) ** self.options.lenpen
        return score[inverse]

    def printed(self, tokens: Tensor, lengths: Tensor) -> tuple:
        """The candidates with ``</s>`` at the end only: (R, T + 1) padded on the right, and their lengths (R,)."""
        positions = torch.arange(tokens.size(1), device=tokens.device)
        kept = (positions < lengths.unsqueeze(1)) & tokens.ne(self.eos) & tokens.ne(self.pad)
        sizes = kept.sum(1)
        order = (~kept).long().argsort(dim=1, stable=True)
        text = tokens.gather(1, order).masked_fill(positions >= sizes.unsqueeze(1), self.pad)
        text = torch.nn.functional.pad(text, (0, 1), value=self.pad)
        text = text.scatter(1, sizes.unsqueeze(1), self.eos)
        return text[:, : int(sizes.max()) + 1], sizes + 1
