"""Generators by name, their options, and fairseq's options that they refuse."""

import argparse
import dataclasses
from argparse import Namespace

import pytest
from fairseq import options
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks.translation import TranslationConfig
from own_flags import own_actions
from tiny import arguments, model

import nar_plugins  # noqa: F401
from nar_plugins.generators import registry
from nar_plugins.generators.canvas.mask_predict import MaskPredictGenerator
from nar_plugins.generators.options import generation_options, refuse_foreign, refuse_options, refuse_unserved


class Cmlm:
    generators = ("mask_predict",)


class Both:
    generators = ("blockwise", "beam")


class Transformer:
    """A stock model: says nothing about generators."""


def config(**given) -> Namespace:
    """All generators' options at their defaults, but for those given."""
    defaults = {f.name: f.default for c in registry.CONFIGS.values() for f in dataclasses.fields(c) if f.name[0] != "_"}
    return Namespace(**{**defaults, "generator": "auto", **given})


def generation(**given) -> Namespace:
    return generation_options(Namespace(**given))


# -- which generator ---------------------------------------------------------------------------------------------------


def test_auto_asks_the_checkpoints_model():
    assert registry.resolve("auto", [Cmlm()]) == "mask_predict"
    assert registry.resolve("auto", [Transformer()]) == "beam"
    assert registry.resolve("mask_predict", [Cmlm(), Cmlm()]) == "mask_predict"


def test_an_unknown_generator_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="--generator beem does not exist: choose auto, beam, .*mask_predict"):
        registry.resolve("beem", [Cmlm()])


@pytest.mark.parametrize(
    "name, models, said",
    [
        ("beam", [Cmlm()], "--generator beam cannot decode a Cmlm: use --generator auto or mask_predict"),
        ("mask_predict", [Transformer()], "--generator mask_predict cannot decode a Transformer: .* or beam"),
        ("auto", [Cmlm(), Transformer()], "--generator mask_predict cannot decode a Transformer"),
        ("auto", [Transformer(), Cmlm()], "--generator beam cannot decode a Cmlm"),
    ],
)
def test_a_generator_that_a_model_cannot_serve_is_refused(name, models, said):
    with pytest.raises(ValueError, match=said):
        registry.resolve(name, models)


def test_a_generator_registers_once():
    with pytest.raises(ValueError, match="mask_predict is registered twice"):
        registry.register_generator("mask_predict", dataclass=registry.SharedGeneratorConfig)(object)
    assert registry.GENERATORS["mask_predict"] is MaskPredictGenerator


# -- options of generators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, flag",
    [
        (dict(iterations=4), "--iterations"),
        (dict(length_beam=3), "--length-beam"),
        (dict(dedup="word"), "--dedup"),
        (dict(gold_length=True), "--gold-length"),
        (dict(schedule="cosine"), "--schedule"),
        (dict(confidence_threshold=0.5), "--confidence-threshold"),
    ],
)
def test_an_option_of_another_generator_is_refused(given, flag):
    with pytest.raises(ValueError, match=f"{flag} is no option of --generator beam"):
        refuse_foreign(config(**given), "beam")
    refuse_foreign(config(**given), "mask_predict")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("inf")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    cmlm, task = model()
    with pytest.raises(ValueError, match=f"^--confidence-threshold {threshold}: choose a probability, from 0 to 1$"):
        task.build_generator([cmlm], Namespace(confidence_threshold=threshold, schedule="confidence"))


def test_a_threshold_that_nothing_reads_is_refused():
    cmlm, task = model()
    message = "^--confidence-threshold is not read by --schedule cosine: give --schedule confidence$"
    with pytest.raises(ValueError, match=message):
        task.build_generator([cmlm], Namespace(confidence_threshold=0.5, schedule="cosine"))


def test_beam_takes_the_dtype_and_nothing_set_is_refused():
    refuse_foreign(config(), "beam")
    refuse_foreign(config(decode_dtype="bfloat16"), "beam")


