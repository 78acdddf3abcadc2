"""What all generators share: the ensemble's mean, banned symbols, statistics at the end of a command, the observer."""

import math
from argparse import Namespace

import pytest
import torch
from blockwise_twin import Oracle, blockwise, greedy, random_models, sample_of
from conftest import source_batch
from fairseq.data import Dictionary
from test_bang_generator import bang, random_bang, settings_of

from nar_plugins.compat.commands import at_end_of_command, command
from nar_plugins.data.dictionary import add_mask
from nar_plugins.generators import options, registry
from nar_plugins.generators.base import banned_on_canvas, banned_symbols, ensemble_mean
from nar_plugins.generators.left_to_right.bang import BangConfig, BangGenerator
from nar_plugins.modules.best_of_rows import ban

SOURCE = source_batch([5, 9, 2, 7, 1, 12], 20)


def test_the_mean_is_that_of_the_probabilities():
    lprobs = list(torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1)).log_softmax(-1))
    lprobs[0][0, 2] = lprobs[1][0, 2] = -math.inf
    lprobs[0][1, 3] = lprobs[1][1, 3] = lprobs[2][1, 3] = -math.inf
    mean = ensemble_mean(lprobs)
    torch.testing.assert_close(mean.exp(), sum(one.exp() for one in lprobs) / 3)
    assert mean[1, 3] == -math.inf and math.isfinite(mean[0, 2])
    assert ensemble_mean(lprobs[:1]) is lprobs[0]
    assert ensemble_mean([lprobs[0], torch.full((4, 7), math.nan)]).isnan().all()


def dictionary(*words):
    made = Dictionary()
    for word in ("a", "b", *words):
        made.add_symbol(word)
    return made, add_mask(made)


class Parallel:
    generators = ("bang", "beam")


def test_the_mask_is_learnt_where_the_file_has_it_and_the_model_reads_text():
    words, mask = dictionary()
    assert banned_symbols(words, mask) == ((mask,), (words.pad(),))
    assert banned_symbols(words, mask, start=True).unwanted == (words.bos(), words.pad())
    words, mask = dictionary("<mask>")
    assert banned_symbols(words, mask, [Namespace(generators=("beam",))]).unlearnt == ()
    assert banned_symbols(words, mask, [Parallel()]).unlearnt == (mask,)
    assert banned_on_canvas(words, mask) == (words.bos(), words.pad(), mask)


def test_a_start_symbol_that_is_the_end_is_not_banned():
    words, mask = dictionary()
    words.bos_index = words.eos()
    assert words.eos() not in banned_on_canvas(words, mask) + banned_symbols(words, mask, start=True).unwanted
    assert ban(torch.zeros(2, 3), (0, 2)).tolist() == [[-math.inf, 0, -math.inf]] * 2


# -- the end of a command ----------------------------------------------------------------------------------------------


def test_what_is_counted_is_logged_once_at_the_end_of_a_command(caplog):
    models, task = random_models()
    task.cfg.generator = "blockwise"
    with caplog.at_level("INFO"):
        with command():
            gen = task.build_generator(models, Namespace(beam=1, max_len_b=9))
            for part in SOURCE.split(2):
                gen.generate(models, sample_of(part))
            assert "mean accepted block" not in caplog.text
        assert caplog.text.count("blockwise: 6 sentences, ") == 1
        task.build_generator(models, Namespace(beam=1)).generate(models, sample_of(SOURCE))  # by a hub: no command
    assert caplog.text.count("mean accepted block") == 1


def test_a_command_that_fails_reports_and_is_over():
    calls = []
    with pytest.raises(KeyError), command():
        at_end_of_command(lambda: calls.append(1))
        raise KeyError
    at_end_of_command(lambda: calls.append(2))
    with command():
        pass
    assert calls == [1]


# -- one loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blockwise", "bang"])
def test_an_observer_sees_every_call(kind):
    if kind == "blockwise":
        models, task = random_models()
        wanted = greedy(models, task, SOURCE, max_len_b=14)
        gen = blockwise(models, task, Oracle([h["tokens"] for h in wanted], 0.3), verify_block=4, max_len_b=14)
    else:
        models, task = random_bang()
        models = [models]
        gen = bang(models, task, bang_tau=0.2)
    calls = []
    gen.observer = lambda call: calls.append((call, call.batch.active.tolist()))
    found = [hypos[0] for hypos in gen.generate(models, sample_of(SOURCE))]
    accepted = [[] for _ in found]
    before = list(range(6))
    for call, after in calls:
        assert call.active.tolist() == before and set(after) <= set(before)
        assert len(call.fed) == len(call.proposed) == len(call.accepted) == len(before)
        for sentence, count in zip(before, call.accepted.tolist()):
            accepted[sentence].append(count)
        before = after
    assert before == [] and accepted == [hypo["accepted"] for hypo in found]
    assert gen.statistics.decoder_calls == len(calls) == max(map(len, accepted))
    assert gen.statistics.sentence_calls == sum(map(len, accepted))


def test_a_policy_that_is_an_alias_changes_no_options():
    config = settings_of(BangConfig, {"bang_policy": "verify", "bang_block": 5})
    before = dict(vars(config))
    assert BangGenerator.served_by(config)[1].verify_block == 5 and vars(config) == before
    for name, cls in registry.GENERATORS.items():
        if name != "bang":
            assert cls.served_by(config) == (name, config)


# -- the table of options ----------------------------------------------------------------------------------------------


def test_every_row_is_of_a_generator():
    rows = [*options.NUMBERS, *options.OPTIONS, *options.MODELS, *options.BATCHES]
    known = registry.GENERATORS.keys() | {"canvas", "any"}
    assert all(set(row.generators) <= known for row in rows)
    assert {options.kind_of(name) for name in registry.GENERATORS} == {"canvas", "bang", "blockwise", "beam"}
    assert options.kind_of("somebody's") == "canvas"


def test_a_row_is_read_for_its_generators_only():
    row = options.Refusal(("canvas",), lambda o: o.iterations < o.least, "--iterations {iterations} of {generator}")
    with pytest.raises(ValueError, match="^--iterations 0 of mask_predict$"):
        options.refuse([row], "mask_predict", Namespace(iterations=0), least=1)
    options.refuse([row], "mask_predict", Namespace(iterations=1), least=1)
    options.refuse([row], "blockwise", Namespace(iterations=0), least=1)
