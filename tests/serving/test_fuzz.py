"""Requests broken in every way: each gets scores or an error, and the program lives on."""

from typing import NamedTuple

import numpy as np
import pytest
import small_exports
import tensorflow as tf
from incomplete_requests import incomplete_requests
from saved_model_program import SavedModelProgram
from version_signatures import score, scoring, signature_inputs, signature_values

from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving import OUTPUT
from tfrec_diffusion.serving.example_requests import as_examples

pytestmark = [pytest.mark.slow, small_exports.needs_compiler]

MODELS = ("diffumin", "eta", "hierdiffuse", "sdim", "sim_hard")
EXTREME = {
    "i": np.array([-(2**63), 2**63 - 1, -2, -1, 0]),
    "f": np.array([np.nan, np.inf, -np.inf, 3e38, -0.0]),
    "b": np.array([True, False]),
    "O": np.array([b"\0", b"\xff\xfe", b"a" * 5000, "Ü\n\t", b"category 1"], object),
}


class Served(NamedTuple):
    schema: Schema
    inputs: dict
    program: SavedModelProgram

    def scores(self, requests):
        """By each signature that gives some."""
        names = scoring(self.inputs)
        return {name: score(self.program, self.inputs, name, requests) for name in names}

    def of(self, requests, signature):
        """The inputs of a signature."""
        return signature_values(self.program, self.inputs, signature, requests)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return small_exports.compiled(tmp_path_factory)


@pytest.fixture(scope="module", params=MODELS)
def served(request, schema, binary, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    _, schema, version = small_exports.export_small(request.param, schema, directory)
    with SavedModelProgram(binary, version) as program:
        yield Served(schema, signature_inputs(version), program)


def extreme(rng, x):
    x = x.copy()
    chosen = rng.random(x.shape) < 0.5
    x[chosen] = rng.choice(EXTREME[x.dtype.kind].astype(x.dtype), chosen.sum())
    return x


def garbage(rng, x):
    """What is no text, and no serialized example either; numbers stay."""
    texts = [rng.bytes(rng.integers(0, 60)) for _ in range(x.size)]
    return np.array(texts, object).reshape(x.shape) if x.dtype == object else x


def truncated(rng, x):
    texts = [text[: rng.integers(0, len(text) + 1)] for text in x.ravel().tolist()
             if isinstance(text, bytes | str)]  # fmt: skip
    return np.array(texts, object).reshape(x.shape) if x.dtype == object else x


def other_dtype(rng, x):
    dtypes = {np.int64, np.float32, np.float64, np.int32, np.bool_} - {x.dtype.type}
    return np.ones(x.shape, rng.choice(sorted(dtypes, key=str)))


# Of a feature, what they make still fits: it is unknown or missing.
FITTING = (extreme, garbage, truncated)
MUTATIONS = (
    *FITTING,
    other_dtype,
    lambda _, x: x.reshape(-1),
    lambda _, x: x[..., None],
    lambda _, x: x[None],
    lambda _, x: np.zeros((), x.dtype) if x.dtype != object else np.array("", object),
    lambda _, x: x[..., :0],
    lambda _, x: x[..., :1],
    lambda _, x: np.concatenate([x, x], axis=-1),
    lambda _, x: x[:0],
    lambda _, x: x[:1],
    lambda _, x: np.concatenate([x, x]),
)


def mutate(rng, inputs, features):
    """Changes, takes away or adds up to three inputs.

    Returns:
        The inputs, and whether they must get an answer.
    """
    inputs, fits = dict(inputs), True
    count = min(rng.integers(0, 4), len(inputs))
    for name in rng.choice(sorted(inputs), count, replace=False):
        how = rng.random()
        if how < 0.05:
            del inputs[name]
            fits = False
        elif how < 0.1:
            inputs[f"{name} "] = inputs[name]
            fits = False
        else:
            mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
            inputs[name] = mutation(rng, inputs[name])
            fits &= mutation in FITTING and name in features
    return inputs, fits


@pytest.mark.parametrize("seed", range(3))
def test_scores_or_an_error_and_the_program_lives_on(served, seed):
    rng = np.random.default_rng(seed)
    good = incomplete_requests(served.schema, batch=3, candidates=5, length=12, seed=0)
    before = served.scores(good)
    features = served.inputs["serving_default"]
    answered = 0
    for _ in range(200):
        signature = str(rng.choice(sorted(served.inputs)))
        batch, candidates, length = (rng.integers(0, most + 1) for most in (3, 6, 30))
        seed = rng.integers(2**31)
        requests = incomplete_requests(served.schema, batch, candidates, length, seed)
        inputs, fits = mutate(rng, served.of(requests, signature), features)
        try:
            outputs = served.program.run(signature, inputs)
        except tf.errors.InvalidArgumentError as error:
            assert error.message and not fits, (error.message, signature, inputs)
            continue
        answered += 1
        if signature != "user_state":
            scores = outputs[OUTPUT]
            assert scores.dtype == np.float32
            # Of a state that holds NaN there is no score.
            of_nothing = np.isnan(scores) & (signature == "score")
            assert ((scores >= 0) & (scores <= 1) | of_nothing).all(), (signature, inputs)
    assert 30 < answered < 170
    for name, scores in served.scores(good).items():
        np.testing.assert_array_equal(scores, before[name])


def test_inputs_that_differ_in_length_get_an_error(served):
    """Never a broadcast: not of one candidate beside many, nor of one user's history."""
    requests = incomplete_requests(served.schema, batch=3, candidates=5, length=12, seed=0)
    for signature in served.inputs.keys() - {"examples"}:
        inputs = served.of(requests, signature)
        for name, x in inputs.items():
            for axis, length in enumerate(x.shape):
                for other in {0, 1, 2, length + 1} - {length}:
                    changed = np.take(x, np.arange(other) % length, axis)
                    with pytest.raises(tf.errors.InvalidArgumentError):
                        served.program.run(signature, {**inputs, name: changed})


def test_lists_of_an_example_that_differ_in_length_get_an_error(served):
    """Also a user or context feature of two values; an empty list is one of missing values."""
    requests = incomplete_requests(served.schema, batch=3, candidates=5, length=12, seed=0)
    for name in served.inputs["serving_default"]:
        lists = requests[name].reshape(3, -1)
        length = lists.shape[1]
        for other in {1, 2, length + 1} - {length}:
            changed = {**requests, name: np.take(lists, np.arange(other) % length, 1)}
            with pytest.raises(tf.errors.InvalidArgumentError):
                served.program.run("examples", {"examples": as_examples(changed)})


def test_errors_name_what_is_wrong(served):
    requests = incomplete_requests(served.schema, batch=1, candidates=1, length=1, seed=0)
    inputs = served.of(requests, "serving_default")
    without = {name: x for name, x in inputs.items() if name != "item"}
    for wrong, message in (
        (without, "input 'item' (int64) is missing"),
        ({**inputs, "itme": inputs["item"]}, "input 'itme' is not known to the signature"),
        ({**inputs, "item": np.ones((1, 1), "f")}, "input 'item' must be int64. Received: float"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            served.program.run("serving_default", wrong)
        assert caught.value.message == message
    with pytest.raises(tf.errors.FailedPreconditionError, match="no signature 'click'"):
        served.program.run("click", inputs)
