"""Connectionist temporal classification (Graves et al. 2006) as the latent alignment of a NAT (Libovicky and Helcl
2018).

The canvas is longer than the target; repeated tokens count once, and blanks not at all.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fused_loss import fused_token_loss
from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.precision import full

IMPOSSIBLE = -float("inf")
UNUSED = -1e4  # a logit whose probability is 0; the gradient of F.ctc_loss is NaN where a log-probability is infinite


def needed(target: Tensor, real: Tensor) -> Tensor:
    """The shortest canvas for a target (B, T): its length, and a blank between equal neighbours: (B,) int64."""
    repeats = target[:, 1:].eq(target[:, :-1]) & real[:, 1:]
    return real.sum(1) + repeats.sum(1)


def ctc_loss(lprobs: Tensor, lengths: Tensor, target: Tensor, real: Tensor, blank: int) -> LossPart:
    """The loss, summed, over the target tokens of the pairs whose canvas is long enough; the others are skipped.

    Args:
        lprobs: (B, C, V) float32 log-probabilities on canvases of C positions. lengths: (B,) int64, real positions.
        target: (B, T) int64. real: (B, T) bool.
    """
    fits = needed(target, real) <= lengths
    nll = F.ctc_loss(
        lprobs.transpose(0, 1), target, lengths, real.sum(1), blank=blank, reduction="none", zero_infinity=True
    )
    nll = nll.masked_fill(~fits, 0).sum()  # already zero, and so is its gradient
    return LossPart(nll, nll.detach(), (real.sum(1) * fits).sum(), weight=1, skipped=(~fits).sum())


def projected_ctc_loss(
    projection: nn.Linear, features: Tensor, positions: Tensor, target: Tensor, real: Tensor, blank: int
) -> LossPart:
    """``ctc_loss`` of ``projection(features)``, without ever holding the logits of the whole vocabulary.

    A path takes one symbol at every position. So a target's probability is that among the symbols of its own paths,
    blank and its tokens, times the probability at every position that the symbol is one of them. The former is CTC over
    a vocabulary of T + 1 symbols. The latter's logarithm is the normaliser of these symbols less that of all, which is
    known from blank's log-probability under both.

    Args:
        projection: without bias, D -> V.
        features: (B, C, D). positions: (B, C) bool, which of them are the canvas; the first ones of each row.
        target, real, blank: as in ``ctc_loss``.
    """
    lengths = positions.sum(1)
    fits = needed(target, real) <= lengths
    own, own_target = own_symbols(target, real)
    logits = own_logits(projection, features, target, real, blank)
    lprobs = logits.masked_fill(~own.unsqueeze(1), UNUSED).log_softmax(-1)  # (B, C, T + 1)
    part = ctc_loss(lprobs, lengths, own_target, real, 0)

    states = features[positions]
    blanks = torch.full((len(states),), blank, device=target.device)
    counted = fits.unsqueeze(1).expand_as(positions)[positions].to(lprobs)
    blank_nll, _, _ = fused_token_loss(projection, states, blanks, 0.0, counted)
    outside = blank_nll.sum() + (lprobs[:, :, 0][positions] * counted).sum()
    return part._replace(loss=part.loss + outside, nll=part.nll + outside.detach())


def own_logits(projection: nn.Linear, features: Tensor, target: Tensor, real: Tensor, blank: int) -> Tensor:
    """The logits of blank and of each target's tokens at every position of its canvas: (B, C, T + 1), in float32; at
    padding blank's.

    Args:
        projection, features, target, real, blank: as in ``projected_ctc_loss``.
    """
    symbols = F.pad(target.masked_fill(~real, blank), (1, 0), value=blank)
    return full(features @ F.embedding(symbols, projection.weight).transpose(1, 2))


def own_symbols(target: Tensor, real: Tensor) -> tuple:
    """Which of ``own_logits`` are the symbols of each target's paths, once each.

    Args:
        target, real: as in ``ctc_loss``.

    Returns:
        own: (B, T + 1) bool, False at padding and where a token stands again.
        targets: (B, T) int64, the place among them where a token stands first.
    """
    first = target.unsqueeze(2).eq(target.unsqueeze(1)).int().argmax(2)
    places = torch.arange(target.size(1), device=target.device)
    return F.pad(first.eq(places) & real, (1, 0), value=True), first + 1


def best_alignment(logits: Tensor, lengths: Tensor, target: Tensor, real: Tensor, blank: int) -> Tensor:
    """The most probable path of a target through a canvas, by Viterbi over all sentences at once: (B, C) int64.

    States are blank, y1, blank, y2, ... blank; from state s a step leads to s, s+1, and to s+2 unless that skips a
    blank between equal tokens. Where no path exists, and beyond the length, the result is blank.

    Args:
        logits: (B, C, T + 1), of ``own_logits``; a path takes one symbol of every position, so their normalisers change
            nothing.
        lengths, target, real, blank: as in ``ctc_loss``.
    """
    batch, canvas = logits.shape[:2]
    targets = real.sum(1)
    symbols = target.new_full((batch, 2 * target.size(1) + 1), blank)
    symbols[:, 1::2] = target.masked_fill(~real, blank)
    places = torch.zeros_like(symbols[0])
    places[1::2] = torch.arange(1, target.size(1) + 1, device=places.device)
    emissions = logits.index_select(2, places)
    may_skip = F.pad(symbols[:, 2:].ne(symbols[:, :-2]) & symbols[:, 2:].ne(blank), (2, 0))

    score = torch.full_like(emissions[:, 0], IMPOSSIBLE)
    score[:, :2] = emissions[:, 0, :2]
    came = []  # per step, how many states the best predecessor lies back
    for t in range(1, canvas):
        skipped = F.pad(score, (2, 0), value=IMPOSSIBLE)[:, :-2].masked_fill(~may_skip, IMPOSSIBLE)
        best, back = torch.stack([score, F.pad(score, (1, 0), value=IMPOSSIBLE)[:, :-1], skipped]).max(0)
        running = (t < lengths).unsqueeze(1)
        score = torch.where(running, best + emissions[:, t], score)
        came.append(torch.where(running, back, 0))

    ends = torch.stack([2 * targets, (2 * targets - 1).clamp(min=0)], 1)
    state = ends.gather(1, score.gather(1, ends).argmax(1, keepdim=True))
    possible = score.gather(1, state) > IMPOSSIBLE
    states = [state]
    for back in reversed(came):
        states.append(states[-1] - back.gather(1, states[-1]))
    path = symbols.gather(1, torch.cat(states[::-1], 1))
    beyond = torch.arange(canvas, device=path.device) >= lengths.unsqueeze(1)
    return path.masked_fill(beyond | ~possible, blank)


def collapse(path: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Which positions of a path (R, C) are a token of the output: not blank, not equal to the position before: (R, C)
    bool.
    """
    fresh = F.pad(path[:, 1:].ne(path[:, :-1]), (1, 0), value=True)
    real = torch.arange(path.size(1), device=path.device) < lengths.unsqueeze(1)
    return fresh & path.ne(blank) & real


