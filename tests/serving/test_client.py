"""Both clients against the stand-in, with a model whose scores are worked out by hand."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.serving import client as clients
from tfrec_diffusion.serving import stand_in_rest
from tfrec_diffusion.serving.loaded_version import RequestError
from tfrec_diffusion.serving.stand_in_server import StandIn

LIST, ONE = (None, None), (None,)


class Counter(tf.Module):
    """A candidate's score: how often it is in the history, and its price (9 if NaN), and how many
    bytes the user's name has."""

    def __init__(self, signs=1.0):
        super().__init__()
        self.sign = tf.Variable(signs)

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE, tf.string, name="user"),
            tf.TensorSpec(LIST, tf.int64, name="item"),
            tf.TensorSpec(LIST, tf.float32, name="price"),
            tf.TensorSpec(LIST, tf.int64, name="history"),
        ]
    )
    def serving_default(self, user, item, price, history):
        return self.score(item, price, **self.user_state(user, history))

    @tf.function(input_signature=[tf.TensorSpec(ONE, tf.string, name="examples")])
    def examples(self, examples):
        raw = tf.io.parse_example(
            examples,
            {
                "user": tf.io.FixedLenFeature((), tf.string),
                "item": tf.io.RaggedFeature(tf.int64),
                "price": tf.io.RaggedFeature(tf.float32),
                "history": tf.io.RaggedFeature(tf.int64),
            },
        )
        return self.serving_default(
            raw["user"],
            raw["item"].to_tensor(-1),
            raw["price"].to_tensor(),
            raw["history"].to_tensor(-2),
        )

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE, tf.string, name="user"),
            tf.TensorSpec(LIST, tf.int64, name="history"),
        ]
    )
    def user_state(self, user, history):
        return {"length": tf.cast(tf.strings.length(user), tf.float32), "kept": history}

    @tf.function(
        input_signature=[
            tf.TensorSpec(LIST, tf.int64, name="item"),
            tf.TensorSpec(LIST, tf.float32, name="price"),
            tf.TensorSpec(ONE, tf.float32, name="length"),
            tf.TensorSpec(LIST, tf.int64, name="kept"),
        ]
    )
    def score(self, item, price, length, kept):
        times = tf.reduce_sum(tf.cast(item[:, :, None] == kept[:, None, :], tf.float32), axis=-1)
        price = tf.where(tf.math.is_nan(price), 9.0, price)
        return {"click_probability": self.sign * (times + price + length[:, None])}


