"""Values that no parser has seen, of ``--eval-bleu-args`` and the hub's keywords, are checked like those of flags."""

from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from tiny import model

from nar_plugins.generators import registry
from nar_plugins.generators.option_values import check_json, check_values

WRONG = [
    ("drafter", "hedas", '"hedas": choose auto, heads, jacobi, copy, model'),
    ("accept", "Top", '"Top": choose exact, top'),
    ("bang_policy", "nra", '"nra": choose adaptive'),
    ("decode_dtype", "bf16", '"bf16": choose float32, bfloat16, float16, int8, auto'),
    ("dag_decode", "veterbi", '"veterbi": choose lookahead, greedy, viterbi, joint-viterbi'),
    ("bang_tau", "0.5", '"0.5": give a number'),
    ("verify_block", "4", '"4": give a whole number'),
    ("verify_block", 4.0, "4.0: give a whole number"),
    ("iterations", True, "true: give a whole number"),
    ("iterations", None, "null: give a whole number"),
    ("gold_length", "false", '"false": choose true or false'),
    ("gold_length", 1, "1: choose true or false"),
    ("rescorer", 3, "3: give a string"),
    ("generator", ["beam"], '["beam"]: give a'),
    ("confidence_threshold", float("nan"), "NaN: give a number"),
    ("beam", "5", '"5": give a whole number'),
    ("lenpen", "1", '"1": give a number'),
    ("lenpen", False, "false: give a number"),
    ("max_len_a", {"a": 1}, '{"a": 1}: give a number'),
    ("sampling", 0, "0: choose true or false"),
    ("print_alignment", "harsh", '"harsh": choose hard, soft'),
    ("constraints", True, "true: choose ordered, unordered"),
    ("replace_unk", 1, "1: give a string"),
]


@pytest.fixture(scope="module")
def cmlm():
    return model()


@pytest.mark.parametrize("name, value, said", WRONG)
def test_a_value_of_another_type_is_refused_by_name(cmlm, name, value, said):
    one, task = cmlm
    with pytest.raises(ValueError) as error:
        task.build_generator([one], Namespace(**{name: value}))
    assert str(error.value).startswith(f"--eval-bleu-args: {name} is {said}") and "\n" not in str(error.value)


def test_the_hubs_keywords_are_named_too(cmlm):
    one, task = cmlm
    with pytest.raises(ValueError, match='^iterations is "2": give a whole number'):
        task.build_generator([one], OmegaConf.create({"beam": 1, "iterations": "2"}))


def test_every_default_and_what_a_number_may_be_is_taken():
    for config in (GenerationConfig, *registry.CONFIGS.values()):
        check_values({f.name: f.default for f in fields(config)}, "")
    check_values(
        {
            "lenpen": 1,
            "bang_tau": 0.5,
            "verify_block": None,
            "print_alignment": "soft",
            "retain_dropout_modules": ["x"],
            "generator": "beam",
        },
        "",
    )


@pytest.mark.parametrize("text", ["{iterations: 4}", "[4]", "4", "", None])
@pytest.mark.parametrize("name", ["eval_bleu_args", "eval_bleu_detok_args"])
def test_what_is_no_object_is_refused_naming_the_flag(name, text):
    with pytest.raises(ValueError) as error:
        check_json(name, text)
    assert str(error.value).startswith(f"--{name.replace('_', '-')} {text!r} is no JSON object")
    check_json(name, '{"beam": 1}')


def test_a_training_stops_at_the_flag():
    with pytest.raises(ValueError, match="--eval-bleu-args '4' is no JSON object"):
        model("--eval-bleu", "--eval-bleu-args", "4")
    with pytest.raises(ValueError, match='^--eval-bleu-args: iterations is "4"'):
        model("--eval-bleu", "--eval-bleu-args", '{"iterations": "4"}')


@pytest.mark.parametrize("option", ["bang_tau", "bang_min_score", "confidence_threshold"])
def test_a_number_that_is_none_is_refused(option):
    one, task = model("--" + option.replace("_", "-"), "nan")
    with pytest.raises(ValueError, match=f"^--{option.replace('_', '-')} nan: give a number$"):
        task.build_generator([one], Namespace())


def test_an_unknown_keyword_of_the_hub_is_named_without_a_flag_that_nobody_gave():
    one, task = model()
    with pytest.raises(ValueError, match="^no generator has an option 'bogus'$"):
        task.build_generator([one], OmegaConf.create({"bogus": 2}))


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(min_len=3, max_len_b=2), "--min-len 3 is above the limit of 2 tokens"),
        (dict(temperature=0.0), "--temperature 0.0: choose"),
    ],
)
def test_values_that_fairseqs_search_asserts_are_named(given, said):
    one, task = model(arch="transformer_tiny", criterion="cross_entropy")
    with pytest.raises(ValueError, match=said):
        generator = task.build_generator([one], Namespace(**given))
        sample = {"net_input": {"src_tokens": torch.tensor([[5, 6, 2]]), "src_lengths": torch.tensor([3])}}
        generator.generate([one], sample)
