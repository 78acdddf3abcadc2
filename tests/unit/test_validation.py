"""What validation decodes with, what it says meanwhile, and half precision that is for GPUs only."""

import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import source_batch
from tiny import model

from nar_plugins.tasks import base

BLEU = ("--eval-bleu", "--share-all-embeddings")


def built(*flags, **kwargs):
    """A model with random weights, its task and the generator of ``--eval-bleu``."""
    one, task = model(*BLEU, *flags, **kwargs)
    return one.eval(), task, task.sequence_generator


def positions(one, task, generator) -> tuple:
    """Decoder passes, and the most positions of one, for three sentences of 3 to 6 tokens."""
    widths = []
    (prepared,) = generator.models
    decode = prepared.decode
    prepared.decode = lambda canvas, *args: widths.append(canvas.inputs.size(1)) or decode(canvas, *args)
    source = source_batch([3, 4, 6], 20)
    sample = {"id": torch.arange(3), "net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}}
    task.inference_step(generator, [one], sample)
    return len(widths), max(widths)


def test_validation_of_an_untrained_model_is_short():
    passes, widest = positions(*built())
    assert passes == 4 and widest <= 2 * 6 + 20 + 1
    one, task, _ = built()
    with torch.no_grad():  # a length head that likes the largest length best
        one.encoder.length_head.weight[300] = 50 * one.encoder.length_head.weight[300].sign()
    assert positions(one, task, task.sequence_generator)[1] <= 2 * 6 + 20 + 1


def test_flags_and_eval_bleu_args_have_the_last_word():
    _, _, generator = built("--iterations", "7", "--length-beam", "3")
    assert (generator.config.iterations, generator.beam) == (7, 3)
    _, _, generator = built("--eval-bleu-args", '{"iterations": 10, "length_beam": 5, "max_len_b": 50}')
    assert (generator.config.iterations, generator.beam) == (10, 5)
    assert (generator.options.max_len_a, generator.options.max_len_b) == (0, 50)


def test_generation_itself_keeps_its_defaults():
    one, task, _ = built()
    generator = task.build_generator([one], SimpleNamespace())
    assert (generator.config.iterations, generator.beam) == (10, 5)
    assert (generator.options.max_len_a, generator.options.max_len_b) == (0, 200)


@pytest.mark.parametrize(
    "flags, kwargs",
    [
        ((), {"arch": "transformer_tiny", "criterion": "cross_entropy"}),
        (("--eval-bleu-args", '{"beam": 1}'), {"arch": "blockwise_tiny", "criterion": "blockwise_loss"}),
        ((), {"arch": "bang_tiny", "criterion": "bang_loss"}),
        (("--source-copy", "uniform"), {"arch": "nat_tiny"}),
        ((), {"arch": "nat_tiny"}),
    ],
)
def test_outputs_of_every_generator_are_bounded_by_the_source(flags, kwargs):
    _, _, generator = built(*flags, **kwargs)
    options = getattr(generator, "options", generator)
    assert (options.max_len_a, options.max_len_b) == (2, 20)
    inner = getattr(generator, "generator", None)
    assert inner is None or (inner.max_len_a, inner.max_len_b) == (2, 20)


def test_a_canvas_made_of_the_source_is_bounded_already(caplog):
    for flags, arch in ((("--ctc",), "nat_tiny"), ((), "dag_tiny")):
        _, _, generator = built(*flags, arch=arch)
        assert (generator.options.max_len_a, generator.options.max_len_b) == (0, 200)


def test_what_validation_decodes_with_is_said(caplog):
    with caplog.at_level(logging.INFO):
        built()
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("--eval-bleu decodes")]
    assert said == [
        '--eval-bleu decodes by mask_predict with {"iterations": 4, "length_beam": 1, "max_len_a": 2, "max_len_b": 20}'
        ": --eval-bleu-args changes it, fairseq-generate does without"
    ]


def test_progress_is_logged_now_and_then(caplog, monkeypatch):
    clock = iter([0, 4, 11, 15, 24])
    monkeypatch.setattr(base.time, "monotonic", lambda: next(clock))
    progress = base.Progress(40)
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            progress.add(8)
    assert [r.getMessage() for r in caplog.records] == [
        "validation: 16 of 40 sentences in 11 s",
        "validation: 32 of 40 sentences in 24 s",
    ]


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--bf16",), "TPUs"),
        (("--memory-efficient-bf16",), "TPUs"),
        (("--fp16",), "GPUs only"),
        (("--memory-efficient-fp16",), "GPUs only"),
        (("--fp16", "--fp16-no-flatten-grads"), "GPUs only"),
        (("--amp",), None),
        (("--train-dtype", "bfloat16"), None),
    ],
)
@pytest.mark.parametrize("arch", ["cmlm_tiny", "transformer_tiny"])
def test_half_precision_that_cannot_train_here_is_named(flags, said, arch, monkeypatch):
    given = {"arch": arch, "criterion": "nar_loss" if arch == "cmlm_tiny" else "cross_entropy"}
    for cuda, more in ((False, ()), (True, ("--cpu",))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        if said is None:
            model(*flags, *more, **given)
        else:
            with pytest.raises(ValueError, match=f"{flags[0]} .*{said}.*: give --train-dtype bfloat16"):
                model(*flags, *more, **given)
    if said == "GPUs only":
        model(*flags, **given)  # a GPU is there and wanted
