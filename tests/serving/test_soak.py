"""The soak: a model passes it, and a program that leaks, drifts or lets things pass does not."""

import functools

import numpy as np
import pytest
import run_tool
import small_exports
import soak
import tensorflow as tf
from incomplete_requests import incomplete_requests
from saved_model_program import SavedModelProgram
from version_signatures import signature_inputs

from tfrec_diffusion.serving import OUTPUT

SIZES = soak.Sizes(batch=2, candidates=4, length=20)
INPUTS = {"serving_default": ["item", "user"]}
MB = 1e6


class Program:
    """Scores every candidate 0.5, as a program should.

    Args:
        leak: Bytes a request by which its memory grows.
        drift: What is added to the scores after the hundredth request.
        lenient: Whether broken requests get scores.
    """

    def __init__(self, leak=0, drift=0.0, lenient=False):
        self.leak = leak
        self.drift = drift
        self.lenient = lenient
        self.answered = 0

    @property
    def resident_bytes(self):
        """Grows until the allocator has what it needs; then it is only uneven."""
        settled = min(self.answered, 50) * MB + self.answered % 7 * MB
        return 400 * MB + settled + self.leak * self.answered

    def run(self, _, inputs):
        self.answered += 1
        if len(inputs["user"]) != len(inputs["item"]) and not self.lenient:
            raise tf.errors.InvalidArgumentError(None, None, "not as many users")
        drift = self.drift if self.answered > 100 else 0.0
        return {OUTPUT: np.full(inputs["item"].shape, 0.5 + drift, "f")}


@pytest.fixture(scope="module")
def make(schema, tmp_path_factory):
    known = small_exports.with_vocabularies(schema, tmp_path_factory.mktemp("schema"))
    return functools.partial(incomplete_requests, known)


def test_a_program_as_it_should_be_passes(make):
    report = soak.soak(Program(), INPUTS, make, SIZES, count=500)
    assert len(report.resident_bytes) == 500
    assert (report.changed, report.unnoticed) == (0, 0)
    assert abs(report.growth) < MB and abs(report.slope) < 5000
    assert report.passed(allowed_mb=2)


def test_a_leak_is_measured(make):
    report = soak.soak(Program(leak=20_000), INPUTS, make, SIZES, count=500)
    assert report.slope == pytest.approx(20_000, rel=0.2)
    assert report.growth == pytest.approx(300 * 20_000, rel=0.2)
    assert not report.passed(allowed_mb=2)
    assert report.passed(allowed_mb=20)


def test_a_score_that_changes_by_one_bit_is_noticed(make):
    report = soak.soak(Program(drift=2**-24), INPUTS, make, SIZES, count=300)
    assert report.changed > 10
    assert not report.passed(allowed_mb=100)


def test_a_broken_request_that_gets_scores_is_noticed(make):
    report = soak.soak(Program(lenient=True), INPUTS, make, SIZES, count=300)
    assert report.unnoticed > 10
    assert not report.passed(allowed_mb=100)


@pytest.mark.slow
@small_exports.needs_compiler
def test_a_model_passes(make, exported, tmp_path_factory):
    """All of so few shapes come in the first fifth, which fills oneDNN's cache."""
    few = soak.Sizes(batch=2, candidates=2, length=3)
    version = exported / "1"
    binary = small_exports.compiled(tmp_path_factory)
    with SavedModelProgram(binary, version) as program:
        report = soak.soak(program, signature_inputs(version), make, few, count=400)
    assert (report.changed, report.unnoticed) == (0, 0)
    assert report.passed(allowed_mb=2)


@pytest.mark.slow
@small_exports.needs_compiler
def test_the_command_says_what_it_found(exported, monkeypatch, tmp_path_factory):
    binary = small_exports.compiled(tmp_path_factory)
    monkeypatch.setattr(soak, "compile_program", lambda directory: binary)
    printed = run_tool.run(
        soak, f"--export_dir={exported}", "--requests=20", "--candidates=2", "--batch_size=2",
        "--allowed_mb=1000",
    )  # fmt: skip
    assert "scores that changed: 0; broken requests with scores: 0" in printed
