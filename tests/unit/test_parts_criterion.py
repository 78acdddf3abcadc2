"""The criterion's base: parts of any name, their factors and flags, and what a model must return."""

import math

import pytest
import torch
from fairseq import metrics
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.config_store import ConfigStore
from test_nar_loss import B
from tiny import arguments, model

from nar_plugins.criterions import nar_loss, register_loss_part
from nar_plugins.criterions.nar_loss import NarLoss
from nar_plugins.models.cmlm import CmlmModel
from nar_plugins.modules.losses import LossPart


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(nar_loss, "LOSS_PARTS", dict(nar_loss.LOSS_PARTS))
    monkeypatch.setitem(CRITERION_DATACLASS_REGISTRY, "nar_loss", CRITERION_DATACLASS_REGISTRY["nar_loss"])
    monkeypatch.setattr(NarLoss, "__dataclass", getattr(NarLoss, "__dataclass"))
    monkeypatch.setitem(
        ConfigStore.instance().repo["criterion"],
        "nar_loss.yaml",
        ConfigStore.instance().repo["criterion"]["nar_loss.yaml"],
    )


class Agreeing(CmlmModel):
    """A third party's model with one part more."""

    def forward(self, *args, **kwargs):
        loss = 3 * self.decoder.output_projection.weight[5].sum()
        correct = torch.tensor(1)
        return {**super().forward(*args, **kwargs), "agree": LossPart(loss, loss.detach(), torch.tensor(4), 0, correct)}


def built(*flags):
    one, task = model(*flags)
    one.__class__ = Agreeing
    config = convert_namespace_to_omegaconf(arguments(*flags)).criterion
    return one, task.build_criterion(config)


def test_a_part_without_a_factor_is_added_and_logged_by_its_name():
    one, criterion = built()
    parts = one(**B["net_input"], target=B["target"])
    loss, size, logs = criterion(one, B)
    torch.testing.assert_close(loss, sum(part.loss for part in parts.values()))
    assert int(size) == int(parts["words"].count)  # its targets are not counted
    with metrics.aggregate(new_root=True) as meters:
        NarLoss.reduce_metrics([logs, logs])
    values = meters.get_smoothed_values()
    assert values["agree"] == pytest.approx(float(parts["agree"].loss.detach()) / 4 / math.log(2), abs=1e-3)
    assert values["acc_agree"] == 25 and {"loss", "nll_loss", "ppl", "words", "length"} <= values.keys()


@pytest.mark.parametrize("flags, factor", [((), 0.5), (("--agree-loss-factor", "0.25"), 0.25)])
def test_a_registered_part_has_a_flag(registry, flags, factor):
    register_loss_part("agree", factor=0.5, help="how much the rows agree")
    one, criterion = built(*flags)
    parts = one(**B["net_input"], target=B["target"])
    wanted = parts["words"].loss + parts["length"].loss + factor * parts["agree"].loss
    torch.testing.assert_close(criterion(one, B)[0], wanted)


def test_a_factor_of_a_registered_part_that_the_model_lacks_is_refused(registry):
    register_loss_part("agree", factor=0.5)
    one, task = model()
    assert NarLoss(task)(one, B)[0].isfinite()
    with pytest.raises(ValueError, match="--agree-loss-factor: this model predicts no agree; leave it out"):
        NarLoss(task, factors={"agree": 0.25})(one, B)


@pytest.mark.parametrize(
    "name, said",
    [
        ("length", "the loss part 'length' has a factor in nar_loss already"),
        ("reinforce", "the loss part 'reinforce' has a factor in nar_loss already"),
        ("my part", "the loss part 'my part' needs a name of letters"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused_at_once(registry, name, said):
    with pytest.raises(ValueError, match=said) as error:
        register_loss_part(name)
    assert "\n" not in str(error.value)


def test_a_flag_that_is_taken_is_refused_at_once(registry, monkeypatch):
    add = CmlmModel.add_args
    monkeypatch.setattr(CmlmModel, "add_args", lambda parser: add(parser) or parser.add_argument("--agree-loss-factor"))
    with pytest.raises(ValueError, match="'agree': --agree-loss-factor is a flag already"):
        register_loss_part("agree")
    assert "agree" not in nar_loss.LOSS_PARTS


@pytest.mark.parametrize(
    "returned", [(1, 2), {}, {"length": LossPart(torch.ones(()), torch.ones(()), torch.tensor(1))}]
)
def test_a_model_that_returns_no_losses_is_refused_by_name(monkeypatch, returned):
    one, task = model()
    one.__class__ = Agreeing
    monkeypatch.setattr(Agreeing, "forward", lambda *args, **kwargs: returned)
    with pytest.raises(ValueError, match="Agreeing.forward must return its losses, a LossPart for every name"):
        NarLoss(task)(one, B)
