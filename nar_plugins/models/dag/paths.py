"""Dynamic programs over the paths of a directed acyclic graph, for all sentences of a batch (Huang et al. 2022, section
3.2; Shao et al. 2022).

B sentences, L vertices, T steps. A path starts on vertex 0, which emits nothing, and goes forward: its t-th step leads
to a later vertex, which emits the t-th token. It ends on the last vertex with the last token.

    emissions (B, T, L): log-probability of the t-th token on vertex v
    links (B, L, L): log-probability of the step from u to v, -inf where there is none
    steps (B,) int64: the steps of each sentence's paths; last (B,) int64: its last vertex

Sums are computed as products of matrices of probabilities, several times faster than logsumexp on a CPU, in float64,
whose range is 10^-308. Whether anything that counts was lost below it is checked, and these sentences are computed
again in log space.
"""

import math
from typing import Iterator, NamedTuple, Tuple

import torch
from torch import Tensor

IMPOSSIBLE = -math.inf
SMALLEST = 1e-290  # a sum above it is exact in float64: what is lost of it is below 1e-305
LARGEST = 650.0  # nats; exp of it is far from float64's largest number
CPU_LINKS = 1 << 17  # links of the sentences computed together: their matrices stay in a processor's cache
GPU_LINKS = 1 << 27


def feasible(steps: Tensor, last: Tensor, window: int = 0) -> Tensor:
    """Which sentences have a path: (B,) bool.

    Args:
        window: the longest step; 0: any.
    """
    possible = (steps >= 1) & (steps <= last)
    return possible & (steps * window >= last) if window else possible


# -- the sum over all paths --------------------------------------------------------------------------------------------


def log_marginal(emissions: Tensor, links: Tensor, steps: Tensor, last: Tensor) -> Tensor:
    """The log-probability of each target, summed over its paths: (B,), -inf where there is none (equation 6 of Huang et
    al. 2022). Its gradient is exact, and 0 where there is no path.

    Memory: O(B T L), and beside ``links`` and their gradient the matrices of ``CPU_LINKS`` or ``GPU_LINKS`` links.

    Args:
        emissions, links, steps, last: see above.
    """
    return LogMarginal.apply(emissions, links, steps, last)


class LogMarginal(torch.autograd.Function):
    """See ``log_marginal``. The gradients are the posteriors of vertices and links, by a backward pass of the dynamic
    program; neither pass keeps anything of size L x L per step."""

    @staticmethod
    def forward(ctx, emissions, links, steps, last):
        totals = emissions.new_full(steps.shape, IMPOSSIBLE)
        ctx.saved = []
        for rows, part in parts(emissions, links, steps, last):
            alpha, plain = forward_scores(part)
            totals[rows] = part.totals(alpha).to(totals)
            ctx.saved.append((alpha, plain))
        ctx.save_for_backward(emissions, links, steps, last)
        return totals

    @staticmethod
    def backward(ctx, grad):
        emissions, links = ctx.saved_tensors[:2]
        grads = torch.zeros_like(emissions), torch.zeros_like(links)
        for (rows, part), (alpha, plain) in zip(parts(*ctx.saved_tensors), ctx.saved):
            by_emission, by_link = posteriors(part, alpha, plain)
            scale = grad[rows].to(by_emission).view(-1, 1, 1)
            width, vertices = by_emission.shape[1:]
            grads[0][rows, :width, :vertices] = (by_emission * scale).to(emissions.dtype)
            grads[1][rows, :vertices, :vertices] = by_link.mul_(scale).to(links.dtype)
        return *grads, None, None


