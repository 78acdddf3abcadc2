"""Drafts from a text: the source, or the translation of a non-autoregressive model."""

from argparse import Namespace
from dataclasses import fields
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.generators import registry
from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, Verified
from nar_plugins.generators.options import generation_options
from nar_plugins.modules.teacher_forcing import check_source


class TextDrafter(Drafter):
    """Goes on where a text goes on: after the place where the last tokens stand in it, the nearest of the best matches.

    Without any match it is the same position of the text. (Sun et al. 2021, "aggressive decoding", and prompt lookup.)
    A subclass's ``begin`` says which texts: (B, S) int64, padded on the right.
    """

    matched = 3  # tokens that are compared

    def __init__(self, pad: int):
        self.pad = pad

    def draft(self, verified: Verified, count: int, state: Tensor) -> Drafts:
        text, lengths = state[verified.rows], verified.lengths.unsqueeze(1)
        places = torch.arange(text.size(1), device=text.device)
        matching = torch.ones_like(text, dtype=torch.bool)
        score = -(places - (lengths - 1)).abs()  # (b, S): nearness decides between equal matches
        for back in range(self.matched):
            index = lengths - 1 - back
            token = verified.tokens[verified.rows].gather(1, index.clamp(min=0)).masked_fill(index < 0, self.pad)
            shifted = F.pad(text, (back, 0), value=self.pad)[:, : text.size(1)]
            matching = matching & shifted.eq(token) & token.ne(self.pad)
            score = score + matching * (text.size(1) + verified.tokens.size(1))
        following = score.argmax(1, keepdim=True) + 1 + torch.arange(count, device=text.device)
        beyond = following >= text.size(1)
        return Drafts(text.gather(1, following.clamp(max=text.size(1) - 1)).masked_fill(beyond, self.pad))


class CopyDrafter(TextDrafter):
    """The source is the text.

    Args:
        models: their source dictionaries must have the target's symbols.
        dictionary: the target's.
    """

    def __init__(self, models, dictionary):
        super().__init__(dictionary.pad())
        for model in models:
            check_same_symbols(
                model.encoder.dictionary.symbols, dictionary.symbols, "--drafter copy: the source dictionary"
            )

    def begin(self, sample: Dict, encoded: List[Dict]) -> Tensor:
        return sample["net_input"]["src_tokens"]


class ModelDrafter(TextDrafter):
    """A non-autoregressive model's translation is the text (Xia et al. 2023, "speculative decoding"), made once a
    batch.

    Where the verifier leaves the translation and comes back to it, the match of the last tokens finds the place, so the
    model is not asked again.

    Args:
        model: a ``cmlm`` or a ``nat`` (see ``load_drafter``); it decodes as its own generator does by
            itself, a ``cmlm`` with one length and ``--drafter-iterations`` passes.
        dictionary: the target's.
        mask: index of ``<mask>``.
        config: the options of ``blockwise``.
    """

    def __init__(self, model, dictionary, mask: int, config):
        super().__init__(dictionary.pad())
        name = model.generators[0]
        own = Namespace(**{f.name: f.default for f in fields(registry.CONFIGS[name]) if not f.name.startswith("_")})
        own.decode_dtype = config.decode_dtype
        if hasattr(own, "iterations"):
            own.iterations, own.length_beam = config.drafter_iterations, 1
        elif config.drafter_iterations != 1:
            raise ValueError(
                f"--drafter-iterations {config.drafter_iterations}: a {type(model).__name__} drafts in one pass"
            )
        options = generation_options(Namespace(beam=1))
        self.generator = registry.GENERATORS[name]([model], dictionary, own, options, mask)

    def begin(self, sample: Dict, encoded: List[Dict]) -> Tensor:
        source = sample["net_input"]["src_tokens"]
        for model in self.generator.models:
            check_source(model.max_positions()[0], source, self.pad, "drafter")
            model.to(source.device)
        found = [hypos[0]["tokens"] for hypos in self.generator.generate(self.generator.models, sample)]
        text = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=self.pad)
        return text.to(source.device)
