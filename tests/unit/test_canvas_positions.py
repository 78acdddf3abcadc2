"""The positions of a canvas without a look at its tokens are fairseq's."""

import pytest
import torch
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding

from nar_plugins.modules.fast.table import PreparedPositions, canvas_positions

PAD = 1


def learned():
    return LearnedPositionalEmbedding(30, 8, PAD)


MODULES = {
    "sinusoidal": lambda: SinusoidalPositionalEmbedding(8, PAD, init_size=20),
    "learned": learned,
    "prepared": lambda: PreparedPositions(learned()),
}
CANVASES = {
    "full": [[5, 6, 7], [5, 5, 5]],
    "padded on the right": [[5, 6, 7, 8], [5, 6, PAD, PAD], [5, PAD, PAD, PAD]],
    "padded on the left": [[5, 6, 7], [PAD, 5, 6]],
    "padded inside": [[5, 6, 7, 8], [5, PAD, 6, 7]],
    "wider than the table": [[5] * 25],
}


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("name", MODULES)
def test_real_positions_have_fairseqs_embeddings(name, canvas):
    module, tokens = MODULES[name]().eval(), torch.tensor(CANVASES[canvas])
    calls = []
    counted = module.forward
    module.forward = lambda *given: calls.append(1) or counted(*given)
    padding = tokens.eq(PAD)
    with torch.no_grad():
        found = canvas_positions(module, tokens, padding if padding.any() else None)
        own = sum(calls)
        wanted = module(tokens)
    assert torch.equal(found.expand_as(wanted)[~padding], wanted[~padding])
    looked = canvas in ("padded on the left", "padded inside") or (name, canvas) == (
        "sinusoidal",
        "wider than the table",
    )
    assert own == looked


def test_in_training_padding_has_none():
    tokens = torch.tensor(CANVASES["padded on the right"])
    for name, make in MODULES.items():
        module = make().train()
        with torch.no_grad():
            assert torch.equal(canvas_positions(module, tokens, tokens.eq(PAD)), module(tokens)), name


def test_a_hook_sees_the_tokens():
    seen, tokens = [], torch.tensor(CANVASES["full"])
    module = learned().eval()
    module.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    with torch.no_grad():
        canvas_positions(module, tokens, None)
    assert seen[0] is tokens
