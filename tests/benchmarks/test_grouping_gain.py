"""One record per request gives the metrics of one per impression."""

import grouping_gain
import pytest
import run_tool

from tfrec_diffusion import names
from tfrec_diffusion.datasets.preparation import Preparation, prepare


@pytest.mark.slow
def test_metrics_are_the_same(tmp_path):
    directories = [
        prepare(
            "synthetic",
            data_dir=tmp_path / group_by,
            preparation=Preparation(group_by=group_by),
            users=60,
            items=40,
            categories=5,
            impressions=4,
            history_length=10,
        )
        for group_by in names.GROUPINGS
    ]
    printed = run_tool.run(
        grouping_gain, f"--impressions={directories[0]}", f"--requests={directories[1]}",
        "--model=avg_pooling", "--batch_size=16", "--steps=5", "--turns=1",
    )  # fmt: skip
    (table,) = run_tool.tables(printed)
    assert list(table) == ["impression", "request"]
    impressions, grouped = table.values()
    assert (impressions[1], grouped[1]) == ("1.00", "4.00")
    records = [int(row[0].replace(",", "")) for row in (impressions, grouped)]
    assert records[0] == 4 * records[1]
    assert impressions[-2:] == grouped[-2:], "AUC and log loss"
