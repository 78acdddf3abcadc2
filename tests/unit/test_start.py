"""A checkpoint that lacks a model's new parameters starts it; one that has a part of them, or others, is refused."""

import re

import pytest
import tiny

KINDS = {  # architecture -> its new parameters, and the flags that the two refusals name
    "cmlm_tiny": (r"encoder\.length_head\.", "--length-head", "--max-target-positions"),
    "nat_tiny": (r"(encoder\.fertility_head|decoder\.layers\.\d+\.positional_attn)", "", "--encoder-embed-dim"),
    "dag_tiny": (r"decoder\.links\.", "--decoder-attention-heads", "--max-target-positions"),
    "blockwise_tiny": (r"decoder\.proposal_heads\.", "--block-head", "--block-size"),
}


def copied(model) -> dict:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("arch", KINDS)
def test_new_parameters_that_are_wholly_absent_keep_their_start(arch, caplog):
    model, _ = tiny.model(arch=arch)
    before = copied(model)
    new = [key for key in before if re.match(KINDS[arch][0], key)]
    assert new
    other, _ = tiny.model(arch=arch, seed=2)
    model.load_state_dict({key: value for key, value in copied(other).items() if key not in new}, strict=True)
    assert all(model.state_dict()[key].equal(before[key]) for key in new)
    assert f"the checkpoint has no {new[0]} (an AR model's?): it starts from its initialisation" in caplog.text


@pytest.mark.parametrize("arch", ["nat_tiny", "dag_tiny", "blockwise_tiny"])
def test_a_part_of_them_is_refused(arch):
    model, _ = tiny.model(arch=arch)
    first = next(key for key in model.state_dict() if re.match(KINDS[arch][0], key))
    part = {key: value for key, value in copied(model).items() if key != first}
    with pytest.raises(ValueError, match=f"the checkpoint has .*, but no {re.escape(first)}: it is incomplete, or of"):
        model.load_state_dict(part)


@pytest.mark.parametrize("arch", KINDS)
def test_other_shapes_are_refused_naming_the_flags(arch):
    model, _ = tiny.model(arch=arch)
    state = copied(model)
    first = next(key for key in state if re.match(KINDS[arch][0], key))
    state[first] = state[first][:-1]
    flags = KINDS[arch][2]
    with pytest.raises(
        ValueError, match=rf"^{re.escape(first)} is \(.*\) in the checkpoint and .* here: give the .*{flags}"
    ):
        model.load_state_dict(state)
