import copy
import json
import pathlib

import pytest

from tfrec_diffusion import command, datasets, flags, models
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
def read_plan(tmp_path):
    """The plan of a comparison, from its file."""

    def read(comparison=COMPARISON, **arguments):
        path = tmp_path / "comparison.json"
        path.write_text(comparison if isinstance(comparison, str) else json.dumps(comparison))
        return plan.from_file(path, "runs", 2, **arguments)

    return read


@pytest.fixture
def read(read_plan):
    """Entries of a comparison, from its file."""
    return lambda *arguments, **named: read_plan(*arguments, **named).entries


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
        assert all(entry.num_seeds == 2 for entry in entries)
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

    def test_a_data_set_may_tune_its_rows(self, read):
        """But not those that take the settings of another one."""
        wide = {"run": "avg_pooling units=9", "tuned_as": "Mean"}
        other = {**COMPARISON["data_sets"]["Other"], "tune": [["", "embedding_dim=16"]]}
        short, mean, _, wide = read(
            {**COMPARISON, "rows": {**COMPARISON["rows"], "Wide": wide}, "data_sets": {"B": other}}
        )
        rates = ["--learning_rate=0.001", "--learning_rate=0.03"]
        assert short.tune == [rates, ["", "embedding_dim=16"]]
        assert mean.tune == [*short.tune, ["", "units=9"], ["dropout=0.1", ""]]
        assert wide.tune == []

    @pytest.mark.parametrize("tune", ["units=4", ["units=4"], [[]], [[4]], {"units": [4]}])
    def test_other_groups_are_refused(self, read, tune):
        rows = {"Mean": {"run": "avg_pooling", "tune": tune}}
        with pytest.raises(ValueError, match="`tune` of Mean must be a list of lists of strings"):
            read({**COMPARISON, "rows": rows})
        data_sets = {"B": {**COMPARISON["data_sets"]["Other"], "tune": tune}}
        with pytest.raises(ValueError, match="`tune` of B must be a list of lists of strings"):
            read({**COMPARISON, "data_sets": data_sets})

    def test_the_first_row_is_always_there(self, read):
        entries = read(row_names=["Mean"], data_set_names=["Other"])
        assert [(entry.row, entry.data_set.name) for entry in entries] == [
            *(("Short", "Other"), ("Mean", "Other"))
        ]

    def test_a_row_that_others_are_clustered_by_is_trained_with_seed_0_only(self, read):
        short, mean, clusters = read(row_names=["Clusters"], data_set_names=["Other"])
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

    def test_how_data_sets_are_prepared(self, read):
        data_sets = {
            "Made": {"flags": "", "short": 1, "prepare": "types=0 users=50"},
            "Default": {"flags": "", "short": 1, "prepare": ""},
            "There": {"flags": "", "short": 1},
        }
        entries = read({**COMPARISON, "data_sets": data_sets}, row_names=["Short"])
        assert [entry.data_set.options for entry in entries] == [["types=0", "users=50"], [], None]

    def test_a_data_set_may_have_learning_rates_of_its_own(self, read):
        data_sets = copy.deepcopy(COMPARISON["data_sets"])
        data_sets["My logs"]["learning_rates"] = [0.5]
        data_sets["Other"]["learning_rates"] = []
        comparison = {**COMPARISON, "data_sets": data_sets}
        assert [entry.tune for entry in read(comparison, row_names=["Short"])] == [
            *([["--learning_rate=0.5"]], [])
        ]
        entries = read(comparison, row_names=["Short"], learning_rates=["1"])
        assert [entry.tune for entry in entries] == [[["--learning_rate=1"]]] * 2


class TestTunedAs:
    def test_a_row_takes_the_settings_of_another_one(self, read):
        rows = {**COMPARISON["rows"], "Wide": {"run": "avg_pooling units=9", "tuned_as": "Mean"}}
        entries = read({**COMPARISON, "rows": rows}, data_set_names=["Other"])
        assert [entry.row for entry in entries] == ["Short", "Mean", "Clusters", "Wide"]
        assert entries[3].tuned_as is entries[1] and entries[3].tune == []
        assert entries[1].tuned_as is None

    def test_which_is_tuned_though_not_in_a_table(self, read_plan):
        """With seed 0 only, and so is what it is clustered by in turn."""
        rows = {**COMPARISON["rows"], "Wide": {"run": "twin_v2 units=9", "tuned_as": "Clusters"}}
        found = read_plan({**COMPARISON, "rows": rows}, row_names=["Wide"])
        entries = [entry for entry in found.entries if entry.data_set.name == "Other"]
        assert [(entry.row, entry.num_seeds) for entry in entries] == [
            *(("Short", 2), ("Mean", 1), ("Clusters", 1), ("Wide", 2))
        ]
        (table,) = found.tables
        assert [entry.row for entry in table.entries] == ["Short", "Wide"] * 2


