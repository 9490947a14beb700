"""The benchmark of signatures, at its smallest settings."""

import pytest
import run_tool
import signature_latency
import small_exports


@pytest.mark.slow
@small_exports.needs_compiler
def test_measures_the_signatures_that_a_model_has(monkeypatch, tmp_path_factory):
    binary = small_exports.compiled(tmp_path_factory)
    monkeypatch.setattr(signature_latency, "compile_program", lambda directory: binary)
    printed = run_tool.run(
        signature_latency, "--models=avg_pooling,sdim", "--length=4", "--candidates=2",
        "--requests=2",
    )  # fmt: skip
    (table,) = run_tool.tables(printed)
    assert [bool(cell) for cell in table["avg_pooling"]] == [True] * 3 + [False] * 3
    assert all(float(cell) > 0 for cell in table["sdim"])
