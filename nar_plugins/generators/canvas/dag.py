"""One decoder pass makes a graph; a path through it is the output (Huang et al. 2022, section 3.5; Shao et al.
2022).
"""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.base import ensemble_mean, refuse_nan
from nar_plugins.generators.canvas.base import CanvasGenerator, DecodedCanvases, Pass, canvas_indices
from nar_plugins.generators.registry import SharedGeneratorConfig, register_generator
from nar_plugins.models.contract import Memory, Plan
from nar_plugins.models.dag.fuzzy import expected_visits
from nar_plugins.models.dag.paths import IMPOSSIBLE, best_scores, trace
from nar_plugins.modules.precision import full

OFTEN = 0.2  # a vertex on so many paths is probably seen by lookahead
LONGEST = 2  # tokens of a path of Viterbi's, for every source token (the release's bound)


@dataclass
class DagConfig(SharedGeneratorConfig):
    dag_decode: ChoiceEnum(["lookahead", "greedy", "viterbi", "joint-viterbi"]) = field(
        default="lookahead",
        metadata={
            "help": "the path: greedy takes the most probable link, lookahead counts the probability of the token "
            "behind it; viterbi and joint-viterbi take the best path by the same scores, whose length --lenpen "
            "rewards, and with --length-beam the best paths of several lengths"
        },
    )


