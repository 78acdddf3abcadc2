"""The page's frames: what each pass predicted, kept and dropped; the last one is the translation."""

import itertools
from argparse import Namespace

import pytest
import torch
from saved import corpus, save
from tiny import dictionary

from nar_plugins.demo.trace import (
    ACCEPTED,
    ASIDE,
    CORRECTED,
    DRAFT,
    EMPTY,
    KEPT,
    MASKED,
    NEW,
    PATH,
    REJECTED,
    REPEATED,
    START,
    Graph,
    Shown,
    trace,
)
from nar_plugins.generators.canvas.base import Pass
from nar_plugins.generators.left_to_right.base import LeftToRightGenerator
from nar_plugins.hub import from_pretrained

SHORT = {"max_len_a": 0, "max_len_b": 12}
ALWAYS = {"cpu": True, "retain_iter_history": True}
MODELS = {
    "ar": ("transformer_tiny",),
    "heads": ("blockwise_tiny",),
    "bang": ("bang_tiny",),
    "cmlm": ("cmlm_tiny",),
    "nat": ("nat_tiny",),
    "uniform": ("nat_tiny", "--source-copy", "uniform"),
    "ctc": ("nat_tiny", "--ctc"),
    "dag": ("dag_tiny",),
}
SYSTEMS = {
    "beam": ("ar", {"beam": 5}),
    "greedy": ("ar", {"beam": 1}),
    "blockwise": ("heads", {"beam": 1, "verify_block": 4}),
    "jacobi": ("ar", {"generator": "blockwise", "verify_block": 4}),
    "adaptive": ("bang", {"bang_tau": 0.3}),
    "nar": ("bang", {"bang_policy": "nar"}),
    "bang ar": ("bang", {"bang_policy": "ar", "beam": 1}),
    "verify": ("bang", {"bang_policy": "verify"}),
    "cascade": ("bang", {"bang_policy": "cascade"}),
    "release": ("bang", {"bang_policy": "block", "bang_release_output": True}),
    "mask_predict": ("cmlm", {"iterations": 4}),
    "confidence": ("cmlm", {"schedule": "confidence", "confidence_threshold": 0.6}),
    "dedup": ("cmlm", {"iterations": 2, "dedup": "token"}),
    "fertilities": ("nat", {}),
    "noisy_parallel": ("nat", {"generator": "noisy_parallel", "rescorer": "ar"}),
    "lengths": ("uniform", {"length_beam": 3}),
    "ctc": ("ctc", {}),
    "ctc beam": ("ctc", {"ctc_beam": 4}),
    "dag": ("dag", {"dag_decode": "viterbi"}),
    "lookahead": ("dag", {"dedup": "token"}),
    "joint": ("dag", {"dag_decode": "joint-viterbi", "length_beam": 4, "rescorer": "ar"}),
}
LINES = ["w1 w2 w3", "w4", "w9 w9 w9 w2 w1 w7 w8 w1", "unheard w3", "w5 w6 w5 w6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("trace")
    models = {name: save(root / f"{name}.pt", *flags) for name, flags in MODELS.items()}
    return Namespace(data=corpus(root / "text", [("w1", "w1")]), models=models, loaded={})


def load(made, system: str, **more):
    """The translator of a system; one that is asked for again without ``more`` is loaded once."""
    if not more and system in made.loaded:
        return made.loaded[system]
    model, options = SYSTEMS[system]
    paths = {name: str(made.models[options[name]]) for name in ("rescorer",) if name in options}
    short = {} if model in ("ctc", "dag") else SHORT
    loaded = from_pretrained(made.models[model], made.data, **{**ALWAYS, **short, **options, **paths, **more})
    return loaded if more else made.loaded.setdefault(system, loaded)


def words(frame, *states) -> list:
    return [cell.text for cell in frame.cells if not states or cell.state in states]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_last_frame_is_the_translation_and_the_passes_are_counted(made, system):
    translator = load(made, system)
    for line in LINES:
        found, (wanted,) = trace(translator, line), translator.translate([line])
        if isinstance(translator.decoder.generator, LeftToRightGenerator):
            # how many tokens are drafted depends on the calls before, and rounding on it
            assert found.translation.score == pytest.approx(wanted.score, abs=1e-5)
            assert found.translation == wanted._replace(score=found.translation.score)
        else:
            assert found.translation == wanted
        last = [w for w in words(found.frames[-1], KEPT, NEW, ACCEPTED, CORRECTED) if w != "</s>"]
        assert last == [w for w in wanted.tokens if w != "</s>"]
        assert found.frames[-1].number == wanted.passes > 0
        numbers = [frame.number for frame in found.frames]
        assert numbers == sorted(numbers) and {*numbers} == {*range(1, wanted.passes + 1)}
        assert found.seconds > 0 and found.source == line.replace("unheard", "<unk>").split()
    assert getattr(translator.decoder.generator, "observer", None) is None


@pytest.mark.parametrize("system", ["greedy", "mask_predict", "ctc", "dag", "adaptive"])
def test_an_empty_source_has_no_more_passes_than_its_translation(made, system):
    translator = load(made, system)
    (wanted,) = translator.translate([""])
    found = trace(translator, "")
    assert found.translation == wanted and len(found.frames) == (len(wanted.tokens) + 1 if system == "greedy" else 0)


@pytest.mark.parametrize("system", ["greedy", "mask_predict", "ctc"])
def test_the_source_is_what_the_model_reads(made, system):
    symbols = {"greedy": "<pad>"}.get(system, "<unk>")  # padding is a word to an autoregressive model
    assert trace(load(made, system), "w1 <pad> w2 </s> <mask>").source == ["w1", symbols, "w2", "</s>", "<unk>"]


def test_mask_predict_masks_as_many_as_its_schedule_says(made):
    translator = load(made, "mask_predict")
    for line in LINES:
        frames = trace(translator, line).frames
        length = len(frames[0].cells)
        masks = [len(words(frame, MASKED)) for frame in frames[::2]]
        assert masks == [length, *(max(1, length * (4 - done) // 4) for done in (1, 2, 3))]
        for before, after in zip(frames[::2], frames[1::2]):
            predicted = [cell.state == MASKED for cell in before.cells]
            assert [cell.state == NEW for cell in after.cells] == predicted
            assert all(0 <= cell.percent <= 100 for cell in after.cells)
            kept = [(a.text, a.percent) == (b.text, b.percent) for a, b in zip(before.cells, after.cells)]
            assert all(same or new for same, new in zip(kept, predicted))
        for after, again in zip(frames[1::2], frames[2::2]):  # the least probable ones
            masked = [cell.percent for cell, now in zip(after.cells, again.cells) if now.state == MASKED]
            kept = [cell.percent for cell, now in zip(after.cells, again.cells) if now.state == KEPT]
            assert max(masked) <= min(kept, default=100)


def test_a_pass_of_blockwise_is_its_drafts_and_what_became_of_them(made):
    translator = load(made, "blockwise")
    states = set()
    for line in LINES:
        found = trace(translator, line)
        (nbest,) = translator.hypotheses([line])
        by_pass = {n: [*group] for n, group in itertools.groupby(found.frames, lambda frame: frame.number)}
        for number, frames in by_pass.items():
            after, decided = frames[-1], nbest[0]["accepted"][number - 1]
            assert len(words(after, ACCEPTED, CORRECTED, NEW)) == decided
            states |= {cell.state for cell in after.cells}
            if len(frames) == 2:
                drafts = words(frames[0], DRAFT)
                assert sorted(words(after, ACCEPTED, REJECTED)) == sorted(drafts)
                accepted = words(after, ACCEPTED)
                assert drafts[: len(accepted)] == accepted
    assert {ACCEPTED, REJECTED, CORRECTED, KEPT} <= states


def test_a_pass_of_bang_shows_what_the_policy_drops(made):
    frames = [frame for line in LINES for frame in trace(load(made, "adaptive"), line).frames]
    assert all("mask" in frame.label for frame in frames[::2]) and all("kept" in frame.label for frame in frames[1::2])
    dropped = [cell for frame in frames for cell in frame.cells if cell.state == REJECTED]
    assert dropped
    for frame in frames[1::2]:
        new = [cell.percent for cell in frame.cells if cell.state == NEW]
        assert new and min(new[1:], default=100) >= 30
        first = next((cell.percent for cell in frame.cells if cell.state == REJECTED), 0)
        assert first <= 30


def test_a_cascade_says_where_it_decodes_again(made):
    translator = load(made, "cascade", bang_min_score=0.0)
    labels = [frame.label for frame in trace(translator, LINES[0]).frames]
    assert not labels[1].startswith("decoded again") and labels[2].startswith("decoded again: ")
    assert sum(label.startswith("decoded again") for label in labels) == 2


def test_the_path_of_ctc_is_shown_before_it_is_collapsed(made):
    translator, states = load(made, "ctc"), set()
    for line in LINES:
        empty, path, collapsed = trace(translator, line).frames
        assert {cell.state for cell in empty.cells} == {MASKED} and len(empty.cells) == len(path.cells)
        assert words(path, NEW) == words(collapsed)
        for before, cell in zip(path.cells, path.cells[1:]):
            assert (cell.state == REPEATED) == (cell.text == before.text and cell.state != EMPTY)
        states |= {cell.state for cell in path.cells}
    assert {NEW, REPEATED} <= states


def test_a_path_has_blanks_and_repetitions():
    symbols = dictionary(2)
    blank, pad, one, two = symbols.add_symbol("<mask>"), symbols.pad(), 4, 5
    generator = Namespace(blank=blank, dedup=Namespace(keep=lambda tokens: range(len(tokens))))
    shown = Shown(Namespace(decoder=Namespace(generator=generator), task=Namespace(target_dictionary=symbols)))
    path = torch.tensor([[one, one, blank, one, two, blank, pad]])
    event = Pass(path, torch.full(path.shape, 0.25).log(), path.ne(pad))
    best = {"tokens": torch.tensor([one, one, two]), "positional_scores": torch.zeros(3)}
    empty, after, collapsed = shown.frames(best, [event])
    assert [cell.state for cell in after.cells] == [NEW, REPEATED, EMPTY, NEW, NEW, EMPTY]
    assert words(after) == ["w0", "w0", "", "w0", "w1", ""] and {cell.percent for cell in after.cells} == {25}
    assert len(empty.cells) == 6 and words(collapsed) == ["w0", "w0", "w1"]
    assert collapsed.label == "blanks and repetitions dropped" and collapsed.number == 1


@pytest.mark.parametrize("system", ["dag", "lookahead", "joint"])
def test_the_graph_is_shown_with_its_path(made, system):
    translator = load(made, system)
    for line in LINES:
        found = trace(translator, line)
        empty, words_, path, tokens, *rest = found.frames
        assert {cell.state for cell in empty.cells[1:]} == {MASKED} and not empty.arcs and not tokens.arcs
        assert [frame.cells[0].state for frame in (empty, words_, path)] == [START] * 3
        assert len(empty.cells) == len(words_.cells) == len(path.cells) <= 8 * (len(line.split()) + 1)
        assert {cell.state for cell in words_.cells[1:]} == {NEW} and {c.state for c in path.cells[1:]} <= {PATH, ASIDE}
        assert words(path, PATH) == words(tokens) and words(words_) == words(path)
        chosen = [arc for arc in path.arcs if arc.chosen]
        assert not any(arc.chosen for arc in words_.arcs)
        # the chosen links lead from the start over every vertex of the path to its end
        on = [0, *(i for i, cell in enumerate(path.cells) if cell.state == PATH)]
        assert sorted((arc.start, arc.end) for arc in chosen) == list(zip(on, on[1:])) and on[-1] == len(path.cells) - 1
        assert {arc.end: arc.percent for arc in chosen} == {i: path.cells[i].percent for i in on[1:]}
        # token and link: the product of the other two frames' numbers
        for i, cell in zip(on[1:], tokens.cells):
            product = words_.cells[i].percent * path.cells[i].percent / 100
            assert cell.percent == pytest.approx(product, abs=1.6)
        assert rest or [w for w in words(tokens) if w != "</s>"] == found.translation.tokens
        assert [frame.label for frame in rest] == ["repetitions dropped"] * (system == "lookahead" and bool(rest))


def test_a_graph_leaves_out_what_hardly_any_path_visits():
    """0 leads to 1 (0.996) and 2 (0.004); both lead to 3, the end."""
    symbols = dictionary(3)
    links = [[0, 0.996, 0.004, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    graph = Graph([4, 4, 5, 2], [-1.0] * 4, links, [0, 0.996, 0.004, 1], [[1, 3]])
    dedup = Namespace(keep=lambda tokens: range(len(tokens)))
    translator = Namespace(
        decoder=Namespace(generator=Namespace(blank=None, dedup=dedup)), task=Namespace(target_dictionary=symbols)
    )
    lprobs = [-1.25, -1.5]
    event = Pass(torch.tensor([[4, 2]]), torch.tensor([lprobs]), torch.ones(1, 2, dtype=torch.bool), graph)
    best = {"tokens": torch.tensor([4, 2]), "positional_scores": torch.tensor(lprobs)}
    empty, after, path, tokens = Shown(translator).frames(best, [event])
    assert empty.label == "4 vertices; 1 that hardly any path visits are left out" and len(empty.cells) == 3
    assert [(arc.start, arc.end, arc.percent) for arc in after.arcs] == [(0, 1, 100), (1, 2, 100)]
    assert words(path) == ["", "w0", "</s>"] and words(tokens) == ["w0", "</s>"]
    graph.paths[0][:] = [2, 3]  # a vertex on the path is shown, however improbable
    empty, after, path, _ = Shown(translator).frames(best, [event])
    assert words(path, PATH) == ["w1", "</s>"] and words(path, ASIDE) == ["w0"] and path.cells[2].percent == 0
    assert [(arc.start, arc.end) for arc in path.arcs if arc.chosen] == [(0, 2), (2, 3)]


def test_no_frame_is_another_candidates(made):
    for system in ("mask_predict", "noisy_parallel", "lengths"):
        translator = load(made, system)
        for line in LINES:
            ((best, *_),) = translator.hypotheses([line])
            frame = trace(translator, line).frames[-1]
            percents = [round(100 * lprob.exp().item()) for lprob in best["positional_scores"]]
            assert [cell.percent for cell in frame.cells] == percents


def test_an_observer_of_before_is_there_again_after_an_error(made, monkeypatch):
    translator = load(made, "ctc")
    seen = []
    translator.decoder.generator.observer = seen.append
    trace(translator, "w1")
    assert seen == []
    translator.translate(["w1"])
    assert len(seen) == 1
    monkeypatch.setattr(translator, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trace(translator, "w1")
    assert translator.decoder.generator.observer == seen.append


def shown(*symbols: str) -> list:
    """The text and ``joined`` of the symbols of a dictionary."""
    made = dictionary(0)
    for symbol in symbols:
        made.add_symbol(symbol)
    translator = Namespace(decoder=Namespace(generator=None), task=Namespace(target_dictionary=made))
    cells = Shown(translator).cells([*range(4, len(made)), 2], KEPT)
    return [(cell.text, cell.joined) for cell in cells]


def test_pieces_are_shown_without_the_mark_of_their_kind():
    assert shown("\u2581go", "ing", "\u2581") == [("go", False), ("ing", True), ("\u2423", False), ("</s>", False)]
    assert shown("##ing", "##s", "go") == [("ing", True), ("s", True), ("go", False), ("</s>", False)]
    assert shown("go@@", "ing") == [("go@@", False), ("ing", False), ("</s>", False)]


def test_a_probability_that_is_none_is_not_shown():
    translator = Namespace(decoder=Namespace(generator=None), task=Namespace(target_dictionary=dictionary(2)))
    cells = Shown(translator).cells([4, 5, 4], NEW, [-torch.inf, 0.0, float(torch.tensor(0.5).log())])
    assert [cell.percent for cell in cells] == [None, 100, 50]
