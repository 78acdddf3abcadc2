"""What the tests of blockwise decoding compare with: fairseq's greedy search, and a loop without batch or cache."""

import math
from dataclasses import fields
from functools import lru_cache
from types import SimpleNamespace

import torch
from conftest import source_batch
from fairseq.sequence_generator import SequenceGenerator
from tiny import model

from nar_plugins.data.noise import uniform
from nar_plugins.generators.beam import BeamGenerator
from nar_plugins.generators.left_to_right.blockwise import BlockwiseConfig, BlockwiseGenerator
from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts
from nar_plugins.generators.options import generation_options

PAD, EOS, UNK, MASK, WORDS = 1, 2, 3, 24, 20


@lru_cache(maxsize=None)
def random_model(*flags, arch="transformer_tiny", seed=1):
    """A model of random weights that says many different things, and in time </s>, in evaluation mode; and its task.

    It does so because every position has a strong random vector, and no word an advantage in all contexts.
    """
    one, task = model(*flags, arch=arch, criterion="cross_entropy", seed=seed)
    one.eval()
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(1.5)
        positions = one.decoder.embed_positions
        table = positions.weights if hasattr(positions, "weights") else positions.weight
        table.normal_(std=2 * one.decoder.embed_scale * float(one.decoder.embed_tokens.weight.std()))
        source = source_batch([9] * 20, WORDS)
        features = one.decoder.extract_features(source, encoder_out=one.encoder(source, src_lengths=None))[0].flatten(
            0, 1
        )
        common = torch.nn.functional.normalize(features.mean(0), dim=0)
        words = one.decoder.output_projection.weight
        words.sub_((words @ common).unsqueeze(1) * common).mul_(3)
        words[EOS] *= 1.2
    return one, task


def random_models(*flags, count=1, seed=3, **kwargs):
    """Some of them, and the task of the first."""
    made = [random_model(*flags, seed=seed + i, **kwargs) for i in range(count)]
    return [one for one, _ in made], made[0][1]


def blockwise(models, task, oracle=None, drafts_from=None, **settings) -> BlockwiseGenerator:
    """A generator with the flags' defaults, overridden by ``settings`` (fairseq's too).

    Args:
        oracle: a test's drafter. drafts_from: a non-autoregressive model that drafts.
    """
    config = {f.name: f.default for f in fields(BlockwiseConfig) if not f.name.startswith("_")}
    config.update({name: settings.pop(name) for name in list(settings) if name in config})
    block = config["verify_block"]
    if oracle is not None:  # which has no limit of its own
        config["verify_block"] = None
    options = generation_options(SimpleNamespace(**{"beam": 1, **settings}))
    made = BlockwiseGenerator(
        models, task.target_dictionary, SimpleNamespace(**config), options, MASK, drafter=drafts_from
    )
    if oracle is not None:
        made.drafter, made.config.verify_block = oracle, block
    return made


def beam(search, models, dictionary) -> BeamGenerator:
    """fairseq's ``search`` without ``<mask>``."""
    config, options = SimpleNamespace(decode_dtype="float32"), generation_options(SimpleNamespace())
    return BeamGenerator(models, dictionary, config, options, MASK, search)


def sample_of(source) -> dict:
    """fairseq's batch."""
    return {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}


def greedy(models, task, source, prefix=None, **settings):
    """fairseq's greedy search without <mask>: its hypotheses, one a sentence."""
    options = dict(max_len_b=200, max_len_a=0, min_len=1, unk_penalty=0.0, temperature=1.0, len_penalty=1.0)
    names = {"unkpen": "unk_penalty", "lenpen": "len_penalty"}
    options.update({names.get(name, name): value for name, value in settings.items() if name != "unnormalized"})
    search = SequenceGenerator(
        models, task.target_dictionary, beam_size=1, normalize_scores=not settings.get("unnormalized"), **options
    )
    found = beam(search, models, task.target_dictionary).generate(models, sample_of(source), prefix_tokens=prefix)
    return [hypos[0] for hypos in found]