BIG = 2**53 + 1  # no float64
REQUEST = {
    "user": "Jörg",  # five bytes
    "item": [BIG, BIG - 1, 7],
    "price": [0.25, float("nan"), 0.1],
    "history": [7, BIG, 7],
    "not an input": 1,
}
SCORES = np.array([5 + 1 + 0.25, 5 + 0 + 9, 5 + 2 + 0.1], "f")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Version 2 has the scores above, version 1 their negatives and one signature."""
    directory = tmp_path_factory.mktemp("counter")
    old, new = Counter(-1.0), Counter()
    tf.saved_model.save(old, str(directory / "1"), {"serving_default": old.serving_default})
    names = ("serving_default", "examples", "user_state", "score")
    tf.saved_model.save(new, str(directory / "2"), {name: getattr(new, name) for name in names})
    with StandIn({"counter": directory}) as server:
        yield server


@pytest.fixture(params=["gRPC", "REST"])
def connect(request, server):
    """`connect(...)`: a client of either protocol."""
    opened = []

    def connect(model="counter", server=server, **settings):
        grpc_, rest = (
            (server.address, clients.GrpcClient),
            (server.rest_address, clients.RestClient),
        )
        address, client = grpc_ if request.param == "gRPC" else rest
        opened.append(client(address, model, **{"deadline": 60, **settings}))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def test_scores_of_a_request(connect):
    """Also of integers that are no float64, NaN and text that is not ASCII."""
    scores = connect().score(REQUEST)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, SCORES)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"user": b"\xff\xfe\0"}, 3 + 1.25),
        ({"user": np.array("a\nb")}, 3 + 1.25),
        ({"user": ""}, 1.25),
        ({"history": []}, 5.25),
        ({"history": np.array([BIG] * 2000)}, 5 + 2000.25),
        ({"history": np.array([7], np.int32)}, 5.25),
        ({"price": (1, 2, 3)}, 7),
        ({"price": np.array([0.5, 1, 2])}, 6.5),
    ],
)
def test_values_may_be_python_or_numpy(connect, change, first):
    assert connect().score({**REQUEST, **change})[0] == first


@pytest.mark.parametrize("candidates", [0, 1, 2000])
def test_any_number_of_candidates(connect, candidates):
    request = {**REQUEST, "item": [7] * candidates, "price": [1.5] * candidates}
    assert connect().score(request).tolist() == [8.5] * candidates


def test_a_kept_state_scores_other_candidates(connect):
    client = connect()
    state = client.user_state({"user": "Jörg", "history": [7, BIG, 7]})
    assert state["length"].tolist() == [5] and state["kept"].tolist() == [[7, BIG, 7]]
    candidates = {name: REQUEST[name] for name in ("item", "price")}
    np.testing.assert_array_equal(client.score(candidates, state), SCORES)
    assert client.score({"item": [7], "price": [0.5]}, state).tolist() == [7.5]


def test_no_requests(connect):
    assert connect().score_examples([], "item") == []


def test_many_requests_of_several_lengths(connect):
    short = {"user": b"\xff", "item": [3], "price": [float("nan")], "history": []}
    many = connect().score_examples([REQUEST, short, REQUEST], "item")
    for scores, expected in zip(many, [SCORES, [10], SCORES], strict=True):
        np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": 7}, "'item' must be a sequence of int64. Received: 7"),
        ({"item": [[7]]}, "'item' must be a sequence of int64"),
        ({"item": [1.5]}, "'item' must be a sequence of int64. Received: [1.5]"),
        ({"item": [2**63]}, "'item' must be a sequence of int64"),
        ({"item": ["7"]}, "'item' must be a sequence of int64"),
        ({"item": [True]}, "'item' must be a sequence of int64"),
        ({"item": [[1], [1, 2]]}, "'item' must be a sequence of int64"),
        ({"price": ["1"]}, "'price' must be a sequence of float32"),
        ({"user": 7}, "'user' must be a value of string. Received: 7"),
        ({"user": ["ann"]}, "'user' must be a value of string. Received: ['ann']"),
    ],
)
def test_a_value_that_does_not_fit_is_not_sent(connect, change, message):
    with pytest.raises(clients.InvalidRequest) as error:
        connect().score({**REQUEST, **change})
    assert message in str(error.value)


def test_missing_inputs_are_named(connect):
    with pytest.raises(clients.InvalidRequest, match=r"'user_state' also needs \['history'\]"):
        connect().user_state({"user": "ann"})
    with pytest.raises(clients.InvalidRequest, match=r"also needs \['price', 'user'\]"):
        connect().score({"item": [1], "history": []})


class Tagged(tf.Module):
    """A candidate's score: how many of its tags the user likes, and the sum of its vector (9 if a
    number is NaN)."""

    @tf.function(
        input_signature=[
            tf.TensorSpec(LIST, tf.string, name="likes"),
            tf.TensorSpec((None, None, None), tf.string, name="tags"),
            tf.TensorSpec((None, None, 2), tf.float32, name="image"),
        ]
    )
    def serving_default(self, likes, tags, image):
        liked = (tags[..., None] == likes[:, None, None, :]) & (tags[..., None] != "")
        image = tf.reduce_sum(image, axis=-1)
        image = tf.where(tf.math.is_nan(image), 9.0, image)
        return {"click_probability": image + tf.reduce_sum(tf.cast(liked, tf.float32), axis=(2, 3))}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tagged")
    tf.saved_model.save(Tagged(), str(directory / "1"))
    with StandIn({"tagged": directory}) as server:
        yield server


TAGGED = {
    "likes": ["red", "blue"],
    "tags": [["blue", "green", "red"], ["red"], [], None],
    "image": [[0.25, 0.5], [1, 2], None, (0, -1)],
}


def test_candidates_with_several_values_and_vectors(connect, tagged):
    """Of any number each, and without a vector."""
    client = connect("tagged", tagged)
    assert client.score(TAGGED).tolist() == [2.75, 4, 9, -1]
    assert client.score({**TAGGED, "likes": []}).tolist() == [0.75, 3, 9, -1]
    arrays = {"tags": np.array([["red", "blue"]]), "image": np.array([[1, 2]])}
    assert client.score({**TAGGED, **arrays}).tolist() == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["red"] * 4}, "'tags' must be a sequence of sequences of string"),
        ({"tags": [[1]] * 4}, "'tags' must be a sequence of sequences of string"),
        ({"image": [[1, 2], [1]]}, "'image' must be a sequence of sequences of float32"),
        ({"image": [[1, 2, 3]] * 4}, "(?s).*image|shape|[Ss]hape"),
    ],
)
def test_entries_that_do_not_fit(connect, tagged, change, message):
    with pytest.raises(clients.InvalidRequest, match=message):
        connect("tagged", tagged).score({**TAGGED, **change})


def test_a_version_and_what_it_lacks(connect):
    old = connect(version=1)
    np.testing.assert_array_equal(old.score(REQUEST), -SCORES)
    with pytest.raises(clients.InvalidRequest, match="'counter' has no signature 'user_state'"):
        old.user_state(REQUEST)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "wrong/name"}, "ModelNotFound", "wrong/name"),
        ({"version": 3}, "ModelNotFound", "3"),
        ({"version_label": "new one"}, "InvalidRequest", "label: new one"),
    ],
)
def test_what_the_server_does_not_have(connect, settings, error, message):
    with pytest.raises(getattr(clients, error), match=message):
        connect(**settings).score(REQUEST)


def test_a_version_or_a_label(connect):
    with pytest.raises(ValueError, match="Received: 1 and 'stable'"):
        connect(version=1, version_label="stable")


class Faults:
    """In place of the server's `predict`: each of the errors once, then the answer."""

    def __init__(self, server, *codes):
        self.predict, self.codes, self.calls = server.predict, list(codes), 0

    def __call__(self, request):
        self.calls += 1
        if self.codes:
            raise RequestError(self.codes.pop(0), "a fault")
        return self.predict(request)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_what_may_pass_is_tried_again(connect, server, monkeypatch, code):
    faults = Faults(server, *[grpc.StatusCode[code]] * 3)
    monkeypatch.setattr(server, "predict", faults)
    np.testing.assert_array_equal(connect().score(REQUEST), SCORES)
    assert faults.calls == 4


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARGUMENT", clients.InvalidRequest),
        ("FAILED_PRECONDITION", clients.InvalidRequest),
        ("NOT_FOUND", clients.ModelNotFound),
        ("DEADLINE_EXCEEDED", clients.DeadlineExceeded),
        ("INTERNAL", clients.ServingError),
        ("UNIMPLEMENTED", clients.ServingError),
    ],
)
def test_nothing_else_is_tried_again(connect, server, monkeypatch, code, error):
    faults = Faults(server, grpc.StatusCode[code])
    monkeypatch.setattr(server, "predict", faults)
    with pytest.raises(clients.ServingError) as raised:
        connect().score(REQUEST)
    assert type(raised.value) is error and str(raised.value) == "a fault"
    assert faults.calls == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [("UNAVAILABLE", clients.Unavailable), ("RESOURCE_EXHAUSTED", clients.Overloaded)],
)
def test_the_deadline_ends_the_tries(connect, server, monkeypatch, code, error):
    """Pauses grow, to half a second; one more would end after the deadline."""
    client = connect(deadline=2)
    client.score(REQUEST)
    faults = Faults(server, *[grpc.StatusCode[code]] * 100)
    monkeypatch.setattr(server, "predict", faults)
    pauses = []
    monkeypatch.setattr(clients.time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(clients.time, "sleep", pauses.append)
    monkeypatch.setattr(clients.random, "uniform", lambda low, high: high)
    with pytest.raises(error, match="a fault"):
        client.score(REQUEST)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    assert faults.calls == 9


def test_a_server_that_does_not_answer(connect, server, monkeypatch):
    client = connect()
    client.score(REQUEST)
    over = threading.Event()
    monkeypatch.setattr(server, "predict", lambda request: over.wait())
    client.deadline = 0.2
    with pytest.raises(clients.DeadlineExceeded):
        client.score(REQUEST)
    over.set()
    monkeypatch.undo()
    client.deadline = 60
    np.testing.assert_array_equal(client.score(REQUEST), SCORES)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize("client", [clients.GrpcClient, clients.RestClient])
def test_no_server(client):
    with pytest.raises(clients.Unavailable):
        client(f"127.0.0.1:{free_port()}", "counter", deadline=0.3).score(REQUEST)


def test_a_server_that_comes_back(server, connect, tmp_path):
    model = Counter()
    tf.saved_model.save(model, str(tmp_path / "1"), {"serving_default": model.serving_default})
    ports = free_port(), free_port()
    with StandIn({"counter": tmp_path}, *ports) as first:
        client = connect(server=first)
        np.testing.assert_array_equal(client.score(REQUEST), SCORES)
    with StandIn({"counter": tmp_path}, *ports):
        np.testing.assert_array_equal(client.score(REQUEST), SCORES)


def test_threads_share_a_client(connect):
    client = connect()

    def score(i):
        return client.score({"user": "", "item": [1], "price": [i], "history": [1] * i}).item()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(score, range(50))) == [2 * i for i in range(50)]