class TestTables:
    @pytest.fixture
    def comparison(self):
        """Two tables that share a row, with a claim of each."""
        return {
            **COMPARISON,
            "tables": {
                "Table 1": {
                    "rows": ["Short", "Mean"],
                    "data_sets": ["My logs", "Other"],
                    "caption": "Plain ones.",
                    "figure": {"kind": "line", "points": {"Short": 1, "Mean": 2}},
                },
                "Table 2": {
                    "rows": ["Mean", "Clusters"],
                    "data_sets": ["Other"],
                    "base": "Clusters",
                    "splits": ["late"],
                    "speed": True,
                },
            },
            "claims": [
                {
                    "claim": "Averages are best",
                    "row": "Mean",
                    "against": "Short",
                    "data_sets": ["Other", "My logs"],
                    "why": "So.",
                },
                {
                    "claim": "Later",
                    "paper": "+0.1",
                    "row": "Clusters",
                    "against": "Mean",
                    "data_sets": ["Other"],
                    "split": "late",
                    "minus": {"row": "Mean", "against": "Short", "split": "test"},
                    "expected": "equal within",
                    "margin": 0.01,
                },
            ],
        }

    def test_a_row_of_two_tables_is_trained_once(self, read_plan, comparison):
        found = read_plan(comparison)
        assert [(entry.data_set.name, entry.row) for entry in found.entries] == [
            *(("My logs", "Short"), ("My logs", "Mean")),
            *(("Other", "Short"), ("Other", "Mean"), ("Other", "Clusters")),
        ]
        first, second = found.tables
        assert first.entries == found.entries[:4] and second.entries == found.entries[3:]
        assert (first.name, first.base, first.caption) == ("Table 1", "Short", "Plain ones.")
        assert first.figure.kind == "line" and first.figure.points == {"Short": 1, "Mean": 2}
        assert (second.base, second.speed, second.figure) == ("Clusters", True, None)

    def test_splits_are_those_of_the_flag_unless_it_says(self, read_plan, comparison):
        assert [table.splits for table in read_plan(comparison).tables] == [["test"], ["late"]]
        found = read_plan(comparison, splits=["all"]).tables
        assert [table.splits for table in found] == [["all"], ["late"]]

    def test_claims(self, read_plan, comparison):
        found = read_plan(comparison)
        of_logs, other = found.entries[:2], found.entries[2:]
        one, two = found.claims
        assert (one.text, one.paper, one.why) == ("Averages are best", "", "So.")
        assert (one.expected, one.margin) == ("above", 0)
        assert one.contrasts == [
            ((other[1], other[0], "test"), None),
            ((of_logs[1], of_logs[0], "test"), None),
        ]
        assert (two.paper, two.expected, two.margin) == ("+0.1", "equal within", 0.01)
        assert two.contrasts == [((other[2], other[1], "late"), (other[1], other[0], "test"))]

    def test_of_the_rows_that_are_chosen(self, read_plan, comparison):
        """With the base of each table; what is left without is left out."""
        found = read_plan(comparison, row_names=["Mean"], data_set_names=["Other"])
        assert [entry.row for entry in found.entries] == ["Short", "Mean", "Clusters"]
        assert [[entry.row for entry in table.entries] for table in found.tables] == [
            *(["Short", "Mean"], ["Mean", "Clusters"])
        ]
        assert [len(claim.contrasts) for claim in found.claims] == [1, 1]
        found = read_plan(comparison, row_names=["Short"])
        assert [table.name for table in found.tables] == ["Table 1"] and found.claims == []
        assert {entry.row for entry in found.entries} == {"Short"}

    def test_of_none_is_refused(self, read_plan, comparison):
        del comparison["tables"]["Table 2"], comparison["claims"]
        with pytest.raises(ValueError, match="has no table with"):
            read_plan(comparison, row_names=["Clusters"])


class TestThePackagesOwn:
    EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"

    def test_comparison(self):
        entries = plan.from_file(self.EXPERIMENTS / "comparison.json", "runs", 3).entries
        assert len(entries) == 27 * 5 and {entry.num_runs for entry in entries} == {5}

    def test_paper_tables(self):
        found = plan.from_file(self.EXPERIMENTS / "paper_tables.json", "runs", 3)
        runs = {name: 0 for name in ("Planted", "Taobao", "KuaiRand")}
        for entry in found.entries:
            runs[entry.data_set.name.split()[0]] += entry.num_runs
        # Two trainings at a time, the first take four hours.
        assert runs["Planted"] < 210 and sum(runs.values()) < 550
        assert {entry.num_seeds for entry in found.entries} == {3}
        names = [table.name for table in found.tables]
        assert "DiffuMIN table 2" in names and "HierDiffuse table 2e" in names
        assert all(claim.why == "" or claim.why.endswith(".") for claim in found.claims)

    @pytest.mark.parametrize("name", ["comparison", "paper_tables"])
    def test_settings_are_those_that_there_are(self, name, monkeypatch):
        monkeypatch.chdir(self.EXPERIMENTS.parent)
        for entry in plan.from_file(self.EXPERIMENTS / f"{name}.json", "runs", 3).entries:
            for run in entry.unclustered():
                values = command.parsed(flags.train, run.flags)
                command.settings(values.set, models.get(values.model))
            if entry.data_set.options is not None:
                command.settings(entry.data_set.options, datasets.builder_class(values.dataset))


class TestRuns:
    def test_each_is_a_row(self, tmp_path):
        data_set = DataSet("logs/my", ["--dataset=logs/my"], tmp_path)
        runs = ["din", "din units={1:2} --learning_rate=5e-4", "din"]
        first, second = plan.from_runs(runs, data_set, 3).entries
        assert (first.row, first.run, first.data_set) == ("din", "din", data_set)
        assert second.row == second.run == runs[1]
        assert first.num_runs == 3 and first.tune == []

    def test_they_can_be_tuned(self, tmp_path):
        (entry,) = plan.from_runs(["din"], DataSet("a", [], tmp_path), 3, ["0.1", "0.2"]).entries
        assert entry.tune == [["--learning_rate=0.1", "--learning_rate=0.2"]]
        assert entry.num_runs == 4