class Beam(NamedTuple):
    """The prefixes of a search, K a row, best first; all tensors (R, K)."""

    blank: Tensor  # log-probability of the prefix, ending in a blank
    token: Tensor  # and ending in its last token
    last: Tensor  # the last token, or the blank's index for the empty prefix
    name: Tensor  # a hash of the prefix: equal prefixes are merged
    length: Tensor  # of the prefix


def prefix_beam_search(lprobs: Tensor, lengths: Tensor, blank: int, beam: int, expand: int = 10) -> tuple:
    """The most probable outputs, summed over their paths (Graves and Jaitly 2014, algorithm 1), for all rows at once.

    Args:
        lprobs: (R, C, V) float32 log-probabilities; banned tokens at -inf. lengths: (R,) int64.
        beam: K, prefixes kept. expand: how many of the best tokens of a position may extend a prefix.

    Returns:
        tokens: (R, K, C) int64, ``blank`` after the end of each. sizes: (R, K) int64. scores: (R, K), the output's
        log-probability; -inf where there are fewer outputs. Best first.
    """
    rows, canvas, words = lprobs.shape
    expand = min(expand, words - 1)
    blank_lprobs = lprobs[..., blank]
    token_lprobs, tokens = lprobs.index_fill(-1, torch.tensor([blank], device=lprobs.device), IMPOSSIBLE).topk(
        expand, -1
    )

    empty = lprobs.new_full((rows, beam), IMPOSSIBLE)
    whole = torch.zeros((rows, beam), dtype=torch.long, device=lprobs.device)
    now = Beam(empty.index_fill(1, whole[0, :1], 0.0), empty, whole + blank, whole, whole)
    text = lprobs.new_full((rows, beam, canvas), blank, dtype=torch.long)
    for t in range(canvas):
        either = torch.logaddexp(now.blank, now.token)
        # a prefix stays: by a blank, or by its last token again
        again = lprobs[:, t].gather(1, now.last).masked_fill(now.last.eq(blank), IMPOSSIBLE)
        stay_blank, stay_token = either + blank_lprobs[:, t, None], now.token + again
        # or grows by a token; by its own last token only over a blank
        new = tokens[:, t].unsqueeze(1).expand(-1, beam, -1)
        before = torch.where(new.eq(now.last.unsqueeze(2)), now.blank.unsqueeze(2), either.unsqueeze(2))
        grown = before + token_lprobs[:, t].unsqueeze(1)
        names = extended(now.name.unsqueeze(2), new)
        # a grown prefix that is in the beam already adds to that one
        same = names.unsqueeze(3).eq(now.name[:, None, None, :])
        same &= (now.length.unsqueeze(2) + 1).unsqueeze(3).eq(now.length[:, None, None, :])
        same &= either.gt(IMPOSSIBLE)[:, None, None, :]  # not to an empty place of the beam
        joined = grown.unsqueeze(3).masked_fill(~same, IMPOSSIBLE).flatten(1, 2).logsumexp(1)
        stay_token = torch.logaddexp(stay_token, joined)
        grown = grown.masked_fill(same.any(3), IMPOSSIBLE)

        score = torch.cat([torch.logaddexp(stay_blank, stay_token), grown.flatten(1)], 1)
        chosen = score.topk(beam, 1).indices
        stays, parent = chosen < beam, torch.where(chosen < beam, chosen, (chosen - beam) // expand)

        def pick(stay, grow):
            return torch.cat([stay, grow.flatten(1)], 1).gather(1, chosen)

        lengths_after = now.length.gather(1, parent) + (~stays).long()
        after = Beam(
            pick(stay_blank, torch.full_like(grown, IMPOSSIBLE)),
            pick(stay_token, grown),
            pick(now.last, new),
            pick(now.name, names),
            lengths_after,
        )
        text_after = text.gather(1, parent.unsqueeze(2).expand(-1, -1, canvas))
        at = (lengths_after - 1).clamp(min=0).unsqueeze(2)
        text_after = text_after.scatter(
            2, at, torch.where(stays.unsqueeze(2), text_after.gather(2, at), after.last.unsqueeze(2))
        )

        running = (t < lengths).unsqueeze(1)
        now = Beam(*(torch.where(running, new_, old) for new_, old in zip(after, now)))
        text = torch.where(running.unsqueeze(2), text_after, text)
    scores, order = torch.logaddexp(now.blank, now.token).sort(1, descending=True)
    return text.gather(1, order.unsqueeze(2).expand(-1, -1, canvas)), now.length.gather(1, order), scores


def extended(name: Tensor, token: Tensor) -> Tensor:
    """The hash of a prefix with one more token (a linear congruence modulo 2^64; equal lengths are compared
    besides).
    """
    return (name * 6364136223846793005 + token + 1442695040888963407) ^ (name >> 29)