def test_signatures_are_asked_for_once(connect, server, monkeypatch):
    asked, metadata = [], server.metadata
    monkeypatch.setattr(server, "metadata", lambda r: asked.append(r) or metadata(r))
    client = connect()
    for _ in range(3):
        client.score(REQUEST)
        client.user_state(REQUEST)
    assert len(asked) == 1


class Prices(tf.Module):
    """A score is a price; the state is the length of the user's name, and twice that."""

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE, tf.string, name="user"),
            tf.TensorSpec(LIST, tf.float32, name="price"),
        ]
    )
    def serving_default(self, user, price):
        return {"click_probability": price + 0 * self.user_state(user)["length"][:, None]}

    @tf.function(input_signature=[tf.TensorSpec(ONE, tf.string, name="user")])
    def user_state(self, user):
        length = tf.cast(tf.strings.length(user), tf.float32)
        return {"length": length, "twice": 2 * length}


class PricesOfItems(Prices):
    """The same, but the price is that of the item, and the state the length alone."""

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE, tf.string, name="user"),
            tf.TensorSpec(LIST, tf.int64, name="item"),
        ]
    )
    def serving_default(self, user, item):
        return {"click_probability": tf.cast(item, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec(ONE, tf.string, name="user")])
    def user_state(self, user):
        return {"length": tf.cast(tf.strings.length(user), tf.float32)}


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prices")
    for number, model in enumerate([Prices(), PricesOfItems()], 1):
        signatures = {name: getattr(model, name) for name in ("serving_default", "user_state")}
        tf.saved_model.save(model, str(directory / str(number)), signatures)
    with StandIn({"prices": directory}) as server:
        yield server


