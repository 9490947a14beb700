"""The benchmark of models, on the CPU as far as that goes for a GPU."""

import model_speed
import pytest
import run_tool


def test_ratios_are_to_the_first_setting_of_the_model(capsys):
    step = model_speed.Row("din", "50 rows", "training, batch 4, N = 1", batch_size=4)
    measured = {
        step: (2.0, 0.25),
        step._replace(setting="100 rows"): (3.0, 0.5),
        step._replace(setting="100 rows", step="inference"): (1.0, None),
        step._replace(setting="200 rows"): (None, None),
        step._replace(model="can"): (4.0, None),
    }
    model_speed.print_measured(measured, "title")
    (table,) = run_tool.tables(capsys.readouterr().out)
    assert table == {
        "din, 50 rows, training, batch 4, N = 1": ["2.00", "2,000", "1.00", "0.25"],
        "din, 100 rows, training, batch 4, N = 1": ["3.00", "1,333", "1.50", "0.50"],
        "din, 100 rows, inference": ["1.00", "4,000", "1.00", ""],
        "din, 200 rows, training, batch 4, N = 1": ["out of memory", "", "", ""],
        "can, 50 rows, training, batch 4, N = 1": ["4.00", "1,000", "1.00", ""],
    }


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(model_speed.tf.config, "list_physical_devices", lambda kind: [])
    status, _, error = run_tool.ended(model_speed, "--device=gpu")
    assert status == 2 and error.startswith("error: TensorFlow sees no GPU.")


@pytest.mark.slow
def test_measures_every_setting():
    printed = run_tool.run(
        model_speed, "--device=cpu", "--lengths=8", "--models=din", "--batch_size=4",
        "--dtypes=float32,mixed_bfloat16", "--inference_batches=2", "--candidates=1,3",
        "--inference=graph", "--exported_on_cpu", "--seconds=0.02", "--turns=1",
    )  # fmt: skip
    (table,) = run_tool.tables(printed)
    names = []
    for dtype in ("float32", "mixed_bfloat16"):
        for candidates in (1, 3):
            step = f"inference, batch 2, N = {candidates}"
            names += [f"din, {dtype}, {step}", f"din, {dtype}, exported on a CPU, {step}"]
        names.append(f"din, {dtype}, training, batch 4, N = 1")
    assert list(table) == names
    assert all(
        float(ms) > 0 and float(rate.replace(",", "")) > 0 for ms, rate, *_ in table.values()
    )
    assert [table[name][2] for name in names[:5:2]] == ["1.00"] * 3, "float32 is the measure"


@pytest.mark.slow
def test_measures_tables_under_xla():
    printed = run_tool.run(
        model_speed, "--lengths=8", "--models=avg_pooling", "--batch_size=4",
        "--table_rows=50,100", "--inference_batches=4", "--seconds=0.02", "--turns=1",
    )  # fmt: skip
    (table,) = run_tool.tables(printed)
    assert list(table) == [
        f"avg_pooling, {rows} rows, {kind}, batch 4, N = 1"
        for rows in (50, 100)
        for kind in ("inference", "training")
    ]
