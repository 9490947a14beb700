"""An exported model behind the stand-in, whose scores are Python's by every signature."""

import check_serving
import pytest
import run_tool
import tensorflow as tf

from tfrec_diffusion.serving.stand_in_server import StandIn


def test_scores_of_every_signature_and_a_wrong_one(exported, monkeypatch):
    """The server gets one score of `examples` wrong by a hundredth."""

    def predict(request):
        response = server.version(request.model_spec).predict(request)
        if request.model_spec.signature_name == "examples":
            scores = tf.make_ndarray(response.outputs["click_probability"])
            scores[0, 0] *= 1.01
            response.outputs["click_probability"].CopyFrom(tf.make_tensor_proto(scores))
        return response

    with StandIn({"ranking": exported}) as server:
        monkeypatch.setattr(server, "predict", predict)
        largest = check_serving.differences(
            exported, "ranking", server.address, server.rest_address
        )
    for protocol in ("gRPC", "REST"):
        assert largest.pop(f"{protocol} examples") == pytest.approx(0.01, abs=1e-5)
    assert list(largest) == ["gRPC serving_default", "gRPC score",
                             "REST serving_default", "REST score"]  # fmt: skip
    assert max(largest.values()) <= check_serving.TOLERANCE <= 1e-5


@pytest.mark.slow
def test_as_a_user_runs_it(exported):
    with StandIn({"ranking": exported}) as server:
        printed = run_tool.run_as_user(
            *("tools/serving/check_serving.py", f"--export_dir={exported}"),
            *(f"--address={server.address}", f"--rest_address={server.rest_address}"),
        )
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        f"{protocol} {signature}"
        for protocol in ("gRPC", "REST")
        for signature in ("serving_default", "examples", "score")
    ]