@pytest.mark.parametrize("given", [{"iterations": 0}, {"iterations": -1}, {"length_beam": 0}, {"length_beam": -2}])
def test_a_number_below_one_is_refused_by_name(given):
    cmlm, task = model()
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} {value}: at least one"):
        task.build_generator([cmlm], Namespace(**given))


def test_an_option_that_no_generator_has_is_refused():
    cmlm, task = model()
    with pytest.raises(ValueError, match="no generator has an option 'iteration'"):
        task.build_generator([cmlm], Namespace(iteration=4))


def test_the_arguments_of_validation_override_the_flags():
    cmlm, task = model("--iterations", "4", "--length-beam", "3")
    assert task.build_generator([cmlm], Namespace()).config.iterations == 4
    generator = task.build_generator([cmlm], Namespace(iterations=2))
    assert (generator.config.iterations, generator.beam) == (2, 3)


# -- fairseq's options -------------------------------------------------------------------------------------------------

REFUSED = {
    "beam_mt": 2,
    "max_len_a_mt": 1.0,
    "max_len_b_mt": 9,
    "match_source_len": True,
    "lenpen_mt": 2.0,
    "unkpen": 1.0,
    "replace_unk": "@@ ",
    "score_reference": True,
    "prefix_size": 1,
    "no_repeat_ngram_size": 2,
    "sampling": True,
    "sampling_topk": 5,
    "sampling_topp": 0.5,
    "constraints": "ordered",
    "temperature": 0.5,
    "diverse_beam_groups": 2,
    "diverse_beam_strength": 0.1,
    "diversity_rate": 0.1,
    "print_alignment": "hard",
    "lm_path": "lm.pt",
    "lm_weight": 0.5,
    "iter_decode_eos_penalty": 1.0,
    "iter_decode_max_iter": 9,
    "iter_decode_force_max_iter": True,
    "iter_decode_with_beam": 5,
    "decoding_format": "vote",
    "eos_token": "x",
}
SERVED = {
    "nbest": 3,
    "max_len_a": 1.5,
    "max_len_b": 20,
    "min_len": 3,
    "unnormalized": True,
    "lenpen": 0.5,
    "sacrebleu": True,
    "print_step": True,
    "retain_iter_history": True,
    "retain_dropout": True,
    "retain_dropout_modules": ["x"],
    "no_early_stop": True,
    "no_beamable_mm": True,
    "no_seed_provided": True,
    "beam": 1,
    "iter_decode_with_external_reranker": True,
}


@pytest.mark.parametrize("name, value", REFUSED.items())
def test_an_option_of_fairseqs_that_means_nothing_here_is_refused_by_name(name, value):
    with pytest.raises(ValueError) as error:
        refuse_unserved(generation(**{name: value}), "mask_predict", MaskPredictGenerator.honoured)
    assert str(error.value).startswith(f"--{name.replace('_', '-')} cannot be honoured by --generator mask_predict")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, value", SERVED.items())
def test_an_option_of_fairseqs_that_means_something_is_taken(name, value):
    refuse_unserved(generation(**{name: value}), "mask_predict", MaskPredictGenerator.honoured)


def test_every_generation_option_of_fairseq_is_either_refused_or_served():
    names = {f.name for f in dataclasses.fields(GenerationConfig) if not f.name.startswith("_")}
    assert REFUSED.keys() | SERVED.keys() == names
    assert not REFUSED.keys() & SERVED.keys()


@pytest.mark.parametrize("beam", [0, 2, 4, 6])
def test_a_beam_other_than_one_and_fairseqs_five_is_refused(beam):
    with pytest.raises(ValueError, match=f"--beam {beam}: mask_predict has no beam; use --length-beam"):
        refuse_unserved(generation(beam=beam), "mask_predict", MaskPredictGenerator.honoured)


