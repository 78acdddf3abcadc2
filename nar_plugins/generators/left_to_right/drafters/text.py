"""Drafts from a text: the source, or the translation by a non-autoregressive model."""

from argparse import Namespace
from dataclasses import fields
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.generators import registry
from nar_plugins.generators.left_to_right.drafters.base import DRAFT, Drafter, Drafts, VerifyResult, fixed_weights
from nar_plugins.generators.options import generation_options
from nar_plugins.modules.teacher_forcing import check_source


class TextDrafter(Drafter):
    """Continues a text after the best match of the last decided tokens; the nearest of equal matches wins.

    Without a match the drafts start at the same position of the text. (Sun et al. 2021, "aggressive decoding", and
    prompt lookup.) A subclass's ``begin`` returns the texts: (B, S) int64, padded on the right.

    Args:
        pad: index of the padding. verifier: the first of the models that decode.
    """

    match_length = 3  # tokens that are compared

    def __init__(self, pad: int, verifier):
        self.pad, self.matching_cost = pad, DRAFT / fixed_weights(verifier.decoder)

    def fixed_cost(self, count: int) -> float:
        return self.matching_cost if count else 0.0

    def draft(self, verified: VerifyResult, count: int, state: Tensor) -> Drafts:
        text, lengths = state[verified.sentences], verified.lengths.unsqueeze(1)
        positions = torch.arange(text.size(1), device=text.device)
        matching = torch.ones_like(text, dtype=torch.bool)
        score = -(positions - (lengths - 1)).abs()  # (b, S): nearness decides between equal matches
        for back in range(self.match_length):
            index = lengths - 1 - back
            token = verified.tokens[verified.sentences].gather(1, index.clamp(min=0)).masked_fill(index < 0, self.pad)
            shifted = F.pad(text, (back, 0), value=self.pad)[:, : text.size(1)]
            matching = matching & shifted.eq(token) & token.ne(self.pad)
            score = score + matching * (text.size(1) + verified.tokens.size(1))
        following = score.argmax(1, keepdim=True) + 1 + torch.arange(count, device=text.device)
        beyond = following >= text.size(1)
        return Drafts(text.gather(1, following.clamp(max=text.size(1) - 1)).masked_fill(beyond, self.pad))


class CopyDrafter(TextDrafter):
    """The source is the text.

    Args:
        models: those that decode; their source dictionaries must have the target's symbols.
        dictionary: the target's.
    """

    def __init__(self, models, dictionary):
        super().__init__(dictionary.pad(), models[0])
        for model in models:
            check_same_symbols(
                model.encoder.dictionary.symbols, dictionary.symbols, "--drafter copy: the source dictionary"
            )

    def begin(self, sample: Dict, encoded: List[Dict]) -> Tensor:
        return sample["net_input"]["src_tokens"]


class ModelDrafter(TextDrafter):
    """The text is the translation by a non-autoregressive model (Xia et al. 2023, "speculative decoding").

    The model decodes once a batch. Where the verifier leaves the translation and returns to it, matching the last
    tokens finds the position again.

    Args:
        model: a ``cmlm``, a ``nat`` or a ``dag`` (see ``load_drafter``). Its default generator decodes it, with the
            default options; a ``cmlm`` with one length and ``--drafter-iterations`` passes.
        dictionary: the target's.
        mask: index of ``<mask>``.
        config: the options of ``blockwise``.
        verifier: the first of the models that decode.
    """

    def __init__(self, model, dictionary, mask: int, config, verifier):
        super().__init__(dictionary.pad(), verifier)
        name = model.generators[0]
        drafter = Namespace(**{f.name: f.default for f in fields(registry.CONFIGS[name]) if not f.name.startswith("_")})
        drafter.decode_dtype = config.decode_dtype
        if hasattr(drafter, "iterations"):
            drafter.iterations, drafter.length_beam = config.drafter_iterations, 1
        elif config.drafter_iterations != 1:
            raise ValueError(
                f"--drafter-iterations {config.drafter_iterations}: a {type(model).__name__} drafts in one pass"
            )
        options = generation_options(Namespace(beam=1))
        self.passes = config.drafter_iterations
        self.generator = registry.GENERATORS[name]([model], dictionary, drafter, options, mask)

    def check(self, sample: Dict) -> None:
        for model in self.generator.models:
            check_source(model.max_positions()[0], sample["net_input"]["src_tokens"], self.pad, "drafter")

    def begin(self, sample: Dict, encoded: List[Dict]) -> Tensor:
        source = sample["net_input"]["src_tokens"]
        for model in self.generator.models:
            model.to(source.device)
        translations = [nbest[0]["tokens"] for nbest in self.generator.generate(self.generator.models, sample)]
        text = torch.nn.utils.rnn.pad_sequence(translations, batch_first=True, padding_value=self.pad)
        return text.to(source.device)

    def begin_cost_per_token(self) -> float:
        """An encoder and a decoder for every pass, as large as the verifier's."""
        return 1.0 + self.passes

    def begin_fixed_cost(self) -> float:
        return 1.0 + self.passes
