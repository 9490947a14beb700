import json
import pathlib

import pytest

from tfrec_diffusion.comparison import plan
from tfrec_diffusion.comparison.entry import DataSet

COMPARISON = {
    "rows": {
        "Short": {"run": "din max_length={short}"},
        "Mean": {"run": "avg_pooling", "tune": [["", "units={short}"], ["dropout=0.1", ""]]},
        "Clusters": {
            "run": "twin_v2",
            "clustered_by": "Mean",
            "clustering": "--set=recent={short}",
        },
    },
    "data_sets": {
        "My logs": {"flags": "--dataset=logs --data_dir='my data'", "short": 7},
        "Other": {"flags": "--dataset=taobao", "short": 9},
    },
    "learning_rates": [0.001, 0.03],
}


@pytest.fixture
def read(tmp_path):
    """Entries of a comparison, from its file."""

    def read(comparison=COMPARISON, **arguments):
        path = tmp_path / "comparison.json"
        path.write_text(comparison if isinstance(comparison, str) else json.dumps(comparison))
        return plan.from_file(path, "runs", 2, **arguments)

    return read


class TestFile:
    def test_rows_on_data_sets(self, read):
        entries = read(flags=["--epochs=2"])
        assert [(entry.row, entry.data_set.name, entry.run) for entry in entries] == [
            ("Short", "My logs", "din max_length=7"),
            ("Mean", "My logs", "avg_pooling"),
            ("Clusters", "My logs", "twin_v2"),
            ("Short", "Other", "din max_length=9"),
            ("Mean", "Other", "avg_pooling"),
            ("Clusters", "Other", "twin_v2"),
        ]
        assert entries[0].data_set == DataSet(
            *("My logs", ["--dataset=logs", "--data_dir=my data", "--epochs=2"]),
            pathlib.Path("runs/My_logs"),
        )
        assert all(entry.shown and entry.num_seeds == 2 for entry in entries)
        assert entries[2].clustered_by is entries[1] and entries[5].clustered_by is entries[4]
        assert entries[2].clustering == ["--set=recent=7"] and entries[1].clustered_by is None

    def test_what_rows_are_tuned_by(self, read):
        rates = ["--learning_rate=0.001", "--learning_rate=0.03"]
        short, mean, *_ = read()
        assert short.tune == [rates]
        assert mean.tune == [rates, ["", "units=7"], ["dropout=0.1", ""]]
        assert read(learning_rates=["1e-4"])[0].tune == [["--learning_rate=1e-4"]]
        untuned = {name: COMPARISON[name] for name in ("rows", "data_sets")}
        assert [entry.tune for entry in read(untuned)[:2]] == [[], mean.tune[1:]]

    @pytest.mark.parametrize("tune", ["units=4", ["units=4"], [[]], [[4]], {"units": [4]}])
    def test_other_groups_are_refused(self, read, tune):
        rows = {"Mean": {"run": "avg_pooling", "tune": tune}}
        with pytest.raises(ValueError, match="`tune` of Mean must be a list of lists of strings"):
            read({**COMPARISON, "rows": rows})

    def test_the_first_row_is_always_there(self, read):
        entries = read(row_names=["Mean"], data_set_names=["Other"])
        assert [(entry.row, entry.data_set.name) for entry in entries] == [
            *(("Short", "Other"), ("Mean", "Other"))
        ]

    def test_a_row_that_others_are_clustered_by_is_trained_with_seed_0_only(self, read):
        short, mean, clusters = read(row_names=["Clusters"], data_set_names=["Other"])
        assert short.shown and clusters.shown and not mean.shown
        assert (short.num_seeds, mean.num_seeds, clusters.num_seeds) == (2, 1, 2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"row_names": ["Mean", "Max"]},
                "`rows` must be among ['Short', 'Mean', 'Clusters']. Received: ['Max']",
            ),
            (
                {"data_set_names": ["Mine"]},
                "`datasets` must be among ['My logs', 'Other']. Received: ['Mine']",
            ),
        ],
    )
    def test_unknown_names_are_refused(self, read, arguments, message):
        with pytest.raises(ValueError) as refused:
            read(**arguments)
        assert message in str(refused.value)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"data_sets": {"My logs": {"flags": ""}}}, ": Short on My logs needs 'short'"),
            ({"data_sets": {"My logs": {"short": 7}}}, ": Short on My logs needs 'flags'"),
            (
                {"rows": dict(reversed(COMPARISON["rows"].items()))},
                ": Clusters on My logs needs 'Mean', which neither the data set nor a row above",
            ),
            ({"rows": {}}, " needs a row and a data set"),
        ],
    )
    def test_what_is_missing_is_named(self, read, tmp_path, changed, message):
        with pytest.raises(ValueError) as refused:
            read({**COMPARISON, **changed})
        assert f"{tmp_path}/comparison.json{message}" in str(refused.value)

    @pytest.mark.parametrize(
        ("text", "message"), [("{", " is not JSON: "), ('{"rows": {}}', " needs 'data_sets'")]
    )
    def test_other_files_are_refused(self, read, text, message):
        with pytest.raises(ValueError, match=f"comparison.json{message}"):
            read(text)

    def test_the_packages_own_can_be_read(self):
        path = pathlib.Path(__file__).parents[2] / "experiments" / "comparison.json"
        entries = plan.from_file(path, "runs", 3)
        assert len(entries) == 27 * 5 and {entry.num_runs for entry in entries} == {5}


class TestRuns:
    def test_each_is_a_row(self, tmp_path):
        data_set = DataSet("logs/my", ["--dataset=logs/my"], tmp_path)
        runs = ["din", "din units={1:2} --learning_rate=5e-4", "din"]
        first, second = plan.from_runs(runs, data_set, 3)
        assert (first.row, first.run, first.data_set) == ("din", "din", data_set)
        assert second.row == second.run == runs[1]
        assert first.num_runs == 3 and first.shown and first.tune == []

    def test_they_can_be_tuned(self, tmp_path):
        (entry,) = plan.from_runs(["din"], DataSet("a", [], tmp_path), 3, ["0.1", "0.2"])
        assert entry.tune == [["--learning_rate=0.1", "--learning_rate=0.2"]]
        assert entry.num_runs == 4
