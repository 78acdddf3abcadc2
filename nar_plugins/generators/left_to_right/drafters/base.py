"""Where the proposals of blockwise decoding come from. Whatever they are, in exact mode the output is the same."""

from argparse import Namespace
from dataclasses import fields
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.generators import registry
from nar_plugins.generators.options import generation_options
from nar_plugins.modules.attention import allowed_sources
from nar_plugins.modules.linear import linear
from nar_plugins.modules.precision import full
from nar_plugins.modules.teacher_forcing import check_source

MOST = 15  # proposals a call of the drafters that could go on for ever

# What starting the operations of a head, a layer and the rest of a call takes, in weights that are read in that time:
# measured on one CPU core with 2 to 6 layers of 128 to 512 (benchmarks/bench_blockwise.py), not on a GPU.
HEAD, LAYER, CALL = 0.6e6, 1.4e6, 3.6e6


class Verified(NamedTuple):
    """What a call of the decoder decided about b rows, among the B sentences of the batch."""

    rows: Tensor  # (b,) int64: which sentence each is
    tokens: Tensor  # (B, W) int64: the tokens of all sentences so far
    lengths: Tensor  # (b,) int64: how many of them are decided
    features: List[Tensor]  # every model's (b, D) at the last decided position
    greedy: Tensor  # (b, m) int64: the verifier's choice after every token of the block
    accepted: Tensor  # (b,) int64: how many of the block's drafts it confirmed

    def select(self, rows: Tensor) -> "Verified":
        """These rows (n,) of the b only."""
        features = [one[rows] for one in self.features]
        return Verified(
            self.rows[rows], self.tokens, self.lengths[rows], features, self.greedy[rows], self.accepted[rows]
        )


class Drafts(NamedTuple):
    """Proposals for the next tokens."""

    tokens: Tensor  # (b, n) int64
    lprobs: Optional[Tensor] = None  # (b, n) log-probability that each is right if those before it are; None: unknown


def best_of(logits: Tensor) -> Drafts:
    """The best tokens (...) of logits (..., V), and their log-probabilities.

    On a CPU core a log-softmax of all takes a third of the time of ``logsumexp`` for one row, and half for eight.
    """
    lprobs, tokens = full(logits).log_softmax(-1).max(-1)
    return Drafts(tokens, lprobs)


class Drafter:
    """The interface: ``begin`` once a batch, ``ahead`` before and ``draft`` after each call."""

    most = MOST  # the most proposals that it can make
    stops = False  # whether it heeds ``ahead``'s ``worth``

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        """What ``draft`` needs to know of fairseq's batch and of what every model's encoder made of it: its ``state``,
        for all B sentences."""
        return None

    def ahead(self, count: int, worth: float) -> None:
        """Told before a call how many proposals will be wanted after it, and that none pays whose probability to
        survive, the mean over the rows, is below ``worth``."""

    def draft(self, verified: Verified, count: int, state: Any) -> Drafts:
        """Proposals for every row: ``count``, at least 1 and at most ``most``, or the first of them that are worth
        it.
        """
        raise NotImplementedError

    def work(self, count: int) -> float:
        """What ``count`` proposals for a row cost, in tokens of the verifier's decoder."""
        return 0.0

    def wait(self, count: int) -> float:
        """What ``count`` proposals cost besides, however many rows there are; what a call of the verifier's decoder
        costs so is 1.
        """
        return 0.0


