"""One small exported model that the tests of serving share."""

import pytest
from small_exports import export_small


@pytest.fixture(scope="session")
def exported(schema, tmp_path_factory):
    """The directory of an SDIM's versions, of which there is one; it has all signatures."""
    directory = tmp_path_factory.mktemp("sdim")
    return export_small("sdim", schema, directory)[-1].parent
