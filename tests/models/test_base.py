import pytest

from tfrec_diffusion import models


def test_an_unknown_model_lists_those_there_are(schema):
    with pytest.raises(
        ValueError,
        match=r"one of \['avg_pooling', 'can', 'dien', .*'twin', 'twin_v2'\]. Received: 'dinn'",
    ):
        models.create("dinn", schema=schema)