class HeadsDrafter(Drafter):
    """The proposal heads 2 to K of a model, at the last accepted position only
    (Stern et al. 2018, section 4).

    Args:
        decoder: the model's. which: the model's number in the ensemble.
        mask, pad: indices that are never proposed.
        words: propose only what stands first in the dictionary, of so many symbols; None: all.
    """

    def __init__(self, decoder, which: int, mask: int, pad: int, words: Optional[int] = None):
        self.decoder, self.which, self.words = decoder, which, words
        self.most = decoder.block_size - 1
        table = decoder.output_projection.weight
        self.never = [index for index in (mask, pad) if index < len(table[:words])]
        # multiplications: of a proposal's projection, and of a token of the verifier
        self.table = table[:words].numel()
        self.token = sum(weight.numel() for weight in decoder.layers.parameters()) + table.numel()

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        return self.projection()

    def draft(self, verified: Verified, count: int, state: Any) -> Drafts:
        features = self.decoder.head_features(verified.features[self.which], 2, count + 1)
        return best_of(linear(features, *state))

    def projection(self) -> Tuple[Tensor, Tensor]:
        """Weight (W, D) and bias (W,) of the vocabulary projection, for the words that may be proposed."""
        projection = self.decoder.output_projection
        weight = projection.weight[: self.words]
        bias = weight.new_zeros(len(weight)) if projection.bias is None else projection.bias[: self.words].clone()
        bias[self.never] = -float("inf")
        device = weight.device.type
        if torch.is_autocast_enabled(device):  # which would cast a part of a weight for every proposal
            weight, bias = (one.to(torch.get_autocast_dtype(device)) for one in (weight, bias))
        return weight, bias

    def work(self, count: int) -> float:
        shared, each = self.decoder.proposal_heads.work()
        return (shared + (each + self.table) * count) / self.token if count else 0.0


class SequentialDrafter(HeadsDrafter):
    """Sequential heads: each is told the proposal before its own, and none is asked after one that is not worth it."""

    stops = True
    worth = 0.0

    def ahead(self, count: int, worth: float) -> None:
        self.worth = worth

    def begin(self, sample: Dict, encoded: List[Dict]) -> tuple:
        out = encoded[self.which]
        sources = (*self.decoder.proposal_heads.memory(out["encoder_out"][0].transpose(0, 1)), allowed_sources(out))
        return sources, self.projection()

    def draft(self, verified: Verified, count: int, state: tuple) -> Drafts:
        sources, projection = state
        if len(verified.rows) < len(sources[0]):  # some sentences are finished
            sources = [None if part is None else part[verified.rows] for part in sources]
        head = self.decoder.proposal_heads.decoding(*sources)
        embeddings, scale = self.decoder.embed_tokens.weight, self.decoder.embed_scale
        features = base = verified.features[self.which]
        token = verified.tokens[verified.rows, verified.lengths - 1]
        found, survival = [], 0.0
        for index in range(count):
            features = head(index, base, features, F.embedding(token, embeddings) * scale)
            found.append(best_of(linear(features, *projection)))
            token = found[-1].tokens
            if self.worth > 0 and index + 1 < count:
                survival = survival + found[-1].lprobs
                if float(survival.exp().mean()) < self.worth:
                    break
        return Drafts(*(torch.stack(parts, 1) for parts in zip(*found)))

    def work(self, count: int) -> float:
        return count * (self.decoder.proposal_heads.work() + self.table) / self.token

    def wait(self, count: int) -> float:
        weights = self.decoder.proposal_heads.work() + self.table
        return count * (HEAD + weights) / (CALL + LAYER * len(self.decoder.layers) + self.token)


class JacobiDrafter(Drafter):
    """What the verifier itself said after a rejected draft (Santilli et al. 2023); no training is needed.

    Those tokens rest on a wrong one, but are often right; where there are too few, the last is repeated.
    """

    def draft(self, verified: Verified, count: int, state: None) -> Drafts:
        after = verified.accepted.unsqueeze(1) + 1 + torch.arange(count, device=verified.accepted.device)
        return Drafts(verified.greedy.gather(1, after.clamp(max=verified.greedy.size(1) - 1)))


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


def heads_drafter(models, mask: int, pad: int, words: Optional[int]) -> HeadsDrafter:
    """The drafter of the first model that has heads; the other arguments are ``HeadsDrafter``'s."""
    which = next(i for i, model in enumerate(models) if has_heads(model))
    decoder = models[which].decoder
    kind = SequentialDrafter if decoder.sequential else HeadsDrafter
    return kind(decoder, which, mask, pad, words)


def has_heads(model) -> bool:
    """Whether a model proposes more than the next token."""
    return getattr(model.decoder, "block_size", 1) > 1