@pytest.fixture
def go_live(two_versions, monkeypatch):
    """`go_live(number)`: that version is the newest."""
    versions = two_versions._models["prices"]
    return lambda number: monkeypatch.setitem(
        two_versions._models, "prices", {number: versions[number]}
    )


WITH_PRICES = {"user": "ann", "price": [0.5, 0.25]}
WITH_ITEMS = {"user": "ann", "item": [3, 4]}


def test_a_version_with_other_inputs_goes_live(connect, two_versions, go_live):
    """Found by the server, or by the client, whose request is of the new version."""
    go_live(1)
    by_server, by_client = (connect("prices", two_versions) for _ in range(2))
    for client in (by_server, by_client):
        assert client.score(WITH_PRICES).tolist() == [0.5, 0.25]
    go_live(2)
    assert by_server.score({**WITH_PRICES, **WITH_ITEMS}).tolist() == [3, 4]
    assert by_client.score(WITH_ITEMS).tolist() == [3, 4]
    go_live(1)
    assert by_client.score(WITH_PRICES).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_version_with_other_outputs_goes_live(connect, two_versions, go_live, before, after):
    states = {1: {"length": [3], "twice": [6]}, 2: {"length": [3]}}
    client = connect("prices", two_versions)
    for number in (before, after):
        go_live(number)
        state = client.user_state({"user": "ann"})
        assert {name: x.tolist() for name, x in state.items()} == states[number]


@pytest.mark.parametrize(("version", "asked"), [(None, 2), (2, 1)])
def test_an_invalid_request_asks_for_the_signatures_again(
    connect, two_versions, monkeypatch, version, asked
):
    """And is not sent again if they are the same; those of a version's number never change."""
    asked_for, metadata = [], two_versions.metadata
    monkeypatch.setattr(two_versions, "metadata", lambda r: asked_for.append(r) or metadata(r))
    faults = Faults(two_versions, grpc.StatusCode.INVALID_ARGUMENT)
    monkeypatch.setattr(two_versions, "predict", faults)
    with pytest.raises(clients.InvalidRequest, match="a fault"):
        connect("prices", two_versions, version=version).score(WITH_ITEMS)
    assert (len(asked_for), faults.calls) == (asked, 1)


def test_rest_keeps_its_connection(server, monkeypatch):
    accepted, accept = [], stand_in_rest.RestServer.process_request
    monkeypatch.setattr(
        stand_in_rest.RestServer, "process_request", lambda *a: accepted.append(a) or accept(*a)
    )
    client = clients.RestClient(server.rest_address, "counter", deadline=60)
    for _ in range(3):
        client.score(REQUEST)
    client.close()
    assert len(accepted) == 1


def test_an_error_that_is_no_json():
    """TF Serving escapes a quote as C does."""
    assert clients._message_of('{ "error": "it\\\'s" }') == '{ "error": "it\\\'s" }'
