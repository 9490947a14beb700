"""One small exported model that the tests of serving share."""

import pathlib
import sys

import pytest
from small_exports import export_small

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tools"))


@pytest.fixture(scope="session")
def exported(schema, tmp_path_factory):
    """The directory of a HierDiffuse's versions, of which there is one."""
    directory = tmp_path_factory.mktemp("hierdiffuse")
    return export_small("hierdiffuse", schema, directory)[-1].parent
