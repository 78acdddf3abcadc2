"""The layers of a graph in 8 bits against those in float32: rounding passes, anything else is refused by name."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nar_plugins.export import layers  # noqa: E402
from nar_plugins.export.int8 import quantise  # noqa: E402
from nar_plugins.export.layers import LIMIT, check_layers, relative_errors  # noqa: E402

INPUTS, HIDDEN, OUTPUTS = 48, 96, 200


def saved(path) -> None:
    """A graph of two layers, the second with a bias and tied to nothing, and a head of lengths."""
    generator = np.random.default_rng(3)
    constants = {
        "first": generator.standard_normal((INPUTS, HIDDEN)),
        "second": generator.standard_normal((OUTPUTS, HIDDEN)) * generator.lognormal(0, 1, (OUTPUTS, 1)),
        "bias": generator.standard_normal(OUTPUTS) * 5,
        "length_head": generator.standard_normal((HIDDEN, 7)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="1"),
        helper.make_node("Relu", ["h"], ["r"], name="2"),
        helper.make_node("Gemm", ["r", "second", "bias"], ["y"], name="3", transB=1),
        helper.make_node("MatMul", ["r", "length_head"], ["lengths"], name="4"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "lengths")],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


@pytest.fixture
def graphs(tmp_path):
    """The graph, and the same one in 8 bits."""
    saved(tmp_path / "two.onnx")
    plain = onnx.load(str(tmp_path / "two.onnx"))
    assert {*quantise(tmp_path / "two.onnx").layers} == {"first", "second"}
    return plain, onnx.load(str(tmp_path / "two.onnx"))


@pytest.fixture
def calls():
    """Two calls, whose rows have common parts, outliers, and one of zeros."""
    generator = np.random.default_rng(4)
    shared = generator.standard_normal(INPUTS)
    calls = [{"x": (generator.standard_normal((rows, INPUTS)) + shared).astype(np.float32)} for rows in (5, 30)]
    calls[0]["x"][0], calls[1]["x"][3, 7] = 0, 40
    return calls


def changed(model, name: str, change) -> None:
    """Change a constant of a model."""
    (constant,) = (each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(constant).copy()
    constant.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))


def one(number: int, factor: float):
    def change(array):
        array[number] *= factor
        return array

    return change


def test_what_rounding_explains_passes(graphs, calls):
    assert 0.5 < check_layers(*graphs, calls) < LIMIT / 2


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("first.scales", one(17, 1.15), "output 17 of first is "),
        ("second.scales", one(150, 0.85), "output 150 of second is "),
        ("second.scales", lambda scales: scales[::-1], "of second is "),
        ("second.scales", lambda scales: scales * 128 / 100, "of second is "),
        ("first.scales", one(3, np.nan), "output 3 of first is nan times"),
        ("second.int8", lambda values: np.roll(values, 1, 0), "of second is "),
        ("int8.share", lambda share: share * 1.5, "of first is "),
        ("int8.most", lambda most: most * 0.8, "of first is "),
        ("bias", one(9, 4.0), "output 9 of second is "),
    ],
)
def test_one_wrong_number_is_refused_by_the_name_of_its_layer(graphs, calls, name, change, said):
    plain, quantised = graphs
    changed(quantised, name, change)
    with pytest.raises(
        ValueError, match="its weights or scales in the graph are wrong; export it without --int8$"
    ) as error:
        check_layers(plain, quantised, calls)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_of_many_rows_some_are_taken_of_every_call(graphs, monkeypatch):
    plain, _ = graphs
    monkeypatch.setattr(layers, "ROWS", 9)
    calls = [{"x": np.arange(rows * INPUTS, dtype=np.float32).reshape(rows, INPUTS)} for rows in (20, 2, 1)]
    found = layers.float_tensors(plain, ["x", "h"], calls)
    assert found["x"][:, 0].tolist() == [0, 7 * INPUTS, 14 * INPUTS, 0, INPUTS, 0]
    np.testing.assert_allclose(found["h"], found["x"] @ numpy_helper.to_array(plain.graph.initializer[0]), rtol=1e-4)


def test_a_layer_that_is_not_there_is_named(graphs, calls):
    plain, quantised = graphs
    (last,) = (node for node in quantised.graph.node if "y" in node.output)
    last.output[0] = "another"
    with pytest.raises(ValueError, match="^second is not in the quantised graph: export it without --int8$"):
        check_layers(plain, quantised, calls)


def test_the_unit_of_errors_is_that_of_rounding():
    generator = np.random.default_rng(5)
    states, matrix = generator.standard_normal((400, 64)), generator.standard_normal((64, 300))
    scales = [np.abs(part).max(axis, keepdims=True) / 127 for part, axis in ((states, 1), (matrix, 0))]
    rounded = [np.rint(part / scale) * scale for part, scale in zip((states, matrix), scales)]
    errors = relative_errors(states, matrix, rounded[0] @ rounded[1] - states @ matrix)
    assert errors.mean() == pytest.approx(1, abs=0.1) and errors.max() < 2
