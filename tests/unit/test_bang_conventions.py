"""What the registered ``bang`` does besides its policies: empty sources, ``<s>``, the release's output."""

import math
import random
from argparse import Namespace

import pytest
import torch
from blockwise_twin import EOS, MASK, PAD, sample_of
from test_bang_generator import LIMIT, SOURCE, random_bang, settings_of

from nar_plugins.data.dictionary import BertDictionary
from nar_plugins.generators import registry
from nar_plugins.generators.left_to_right.bang import BangConfig, BangGenerator, ParallelBangGenerator
from nar_plugins.generators.options import generation_options

BOS, EMPTY = 0, 4  # the row of SOURCE that is </s> only
POLICIES = [
    dict(bang_policy="nar"),
    dict(bang_policy="block", bang_block=3),
    dict(bang_policy="prefix", bang_prefix=2),
    dict(bang_policy="adaptive", bang_tau=0.2),
    dict(bang_policy="cascade", bang_min_score=-0.1, bang_tau=0.3),
]


@pytest.fixture(scope="module")
def made():
    return random_bang()


def generator(one, task, kind=ParallelBangGenerator, **settings):
    config = settings_of(BangConfig, settings)
    options = generation_options(Namespace(**{"beam": 1, "max_len_b": LIMIT, **settings}))
    return kind([one], task.target_dictionary, config, options, MASK)


def decode(gen, source=SOURCE):
    return [hypos[0] for hypos in gen.generate(gen.models, sample_of(source))]


def test_it_is_what_the_task_builds(made):
    one, task = made
    assert registry.GENERATORS["bang"] is type(task.build_generator([one], Namespace(beam=1))) is ParallelBangGenerator


@pytest.mark.parametrize("settings", POLICIES)
def test_the_start_symbol_is_never_said(made, settings):
    """The model says it in every second place; without it, it is the model whose logits of it are as low as they can
    be.
    """
    one, task = made
    assert any(BOS in hypo["tokens"] for hypo in decode(generator(*made, BangGenerator, **settings)))
    found = decode(generator(*made, **settings))
    assert not any(BOS in hypo["tokens"] for hypo in found)
    if settings["bang_policy"] == "cascade":
        return
    source = SOURCE[0][SOURCE[0].ne(PAD)]
    encoded = one.encoder(source.unsqueeze(0), src_lengths=torch.tensor([source.numel()]))
    rule, tokens, scores = generator(*made, **settings).policy, [], []
    while not tokens or tokens[-1] != EOS:
        n = rule.masks(len(tokens), LIMIT + 1 - len(tokens))
        x = one.decoder.decode_step(
            torch.tensor([[EOS, *tokens]]),
            torch.tensor([0]),
            one.decoder.start(encoded),
            n,
            torch.tensor([[len(tokens)]]),
            sees_bos=rule.sees_start,
        )
        logits = one.decoder.output_layer(x[0, 0])
        logits[:, MASK] = -math.inf
        lprobs = logits.log_softmax(-1)  # of all words: the ban is in the choice only
        lprobs[:, [PAD, BOS]] = -math.inf
        for j in range(n):
            if len(tokens) + j >= LIMIT:
                lprobs[j, [word for word in range(MASK + 1) if word != EOS]] = -math.inf
            if len(tokens) + j < 1:
                lprobs[j, EOS] = -math.inf
        value, word = lprobs.max(-1)
        count = int(rule.kept(value.unsqueeze(0), torch.tensor([len(tokens)])))
        words = word[:count].tolist()
        words = words[: words.index(EOS) + 1] if EOS in words else words
        tokens, scores = tokens + words, scores + value[: len(words)].tolist()
    assert found[0]["tokens"].tolist() == tokens
    torch.testing.assert_close(found[0]["positional_scores"], torch.tensor(scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", POLICIES)
def test_an_empty_source_has_an_empty_translation_and_touches_no_other(made, settings):
    gen = generator(*made, retain_iter_history=True, **settings)
    found = decode(gen)
    nothing = found[EMPTY]
    assert (nothing["tokens"].tolist(), float(nothing["score"]), nothing["steps"]) == ([EOS], 0.0, 0)
    assert (nothing["accepted"], nothing["history"], nothing["positional_scores"].tolist()) == ([], [], [0.0])
    rows = torch.tensor([row for row in range(6) if row != EMPTY])
    for hypo, row in zip(decode(generator(*made, **settings), SOURCE[rows]), rows.tolist()):
        assert hypo["tokens"].equal(found[row]["tokens"]) and hypo["accepted"] == found[row]["accepted"]
    assert gen.statistics.sentences == 6


def test_empty_sources_alone(made, caplog):
    gen = generator(*made, bang_policy="nar")
    source = torch.tensor([[EOS, PAD, PAD], [EOS, PAD, PAD]])
    assert [hypo["tokens"].tolist() for hypo in decode(gen, source)] == [[EOS], [EOS]]
    with caplog.at_level("INFO"):
        gen.report()
    assert "wasted" not in caplog.text


# -- the release's output
# --------------------------------------------------------------------------------------------------

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ab", "##b", "##bc", "c", "##c"]


def script(tokens) -> str:
    """The text that the release's script makes of an output."""
    kept = []
    for token in tokens:
        if token == "[SEP]":
            break
        if token != "[CLS]" and token != (kept or [None])[-1]:
            kept.append(token)
    words = " ".join(kept).replace(" ##", "").split()
    return " ".join(word for i, word in enumerate(words) if not i or word != words[i - 1])


def test_the_release_drops_words_that_read_alike_whatever_their_pieces(tmp_path, made):
    (tmp_path / "dict.txt").write_text("".join(f"{name} 1\n" for name in NAMES))
    words = BertDictionary.load(str(tmp_path / "dict.txt"))
    config = settings_of(BangConfig, {"bang_policy": "nar", "bang_release_output": True})
    gen = ParallelBangGenerator([made[0]], words, config, generation_options(Namespace(beam=1)), 4)
    rng, differs = random.Random(3), 0
    for text in [
        "a ##b ab [SEP]",
        "a [CLS] a [SEP]",
        "a [CLS] ##b ab ##c [SEP]",
        *(" ".join([*rng.choices(NAMES[5:] + ["[CLS]"], k=9), "[SEP]"]) for _ in range(3000)),
    ]:
        tokens = [words.index(piece) for piece in text.split()]
        found = words.string([tokens[i] for i in gen.kept(tokens)], "wordpiece")
        assert found == script(text.split()), text
        differs += found != words.string(tokens, "wordpiece")
    assert differs > 1000