@register_generator("dag", dataclass=DagConfig)
class DagGenerator(CanvasGenerator):
    """Decodes ``dag`` checkpoints, one or an ensemble.

    A token's positional score is its log-probability plus that of the link to its vertex; an output's score is their
    sum by ``--lenpen``. It is that of the one path, not of the output summed over its paths. ``viterbi`` scores, and
    chooses, by the links alone.
    """

    needs = (*CanvasGenerator.needs, "links")

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        super().__init__(models, dictionary, config, options, mask, rescorer)
        if len({model.canvas_kind for model in self.models}) > 1:
            raise ValueError("an ensemble of dag models needs the same --upsample in all of them")

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> DecodedCanvases:
        """Decode a batch in one pass."""
        sentences = torch.arange(source.size(0), device=source.device)
        features, links = [], []
        for model, memory in zip(self.models, memories):
            canvas = model.canvas(memory, Plan(sentences))
            features.append(model.decode(canvas, memory))
            links.append(model.links(features[-1], canvas))
        graph = Graph(canvas.real(), canvas.lengths() - 1, ensemble_mean(links))
        refuse_nan(bool(graph.links.isnan().any()))
        words, paths = self.chosen(features, graph, source, target)
        decoded = self.decoded(graph, words, paths)
        if self.observer is not None:

            def all_words() -> Words:
                with self.decoding(source, lean=True):
                    return self.words(features, graph, graph.real)

            seen = ObservedGraph(graph, paths, all_words)
            self.observer(Pass(decoded.tokens, decoded.lprobs, decoded.tokens.ne(self.pad), seen))
        return decoded

    def chosen(
        self, features: List[Tensor], graph: "Graph", source: Tensor, target: Optional[Tensor]
    ) -> Tuple["Words", "Paths"]:
        """The paths that ``--dag-decode`` takes, and the tokens of their vertices."""
        strategy = str(self.config.dag_decode)
        if strategy == "lookahead":
            return self.lookahead(features, graph)
        if strategy == "joint-viterbi":
            words = self.words(features, graph, graph.real)
            return words, self.best_paths(graph, words, source, target)
        greedy = strategy == "greedy"
        paths = walk(graph.links.argmax(2), graph.last) if greedy else self.best_paths(graph, None, source, target)
        return self.words(features, graph, visited(paths, graph)), paths

    def lookahead(self, features: List[Tensor], graph: "Graph") -> Tuple["Words", "Paths"]:
        """The path that goes to the vertex with the best sum of link and token, and its words.

        A token's log-probability is at most 0, so a vertex whose link alone is worse than the best sum is not the next
        one: its tokens are not computed. The first guess are the vertices that paths visit often.
        """
        known = graph.real & (expected_visits(graph.links.exp()) >= OFTEN)
        words, rows = self.words(features, graph, known), torch.arange(len(known), device=known.device).unsqueeze(1)
        known |= graph.ends()
        ahead = torch.arange(1, known.size(1) + 1, device=known.device)
        while True:
            scores = graph.links + words.lprobs.masked_fill(~known, IMPOSSIBLE).unsqueeze(1)
            best, following = scores.max(2)
            paths = walk(torch.maximum(following, ahead), graph.last)  # forward also from where nothing is known
            left = paths.left()
            onward = graph.links[rows, left]
            better = (onward >= best.gather(1, left).unsqueeze(2)) & (onward > IMPOSSIBLE)
            missing = better.any(1) & ~known
            if not bool(missing.any()):
                return words, paths
            self.compute(words, features, missing)
            known |= missing

    def words(self, features: List[Tensor], graph: "Graph", wanted: Tensor) -> "Words":
        """The most probable tokens of the wanted vertices (B, L) bool; ``</s>`` of the last ones, wanted or not."""
        rows = torch.arange(len(wanted), device=wanted.device)
        logits = [full(model.project(states[rows, graph.last])) for model, states in zip(self.models, features)]
        ends = ensemble_mean([each[:, self.eos] - each.logsumexp(1) for each in logits])
        refuse_nan(bool(ends.isnan().any()))
        words = Words(
            torch.full(wanted.shape, self.pad, device=wanted.device),
            torch.zeros(wanted.shape, dtype=ends.dtype, device=wanted.device),
        )
        words.tokens[rows, graph.last] = self.eos
        words.lprobs[rows, graph.last] = ends
        self.compute(words, features, wanted & ~graph.ends())
        return words

    def compute(self, words: "Words", features: List[Tensor], wanted: Tensor) -> None:
        """Fill in the wanted vertices (B, L) bool."""
        rows = wanted.flatten().nonzero().squeeze(1)
        tokens, lprobs = self.best_tokens([states.flatten(0, 1)[rows] for states in features])
        refuse_nan(bool(lprobs.isnan().any()))  # it would be the best token, and lead anywhere
        words.tokens.view(-1)[rows] = tokens
        words.lprobs.view(-1)[rows] = lprobs

    def best_paths(self, graph: "Graph", words: Optional["Words"], source: Tensor, target: Optional[Tensor]) -> "Paths":
        """The best paths of the ``--length-beam`` best lengths, in one dynamic program.

        Args:
            words: those of all vertices; None: the links alone count.
            source: (B, S) int64. target: (B, T) int64, for ``--gold-length``.
        """
        shortest = max(2, self.options.min_len + 1)  # fairseq's --min-len does not count </s>
        longest = torch.minimum(self.max_lengths(source), LONGEST * source.ne(self.pad).sum(1) + 1)
        longest = torch.minimum(longest.clamp(min=shortest), graph.last)
        self.check_min_length(source, self.max_lengths(source))
        self.check_vertices(source, graph)
        lengths = torch.arange(1, int(longest.max()) + 1, device=longest.device)
        emissions = torch.zeros_like(graph.links[:, 0]) if words is None else words.lprobs
        scores = best_scores(emissions.unsqueeze(1).expand(-1, len(lengths), -1), graph.links)
        totals = scores[:, 1:].gather(2, graph.last.view(-1, 1, 1).expand(-1, len(lengths), 1)).squeeze(2)

        least = longest.clamp(max=shortest)  # a graph of two vertices has one path
        allowed = (lengths >= least.unsqueeze(1)) & (lengths <= longest.unsqueeze(1))
        if self.config.gold_length:
            gold = torch.maximum(torch.minimum(self.reference_lengths(target), longest), least).unsqueeze(1)
            allowed &= (lengths >= gold - (self.beam - 1) // 2) & (lengths <= gold + self.beam // 2)
        ranked = totals if self.options.unnormalized else totals / lengths**self.options.lenpen
        best, order = ranked.masked_fill(~allowed, IMPOSSIBLE).topk(min(self.beam, len(lengths)), 1)
        keep = best > IMPOSSIBLE
        if not bool((keep[:, 0] | self.empty(source)).all()):
            raise ValueError(
                "a graph has no path of the lengths that --max-len-a/b or --gold-length allow: its links are too "
                "short; leave them out"
            )
        sentences = torch.arange(len(order), device=order.device).repeat_interleave(order.size(1))
        steps = lengths[order].flatten()
        vertices = trace(scores, graph.links, steps, graph.last[sentences], sentences)
        return Paths(vertices[:, : int(steps.max())], steps, sentences, keep, totals.gather(1, order).flatten())

    def check_vertices(self, source: Tensor, graph: "Graph") -> None:
        """Raise where ``--min-len`` is above the tokens on the longest path of a nonempty sentence's graph."""
        shortest = self.options.min_len
        # fairseq's default of --min-len is 1; the one path of a graph of two vertices is </s>
        limit = int(graph.last.clamp(min=2).masked_fill(self.empty(source), shortest + 1).min()) - 1
        if shortest > limit:
            raise ValueError(
                f"--min-len {shortest} is above the limit of {limit} tokens: so many vertices has the graph of a "
                "sentence"
            )

    def decoded(self, graph: "Graph", words: "Words", paths: "Paths") -> DecodedCanvases:
        """The tokens and scores along paths."""
        rows = paths.sentences.unsqueeze(1)
        beyond = torch.arange(paths.vertices.size(1), device=rows.device) >= paths.steps.unsqueeze(1)
        lprobs = words.lprobs[rows, paths.vertices] + graph.links[rows, paths.left(), paths.vertices]
        tokens = words.tokens[rows, paths.vertices].masked_fill(beyond, self.pad)
        return DecodedCanvases(
            tokens,
            lprobs.masked_fill(beyond, 0),
            paths.steps,
            torch.ones_like(paths.steps),
            canvas_indices(*paths.keep.shape, rows.device),
            paths.keep,
            paths.scores if str(self.config.dag_decode) == "viterbi" else None,
            history=[tokens] if self.options.retain_iter_history else None,
        )


class Graph(NamedTuple):
    """The graphs of B sentences, of up to L vertices."""

    real: Tensor  # (B, L) bool
    last: Tensor  # (B,) int64, the last vertex
    links: Tensor  # (B, L, L) float32 log-probabilities, from u to v

    def ends(self) -> Tensor:
        """Which vertices are the last of their graphs: (B, L) bool."""
        return torch.arange(self.real.size(1), device=self.last.device) == self.last.unsqueeze(1)


class Words(NamedTuple):
    """The most probable tokens of vertices."""

    tokens: Tensor  # (B, L) int64
    lprobs: Tensor  # (B, L) float32


class Paths(NamedTuple):
    """R paths, N a sentence, next to each other."""

    vertices: Tensor  # (R, T) int64, 0 beyond the steps
    steps: Tensor  # (R,) int64
    sentences: Tensor  # (R,) int64
    keep: Tensor  # (B, N) bool, False where a sentence has fewer
    scores: Optional[Tensor] = None  # (R,) what they were chosen by

    def left(self) -> Tensor:
        """The vertices from which the steps go: (R, T) int64, beyond the steps the last one or 0."""
        return torch.cat([torch.zeros_like(self.vertices[:, :1]), self.vertices[:, :-1]], 1)


class ObservedGraph(NamedTuple):
    """Graphs with the paths that were chosen, for an observer."""

    graph: Graph
    paths: Paths
    words: Callable[[], Words]  # of all vertices, computed when it is called: a decoding needs but a few


def visited(paths: Paths, graph: Graph) -> Tensor:
    """The vertices that emit a token on some path: (B, L) bool."""
    on = torch.zeros_like(graph.real)
    on[paths.sentences.unsqueeze(1), paths.vertices] = True
    return on & (torch.arange(on.size(1), device=on.device) > 0)


def walk(following: Tensor, last: Tensor) -> Paths:
    """The path of each sentence that always goes to the vertex that follows; on the host, which is asked once.

    Args:
        following: (B, L) int64, a later vertex for each but the last. last: (B,) int64.
    """
    paths = []
    for successors, end in zip(following.tolist(), last.tolist()):
        at, vertices = 0, []
        while at < end:
            at = successors[at]
            vertices.append(at)
        paths.append(vertices)
    steps = [len(vertices) for vertices in paths]
    padded = [vertices + [0] * (max(steps) - len(vertices)) for vertices in paths]
    return Paths(
        torch.tensor(padded, device=last.device),
        torch.tensor(steps, device=last.device),
        torch.arange(len(last), device=last.device),
        torch.ones((len(last), 1), dtype=torch.bool, device=last.device),
    )
