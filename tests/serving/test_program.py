"""Scores of both stand-ins for TF Serving equal the model's, for every model and signature."""

from typing import NamedTuple

import numpy as np
import pytest
import small_exports
import tensorflow as tf
from incomplete_requests import incomplete_requests
from saved_model_program import SavedModelProgram
from small_models import VOCABULARIES
from version_signatures import score, scoring, signature_inputs

from tfrec_diffusion.models import MODELS
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving.client import GrpcClient
from tfrec_diffusion.serving.stand_in_server import StandIn

pytestmark = [pytest.mark.slow, small_exports.needs_compiler]


class Served(NamedTuple):
    model: RankingModel
    schema: Schema
    version: str
    inputs: dict
    program: SavedModelProgram

    def scores(self, request, program=None):
        """By each signature that gives some."""
        program = program or self.program
        return {name: score(program, self.inputs, name, request) for name in scoring(self.inputs)}


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return small_exports.compiled(tmp_path_factory)


@pytest.fixture(scope="module", params=sorted(MODELS))
def served(request, schema, binary, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model, schema, version = small_exports.export_small(request.param, schema, directory)
    with SavedModelProgram(binary, version) as program:
        yield Served(model, schema, version, signature_inputs(version), program)


def row(table, value):
    """Of one raw value, by plain Python."""
    if value == table.missing or value != value:
        return 0
    if table.kind == "boundaries":
        return 2 + sum(boundary <= value for boundary in table.boundaries)
    if table.kind == "hash":
        return 2 + int(tf.strings.to_hash_bucket_fast(value, table.rows - 2))
    known = list(VOCABULARIES[table.name])
    return 2 + known.index(value) if value in known else 1


def expected(served, request):
    """The model's own scores of the rows; of each history, the newest real behaviors."""
    schema, rows = served.schema, {}
    for feature in schema.features:
        values = request[feature.name]
        found = [row(schema.table(feature.table), value) for value in values.ravel().tolist()]
        rows[feature.name] = np.array(found, np.int32).reshape(values.shape)
    kept = [np.flatnonzero(key)[-schema.history_length :] for key in rows[schema.history_key]]
    for feature in schema.group("history", "behavior"):
        newest = np.zeros((len(kept), schema.history_length), np.int32)
        for i, real in enumerate(kept):
            newest[i, : len(real)] = rows[feature.name][i, real]
        rows[feature.name] = newest
    return served.model(rows).numpy() * (rows[schema.candidate_key] != 0)


def assert_close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 12, 30])
def test_histories_empty_as_long_as_trained_and_longer(served, length):
    request = incomplete_requests(served.schema, batch=6, candidates=5, length=length, seed=0)
    of_python = expected(served, request)
    for scores in served.scores(request).values():
        assert_close(scores, of_python)


@pytest.mark.parametrize("candidates", [0, 1, 2, 99, 2000])
def test_any_number_of_candidates(served, candidates):
    request = incomplete_requests(served.schema, batch=2, candidates=candidates, length=12, seed=0)
    of_python = expected(served, request)
    assert of_python.shape == (2, candidates)
    for scores in served.scores(request).values():
        assert_close(scores, of_python)


def test_values_unknown_and_missing(served):
    """A row of values never seen, and one with nothing but a candidate."""
    request = {
        "user": np.array(["never seen", ""], object),
        "hour": np.array([99, -1]),
        "item": np.array([[2**62, 5], [100, -1]]),
        "category": np.array([["Bücher", "category 0"], ["", ""]], object),
        "price": np.array([[np.inf, -np.inf], [np.nan, np.nan]], "f"),
        "history_item": np.array([[-(2**63)], [-1]]),
        "history_category": np.array([["x"], [""]], object),
        "history_hour": np.array([[24], [-1]]),
        "history_gap": np.array([[1e30], [np.nan]], "f"),
        "history_size": np.array([[0], [np.nan]], "f"),
    }
    of_python = expected(served, request)
    assert (of_python > 0).tolist() == [[True, True], [True, False]]
    for scores in served.scores(request).values():
        assert_close(scores, of_python)


def test_users_and_candidates_do_not_see_each_other(served):
    request = incomplete_requests(served.schema, batch=5, candidates=100, length=20, seed=0)
    of_candidates = {feature.name for feature in served.schema.group("candidate")}
    for name, together in served.scores(request).items():
        alone = [{key: x[i : i + 1] for key, x in request.items()} for i in range(5)]
        assert_close(np.concatenate([served.scores(x)[name] for x in alone]), together)
        for i in (0, 1, 50, 99):
            one = {k: x[:, i : i + 1] if k in of_candidates else x for k, x in request.items()}
            assert_close(served.scores(one)[name], together[:, i : i + 1])


def test_two_processes_and_two_calls_give_the_same_bits(served, binary):
    sizes = ((1, 100, 12), (7, 3, 20))
    requests = [incomplete_requests(served.schema, *size, seed=0) for size in sizes]
    with SavedModelProgram(binary, served.version) as other:
        for request in requests:
            first, again = served.scores(request), served.scores(request)
            for name, scores in served.scores(request, other).items():
                np.testing.assert_array_equal(scores, first[name])
                np.testing.assert_array_equal(again[name], first[name])


def test_over_grpc(served):
    request = incomplete_requests(served.schema, batch=1, candidates=20, length=12, seed=1)
    of_python = expected(served, request)[0]
    alone = {name: values[0] for name, values in request.items()}
    with StandIn({"model": served.version.parent}) as server:
        client = GrpcClient(server.address, "model", deadline=60)
        assert_close(client.score(alone), of_python)
        assert_close(client.score_examples([alone, alone], "item")[1], of_python)
        if served.model.has_user_state:
            assert_close(client.score(alone, client.user_state(alone)), of_python)
        client.close()