def test_the_options_of_iterative_refinement_name_ours():
    for name, ours in (("iter_decode_max_iter", "--iterations"), ("iter_decode_with_beam", "--length-beam")):
        with pytest.raises(ValueError, match=ours):
            refuse_unserved(generation(**{name: REFUSED[name]}), "mask_predict", MaskPredictGenerator.honoured)


# -- names of flags ----------------------------------------------------------------------------------------------------


def flags(parser) -> list:
    return [flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")]


def own_flags() -> dict:
    """Who -> flags, for the task, the models and the criterions of this package, without those of fairseq's bases."""
    return {
        who: [flag for action in actions for flag in action.option_strings] for who, actions in own_actions().items()
    }


def fairseq_flags() -> dict:
    """Who -> flags, of fairseq's own parsers, before and beside this package's."""
    translation, transformer = argparse.ArgumentParser(), argparse.ArgumentParser()
    gen_parser_from_dataclass(translation, TranslationConfig(), True)
    MODEL_REGISTRY["transformer"].add_args(transformer)
    return {
        "fairseq-train": flags(options.get_training_parser()),
        "fairseq-generate": flags(options.get_generation_parser()),
        "fairseq-interactive": flags(options.get_interactive_generation_parser()),
        "fairseq-validate": flags(options.get_validation_parser()),
        "task translation": flags(translation),
        "model transformer": flags(transformer),
    }


def test_this_package_has_flags_and_they_are_found():
    found = own_flags()
    assert {"--generator", "--iterations", "--length-beam"} <= set(found["task nar_translation"])
    assert {"--length-head", "--bert-init"} <= set(found["model cmlm"])
    assert "--length-loss-factor" in found["criterion nar_loss"]


def test_no_flag_of_this_package_is_one_of_fairseqs():
    theirs = fairseq_flags()
    # --label-smoothing is a flag of another criterion of fairseq's too: only one criterion is in a parser at a time
    for who, ours in own_flags().items():
        for other, names in theirs.items():
            assert not set(ours) & set(names), f"{who} and {other}"


def test_no_two_parts_of_this_package_share_a_flag():
    found = [(who, flag) for who, names in own_flags().items() for flag in names]
    kinds = {}
    for who, flag in found:
        kinds.setdefault(flag, set()).add(who.split()[0])  # of two models, or two criterions, one is in the parser
        assert len(kinds[flag]) == 1, f"{flag} belongs to {kinds[flag]}"
    for who, names in own_flags().items():
        assert len(names) == len(set(names)), who


def test_every_option_of_a_generator_reaches_the_task():
    # fairseq drops the second of two equal names silently; so a parsed value must arrive under its own name
    args = arguments("--iterations", "7", "--length-beam", "3", "--schedule", "cosine", "--dedup", "word")
    assert (args.iterations, args.length_beam, args.schedule, args.dedup) == (7, 3, "cosine", "word")
    for name in registry.option_names():
        assert hasattr(args, name), name


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(beam=0), "--beam 0: at least one hypothesis is needed"),
        (dict(nbest=0), "--nbest 0: at least one output is needed"),
        (dict(nbest=-1), "--nbest -1: at least one output is needed"),
        (dict(max_len_a=float("inf")), "--max-len-a inf: choose a finite number"),
        (dict(max_len_a=float("nan")), "--max-len-a nan: choose a finite number"),
        (dict(lenpen=float("inf")), "--lenpen inf: choose a finite number"),
        (dict(temperature=float("inf")), "--temperature inf: choose a finite number"),
        (dict(unkpen=float("nan")), "--unkpen nan: choose a number"),
    ],
)
@pytest.mark.parametrize("name", sorted(registry.GENERATORS))
def test_a_number_that_nothing_can_use_is_refused_for_every_generator(name, given, said):
    with pytest.raises(ValueError) as error:
        refuse_options(name, generation(**given), config())
    assert str(error.value) == said
