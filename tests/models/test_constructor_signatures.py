"""Constructor arguments of every model: its own and the inherited ones."""

import inspect
import pydoc

import pytest

from tfrec_diffusion import models

GIVEN = {
    "tower_units": (7, 5),
    "activation": "relu",
    "dropout": 0.25,
    "embedding_dim": 6,
    "embedding_stddev": 0.2,
}


def test_of_din():
    parameters = inspect.signature(models.DIN).parameters
    own = ["schema", "attention_units", "max_length", "activation", "softmax", "cross_features"]
    shared = ["embedding_stddev", "tower_units", "dropout", "embedding_dim", "dtype", "kwargs"]
    assert [*parameters] == own + shared
    assert parameters["tower_units"].kind is inspect.Parameter.KEYWORD_ONLY
    documented = pydoc.plain(pydoc.render_doc(models.DIN))
    assert (
        "DIN(schema, attention_units=(80, 40), max_length=None, activation='dice', " in documented
    )
    assert "tower_units=(200, 80)" in documented


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_inherited_arguments_are_in_signature_and_config_and_used(name, schema):
    parameters = inspect.signature(models.MODELS[name]).parameters
    assert parameters.keys() > {*GIVEN, "schema", "dtype"}
    assert parameters.keys().isdisjoint({"tower_inputs", "self"})
    model = models.create(name, schema=schema, **GIVEN)
    config = model.get_config()
    assert config.keys() == parameters.keys() - {"kwargs"} | {"name"}
    assert config.items() >= GIVEN.items()
    tower = model.get_layer("click.tower")
    assert (tower.units, tower.activation, tower.dropout) == ((7, 5), "relu", 0.25)
    assert {table.dim for table in model.tables.values()} == {6}
    spread = model.tables["user"].embeddings.numpy()[1:].std()
    assert 0.15 < spread < 0.25
