"""The benchmarks without tests of their own, at their smallest settings."""

import diffumin_cost
import hierdiffuse_cost
import input_speed
import metrics_speed
import optimizer_speed
import pytest
import run_tool
from absl import flags

pytestmark = pytest.mark.slow

SHORT = ("--seconds=0.01", "--turns=1")


def test_input_speed():
    printed = run_tool.run(
        input_speed, "--lengths=5", "--count=100", "--batch_size=10", "--repeats=1"
    )
    assert "length     5: " in printed and " samples/s (from " in printed


def test_metrics_speed():
    printed = run_tool.run(metrics_speed, "--rows=100,1000", "--repeats=1")
    rows = [line.split()[0] for line in printed.splitlines()]
    assert rows == ["rows", "100", "loop", "1,000"]
    status, _, error = run_tool.ended(metrics_speed, "--rows=9")
    assert status == 2 and "`rows` must be at least 10. Received: rows=['9']" in error


def test_optimizer_speed():
    printed = run_tool.run(optimizer_speed, "--table_rows=100", "--ids=10,20", "--repeats=2")
    assert len(printed.splitlines()) == 3


def test_diffumin_cost(capsys):
    """The sampler and the literal one give the same numbers, or it ends with an error."""
    values = flags.FlagValues()
    diffumin_cost.define_flags(values)
    values(["diffumin_cost", "--dim=8", *SHORT])
    diffumin_cost.part_b(values, steps=2)
    (table,) = run_tool.tables(capsys.readouterr().out)
    assert list(table) == ["literal, graph", "lean, graph", "lean, XLA"]
    diffumin_cost.part_f(values, length=10, steps=2)
    (table,) = run_tool.tables(capsys.readouterr().out)
    one, _, none, ratio, *_ = table.values()
    for cells in zip(one, none, ratio, strict=True):
        one_ms, none_ms, quotient = map(float, cells)
        assert quotient == pytest.approx(one_ms / none_ms, rel=0.05)


def test_hierdiffuse_cost():
    (table,) = run_tool.tables(run_tool.run(hierdiffuse_cost, "--parts=c", *SHORT))
    assert list(table) == ["XLA", "graph"]
    assert all(float(ratio) > 1 for *_, ratio in table.values())


def test_parameter_server_cost():
    steps, memory = run_tool.tables(
        run_tool.run_as_user(
            *("tools/benchmarks/parameter_server_cost.py", "--layouts=spread", "--rows=20000"),
            *("--workers=1", "--servers=1", "--lookups=100", *SHORT),
        )
    )
    assert list(steps) == ["spread"]
    assert list(memory) == ["chief 0", "worker 0", "ps 0"]
