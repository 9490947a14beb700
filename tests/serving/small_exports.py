"""Small SavedModels with weights that are not the initial ones, and the program that runs them."""

import dataclasses
import os
import shutil

import keras
import pytest
from saved_model_program import compile_program
from small_models import SMALL, perturb, write_vocabularies

from tfrec_diffusion import models
from tfrec_diffusion.serving.version import write_version

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to build a C++ program"
)


def compiled(tmp_path_factory):
    """The program, compiled once by all processes of a test run."""
    directory = tmp_path_factory.getbasetemp()
    return compile_program(directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory)


def with_vocabularies(schema, directory):
    """Writes the vocabularies of the shared test schema; returns the schema that knows them."""
    write_vocabularies(directory)
    return dataclasses.replace(schema, directory=str(directory))


def export_small(name, schema, directory):
    """Exports a small model of the shared test schema.

    Returns:
        The model, the schema that knows its vocabularies, and the version's path.
    """
    schema = with_vocabularies(schema, directory)
    keras.utils.set_random_seed(0)
    # So large that what a model looks at shows in its scores.
    arguments = {"embedding_stddev": 0.5, **SMALL.get(name, {})}
    model = models.create(name, schema=schema, **arguments)
    perturb(model)
    version = write_version(model, directory, directory / "versions")
    return model, schema, version
