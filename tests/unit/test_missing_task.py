"""A command line without its --task, and models of fairseq's own that a task of this package does not serve, are
named; what fairseq offers can be chosen.
"""

import pytest
from fairseq import options
from fairseq.data import encoders
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY
from tiny import arguments, dictionary, model

from nar_plugins import compat


def test_fairseqs_own_nar_models_are_sent_to_their_task():
    with pytest.raises(
        ValueError, match="nonautoregressive_transformer is fairseq's own and needs --task translation_lev"
    ):
        model(arch="nonautoregressive_transformer")


def test_pre_training_is_not_for_a_stock_transformer():
    config = convert_namespace_to_omegaconf(arguments(arch="transformer_tiny", criterion="cross_entropy"))
    pretraining = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(
            options.get_training_parser(), ["data", "--task", "bang_pretraining", "--arch", "bang_tiny"]
        )
    )
    made = TASK_REGISTRY["bang_pretraining"](pretraining.task, dictionary())
    with pytest.raises(ValueError, match="--task bang_pretraining trains --arch bang, not transformer_tiny"):
        made.build_model(config.model)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--iterations", "4"], "--iterations is a flag of --task nar_translation, and this is translation"),
        (["--beam", "1", "--length-beam=3"], "--length-beam is a flag of --task nar_translation"),
        (["--task", "translation_lev", "--bang-policy", "nar"], "--bang-policy is a flag .* this is translation_lev"),
        (["--task"], "--task has no name"),
    ],
)
def test_our_flags_without_our_task_name_it(words, message):
    with pytest.raises(ValueError, match=message):
        options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path", "x.pt", *words])


def test_a_validation_without_a_task_names_it():
    with pytest.raises(ValueError, match="--task is missing"):
        options.parse_args_and_arch(options.get_validation_parser(), ["data", "--path", "x.pt"])


def test_stock_commands_are_left_alone():
    for words in (
        ["--beam", "4", "--left-pad-source"],
        ["--task", "nar_translation", "--iterations", "3"],
        ["--seed", "3"],
    ):
        compat.help_pages.check_task_of_flags(options.get_generation_parser(), words)


@pytest.mark.parametrize("name", ["characters", "bytes"])
def test_sub_words_without_options_can_be_used(name):
    """fairseq offers them, but hydra did not know them."""
    args = options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path", "model.pt", "--bpe", name])
    bpe = encoders.build_bpe(convert_namespace_to_omegaconf(args).bpe)
    assert bpe.decode(bpe.encode("ab c")) == "ab c"
