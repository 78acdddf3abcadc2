"""The tests' short way to fairseq's configuration ends where fairseq's own ends."""

from unittest import mock

import compositions
import pytest
from fairseq import options
from fairseq.dataclass import utils
from hydra.errors import HydraException

import nar_plugins  # noqa: F401

TASK = ("data", "--task", "nar_translation")
TRAIN = (
    *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "1e-3,5e-4", "--save-dir", "a folder's = name"),
    *("--lr-scheduler", "polynomial_decay", "--total-num-update", "30", "--seed", "7"),
    *("--eval-bleu-args", '{"beam": 2}'),
)
LINES = [
    (options.get_training_parser, (*TASK, "--arch", "cmlm_tiny", "--criterion", "nar_loss", *TRAIN)),
    (options.get_training_parser, (*TASK, "--arch", "nat_tiny", "--criterion", "nar_loss", "--ctc", "--cpu")),
    (options.get_training_parser, ("data", "--arch", "transformer_tiny", "--criterion", "cross_entropy")),
    (options.get_generation_parser, (*TASK, "--path", "a.pt:b.pt", "--iterations", "4", "--remove-bpe")),
    (options.get_interactive_generation_parser, (*TASK, "--path", "a.pt", "--bpe", "sentencepiece", "--input", "é")),
]


@pytest.mark.parametrize("parser, given", LINES)
def test_the_configuration_is_fairseqs(parser, given):
    assert utils.compose is compositions.compose
    args = options.parse_args_and_arch(parser(), list(given))
    first, second = (utils.convert_namespace_to_omegaconf(args) for _ in range(2))
    with mock.patch.object(utils, "compose", compositions.plain):
        wanted = utils.convert_namespace_to_omegaconf(args)
    assert first == wanted and second == wanted
    assert repr(first) == repr(wanted)  # 1 == 1.0 == True


def test_what_is_set_in_one_is_not_in_the_next():
    args = options.parse_args_and_arch(options.get_generation_parser(), [*TASK, "--path", "a.pt"])
    first = utils.convert_namespace_to_omegaconf(args)
    first.generation.nbest, first.task.data = 7, "other"
    second = utils.convert_namespace_to_omegaconf(args)
    assert (second.generation.nbest, second.task.data) == (1, "data")


def test_a_wrong_value_is_refused_in_hydras_words():
    args = options.parse_args_and_arch(options.get_generation_parser(), [*TASK, "--path", "a.pt"])
    said = []
    for compose in (compositions.compose, compositions.plain):
        args.nbest = [1]
        with mock.patch.object(utils, "compose", compose), pytest.raises(HydraException) as error:
            utils.convert_namespace_to_omegaconf(args)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]