class Oracle(Drafter):
    """Drafts the right tokens, each replaced by a wrong one with a probability: every acceptance pattern, without
    training.

    Args:
        texts: what greedy search says, one tensor a sentence. wrong: the probability, for all rows or one a sentence.
        junk: wrong drafts are this token instead of a neighbour of the right one.
    """

    max_draft_tokens = 100

    def __init__(self, texts, wrong, junk=None):
        self.table = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=UNK)
        self.table = torch.nn.functional.pad(self.table, (0, 110), value=UNK)
        draws = uniform(5, 0, torch.arange(len(texts)), self.table.size(1))
        others = torch.where(self.table.eq(WORDS + 3), 4, self.table.clamp(min=4) + 1) if junk is None else junk
        chances = torch.as_tensor(wrong).double().expand(len(texts)).unsqueeze(1)
        self.table = torch.where(draws < chances, others, self.table)

    def draft(self, verified, count, state):
        after = verified.lengths.unsqueeze(1) + torch.arange(count)
        return Drafts(self.table[verified.sentences].gather(1, after.clamp(max=self.table.size(1) - 1)))


def expected_calls(text, drafts, block, limit):
    """The ``accepted`` of one sentence: what the drafts (one for every position) give, simulated on the known
    result.
    """
    text, accepted, n = text.tolist(), [1], 1
    while n < len(text):
        right = 0
        while right < block - 1 and n + right < len(text) and drafts[n + right] == text[n + right]:
            right += 1
        step = min(right + 1, len(text) - n)
        accepted.append(step)
        n += step
    return accepted


def lprobs_of(one, source, tokens):
    """Log-probabilities (V,) of the token after ``tokens``, by the stock decoder's full forward pass: (and the
    feature).
    """
    encoded = one.encoder(source.unsqueeze(0), src_lengths=torch.tensor([source.numel()]))
    before = torch.tensor([[EOS, *tokens]])
    features = one.decoder.extract_features(before, encoder_out=encoded)[0][0, -1]
    logits = one.decoder.output_layer(features).clone()
    logits[MASK] = -math.inf
    return logits.log_softmax(-1), features


def slow_blockwise(one, source, block, limit, min_len=1):
    """Blockwise decoding of one sentence with the model's heads, from the paper: no cache, no batch, every pass
    afresh.
    """

    def choice(tokens):
        lprobs, _ = lprobs_of(one, source, tokens)
        lprobs[PAD] = -math.inf
        if len(tokens) >= limit:
            return EOS
        if len(tokens) < min_len:
            lprobs[EOS] = -math.inf
        return int(lprobs.argmax())

    text, accepted, drafts = [], [], []
    while EOS not in text:
        before = len(text)
        for draft in [*drafts, None]:
            said = choice(text)
            text.append(said)
            if said != draft or said == EOS:
                break
        accepted.append(len(text) - before)
        _, features = lprobs_of(one, source, text[:-1])
        drafts = drafts_of(one, source, features, text[-1], block)[: max(0, limit - len(text))]
    return text, accepted


def drafts_of(one, source, features, token, block):
    """What heads 2 to ``block`` propose after ``token``, from the features (D,) of its position."""

    def best(x):
        logits = one.decoder.output_projection(x)
        logits[..., [MASK, PAD]] = -math.inf
        return logits.argmax(-1)

    if block == 1:
        return []
    if not one.decoder.sequential:
        return best(one.decoder.head_features(features, 2, block)).tolist()
    said, state = [token], features
    for head in range(2, block + 1):
        state = sequential_state(one, source, features, state, said[-1], head)
        said.append(int(best(state)))
    return said[1:]


def sequential_state(one, source, base, state, token, head):
    """What a sequential head puts before the vocabulary projection, (D,), written out for one position and no batch."""
    heads, decoder = one.decoder.proposal_heads, one.decoder
    encoded = one.encoder(source.unsqueeze(0), src_lengths=torch.tensor([source.numel()]))["encoder_out"][0][:, 0]
    told = decoder.embed_scale * decoder.embed_tokens.weight[token]
    x = heads.join_norm(heads.join.weight @ torch.cat([state, told]) + heads.join.bias + heads.number[head - 2])
    attention, found = heads.encoder_attn, []
    query, keys, values = attention.q_proj(x), attention.k_proj(encoded), attention.v_proj(encoded)
    for h in range(attention.num_heads):
        part = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
        found.append((keys[:, part] @ query[part] * attention.scaling).softmax(0) @ values[:, part])
    x = heads.encoder_attn_norm(x + attention.out_proj(torch.cat(found)))
    return base + heads.weight @ heads.hidden_layer(x).relu() + heads.bias[head - 2]