class Part(NamedTuple):
    """Some sentences of a batch, in float64 and cut to the longest of them."""

    emissions: Tensor
    links: Tensor
    steps: Tensor
    last: Tensor

    def start(self) -> Tensor:
        """The scores (b, L) before the first step: 0 on vertex 0."""
        return torch.full_like(self.links[:, 0], IMPOSSIBLE).index_fill_(1, self.steps.new_zeros(1), 0)

    def end(self, t: int) -> Tensor:
        """The scores (b, L) after step t of the sentences that end there: 0 on the last vertex."""
        places = torch.arange(self.links.size(1), device=self.links.device)
        ends = (places == self.last.unsqueeze(1)) & (self.steps == t).unsqueeze(1)
        return torch.zeros_like(self.links[:, 0]).masked_fill_(~ends, IMPOSSIBLE)

    def visited(self, first: int) -> Tensor:
        """Which vertices a path can stand on after its steps first, first + 1, ... (b, T, L) bool; ``first`` 1: up to
        its last one, 0: up to the one before."""
        width, vertices = self.emissions.shape[1:]
        times = torch.arange(first, first + width, device=self.last.device).view(1, -1, 1)
        places = torch.arange(vertices, device=self.last.device).view(1, 1, -1)
        left = self.steps.view(-1, 1, 1) - times  # each of the steps still to go leads to a later vertex
        return (places >= times) & (left >= 1 - first) & (places <= self.last.view(-1, 1, 1) - left)

    def totals(self, alpha: Tensor) -> Tensor:
        """The score (b,) of each sentence's last step on its last vertex, of alpha (b, T + 1, L)."""
        rows = torch.arange(alpha.size(0), device=alpha.device)
        return alpha[rows, self.steps, self.last]


def parts(emissions: Tensor, links: Tensor, steps: Tensor, last: Tensor) -> Iterator[Tuple[slice, Part]]:
    """The sentences in groups whose links fit into ``CPU_LINKS`` or ``GPU_LINKS``."""
    budget = CPU_LINKS if links.device.type == "cpu" else GPU_LINKS
    size = max(1, budget // max(1, links.size(1) ** 2))
    for begin in range(0, steps.size(0), size):
        rows = slice(begin, begin + size)
        width, vertices = int(steps[rows].max()), int(last[rows].max()) + 1
        yield (
            rows,
            Part(
                emissions[rows, :width, :vertices].double(),
                links[rows, :vertices, :vertices].double(),
                steps[rows].clamp(max=width),
                last[rows],
            ),
        )


def forward_scores(part: Part) -> Tuple[Tensor, bool]:
    """The sums over all beginnings of paths: alpha (b, T + 1, L), alpha[t, v] of those whose t-th step leads to v, and
    whether they were computed without log space."""
    transitions, scores, sums = part.links.exp(), [part.start()], []
    for emitted in part.emissions.unbind(1):
        top = finite(scores[-1].amax(1, keepdim=True))
        sums.append(((scores[-1] - top).exp().unsqueeze(1) @ transitions).squeeze(1))
        scores.append(sums[-1].log() + top + emitted)
    alpha = torch.stack(scores, 1)
    if sums and lost(torch.stack(sums, 1), alpha[:, :-1], part.links, part.visited(1) & possible(part.emissions)):
        return forward_in_logs(part), False
    return alpha, True


def forward_in_logs(part: Part) -> Tensor:
    """``forward_scores`` in log space."""
    scores = [part.start()]
    for emitted in part.emissions.unbind(1):
        scores.append((scores[-1].unsqueeze(2) + part.links).logsumexp(1) + emitted)
    return torch.stack(scores, 1)


def backward_scores(part: Part, alpha: Tensor) -> Tuple[Tensor, bool]:
    """The sums over all ends of paths: beta (b, T + 1, L), beta[t, u] of those that stand on u after t steps, and
    whether they were computed without log space."""
    transitions, beta, sums, aheads = part.links.exp().transpose(1, 2), [part.end(part.emissions.size(1))], [], []
    for t in range(part.emissions.size(1) - 1, -1, -1):
        aheads.append(part.emissions[:, t] + beta[-1])
        top = finite(aheads[-1].amax(1, keepdim=True))
        sums.append(((aheads[-1] - top).exp().unsqueeze(1) @ transitions).squeeze(1))
        beta.append(torch.maximum(part.end(t), sums[-1].log() + top))
    counts = part.visited(0) & possible(alpha[:, :-1])
    if sums and lost(torch.stack(sums[::-1], 1), torch.stack(aheads[::-1], 1), part.links.transpose(1, 2), counts):
        return backward_in_logs(part), False
    return torch.stack(beta[::-1], 1), True


def backward_in_logs(part: Part) -> Tensor:
    """``backward_scores`` in log space."""
    beta = [part.end(part.emissions.size(1))]
    for t in range(part.emissions.size(1) - 1, -1, -1):
        ahead = part.emissions[:, t] + beta[-1]
        beta.append(torch.maximum(part.end(t), (part.links + ahead.unsqueeze(1)).logsumexp(2)))
    return torch.stack(beta[::-1], 1)


def lost(sums: Tensor, scores: Tensor, links: Tensor, counts: Tensor) -> bool:
    """Whether a sum (b, T, L) that counts is too small to be exact, although it has a term.

    Args:
        scores: (b, T, L), of the vertices where the links (b, L, L) start. counts: (b, T, L) bool.
    """
    small = counts & (sums < SMALLEST)
    if not bool(small.any()):
        return False
    terms = possible(scores).to(links) @ possible(links).to(links)
    return bool((small & (terms > 0)).any())


def posteriors(part: Part, alpha: Tensor, plain: bool) -> Tuple[Tensor, Tensor]:
    """How probable it is that the t-th step leads to v, (b, T, L), and how often the link from u to v is taken, (b, L,
    L); 0 for a sentence without a path."""
    if plain:
        beta, plain = backward_scores(part, alpha)
    else:
        beta = backward_in_logs(part)
    total = finite(part.totals(alpha)).view(-1, 1, 1)
    by_emission = (alpha[:, 1:] + beta[:, 1:] - total).exp()
    # only what is on a whole path counts
    before = alpha[:, :-1].masked_fill(~possible(beta[:, :-1]), IMPOSSIBLE)
    after = (part.emissions + beta[:, 1:] - total).masked_fill(~possible(alpha[:, 1:]), IMPOSSIBLE)
    top = finite(before.amax(2, keepdim=True))
    before, after = before - top, after + top
    if plain and not bool((after > LARGEST).any()):
        by_link = before.exp().transpose(1, 2) @ after.exp()
        return by_emission, by_link.mul_(part.links.exp())
    by_link = torch.zeros_like(part.links)
    for u, v in zip(before.unbind(1), after.unbind(1)):
        by_link += (u.unsqueeze(2) + v.unsqueeze(1) + part.links).exp()
    return by_emission, by_link


def possible(scores: Tensor) -> Tensor:
    """Which scores are not -inf."""
    return scores > IMPOSSIBLE


def finite(scores: Tensor) -> Tensor:
    """0 in place of -inf."""
    return scores.masked_fill(~possible(scores), 0)


# -- the best path -----------------------------------------------------------------------------------------------------


def best_scores(emissions: Tensor, links: Tensor) -> Tensor:
    """The score of the best beginning of a path: (B, T + 1, L), of those whose t-th step leads to v.

    Args:
        emissions: (B, T, L), or (B, 1, L) expanded where every step has the same. links: see above.
    """
    batch, width, vertices = emissions.shape
    scores = links.new_full((batch, width + 1, vertices), IMPOSSIBLE)
    scores[:, 0, 0] = 0
    size = batch if links.device.type != "cpu" else max(1, CPU_LINKS // max(1, vertices**2))
    for begin in range(0, batch, size):
        rows = slice(begin, begin + size)
        for t in range(width):
            best = (scores[rows, t].unsqueeze(2) + links[rows]).amax(1)
            scores[rows, t + 1] = best + emissions[rows, t]
    return scores


def trace(scores: Tensor, links: Tensor, steps: Tensor, last: Tensor, sentences: Tensor) -> Tensor:
    """The vertices of best paths: (R, T) int64, 0 beyond the steps of each. Of equally good ones, the earliest.

    No back-pointers are kept: on the way back one column of the links is enough.

    Args:
        scores: (B, T + 1, L), ``best_scores``. links: (B, L, L).
        steps, last, sentences: (R,) int64, of every path the number of its steps, its end, and its sentence.
    """
    width, vertices = scores.size(1) - 1, []
    at = last
    for t in range(width, 0, -1):
        running = t <= steps
        vertices.append(at.masked_fill(~running, 0))
        came = (scores[sentences, t - 1] + links[sentences, :, at]).argmax(1)
        at = torch.where(running, came, at)
    return torch.stack(vertices[::-1], 1) if vertices else last.new_zeros((last.size(0), 0))
