import pytest
from finished_runs import finish, leave_metrics, leave_predictions

from tfrec_diffusion.comparison import plan, report
from tfrec_diffusion.comparison.claims import Claim, Contrast
from tfrec_diffusion.comparison.entry import DataSet, Entry
from tfrec_diffusion.comparison.picture import draw
from tfrec_diffusion.comparison.table import Figure, Table

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


@pytest.fixture
def entries(tmp_path):
    """Two rows on two data sets, the first of them with results."""
    one, two = (DataSet(name, [], tmp_path / name) for name in ("one", "two"))
    entries = [*rows_on(one, "din", "avg_pooling"), *rows_on(two, "din", "avg_pooling")]
    for entry, aucs in zip(entries, ((0.72, 0.74), (0.76, 0.77)), strict=False):
        for run, auc in zip(entry.of_seeds(), aucs, strict=True):
            finish(run, auc - 0.1, test=auc, test_99=auc / 2)
    return entries


def rows_on(data_set, *runs, seeds=2):
    return plan.from_runs(runs, data_set, seeds).entries


def one_table(entries, splits=("test",)):
    """The plan of a comparison with no other."""
    table = Table("", entries, entries[0].row, list(splits), figure=Figure("bars"))
    return plan.Plan(entries, [table])


def lines(entries, splits=("test",)):
    return list(report.markdown(one_table(entries, splits), {"": "a.png"}))


def write(entries, output, picture):
    report.Report(one_table(entries), output, picture).write()


DIN = "| 0.7300 ± 0.0141 | 0.6300 ± 0.0141 | 0.2700 ± 0.0141 |"
MEAN = "| 0.7650 ± 0.0071 | 0.6650 ± 0.0071 | 0.2350 ± 0.0071 |"
HEADER = [
    "| | AUC | GAUC | log loss | RelaImpr | difference | 95% interval | p |",
    "|---|---|---|---|---|---|---|---|",
]


def row(lines, name):
    """The cells of the row in the only table that has it."""
    (line,) = (line for line in lines if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


class TestMarkdown:
    def test_tables(self, entries):
        for entry in entries[:2]:
            for run in entry.of_seeds():
                leave_predictions(run, noise=0)
        found = lines(entries)
        assert found[0] == "Mean ± standard deviation over 2 seeds."
        assert found[1].startswith("RelaImpr and difference are of the AUC, against din;")
        assert "500 bootstrap samples of the users" in found[1]
        assert found[2:] == [
            *("\n## one, test split\n", *HEADER),
            f"| din {DIN}  |  |  |  |",
            # The predictions are the same.
            f"| avg_pooling {MEAN} +15.22% | +0.0000 | +0.0000 to +0.0000 | 1.000 |",
            *("\n## two, test split\n", *HEADER),
            "| din (**0 of 2 seeds**) |  |  |  |  |  |  |  |",
            "| avg_pooling (**0 of 2 seeds**) |  |  |  |  |  |  |  |",
            "\n![AUC of each row on each data set](a.png)",
        ]

    def test_without_predictions_there_is_no_interval(self, entries):
        found = lines(entries[:2])
        assert row(found, "avg_pooling")[3:] == ["+15.22%", "+0.0350", "", ""]
        (note,) = (line for line in found if "--write_predictions" in line)
        assert note.startswith("\n4 of the runs have kept no predictions")
        directory = entries[0].of_seeds()[0].directory
        assert f"evaluate --model_dir={directory} --split=test --write_predictions`" in note

    def test_what_was_chosen(self, tmp_path):
        tune = [["--learning_rate=0.001", "--learning_rate=0.01"], ["", "units=4"]]
        data_set = DataSet("a", [], tmp_path)
        entry = Entry("DIN", "din", data_set, 2, tune)
        plain, one = Entry("Mean", "avg_pooling", data_set, 2), Entry("One", "twin", data_set, 2)
        one.tune = [["", "units=8"]]
        for auc in (0.6, 0.7, 0.65):
            run = next(run for run in entry.tried() if not run.is_finished)
            finish(run, auc, test=0.8)
        finish(plain.of_seeds()[0])
        for run in one.tried():
            finish(run)
        found = lines([entry, plain, one])
        assert found[1].startswith("Tuned: what was chosen, of how many settings")
        assert "| | tuned | AUC | GAUC |" in found[4]
        assert row(found, "DIN")[:2] == ["--learning_rate=0.01 (of 3)", "0.8000"]
        assert row(found, "Mean")[:2] == ["", "0.5000"]
        assert row(found, "One")[:2] == ["as it stands (of 2)", "0.5000"]

    def test_of_one_seed_there_is_no_interval(self, tmp_path):
        base, other = rows_on(DataSet("a", [], tmp_path), "din", "twin")
        finish(base.of_seeds()[0], test=0.6)
        finish(other.of_seeds()[0], test=0.7)
        for entry in (base, other):
            leave_predictions(entry.of_seeds()[0], noise=1)
        assert row(lines([base, other]), "twin") == [
            *("0.7000", "0.6000", "0.3000", "+100.00%", "+0.1000", "", "")
        ]

    def test_what_the_data_set_knows_comes_last(self, tmp_path):
        base, other = rows_on(DataSet("a", [], tmp_path), "din", "twin")
        known = {"auc": 0.9, "gauc": 0.8, "log_loss": 0.1}
        run = other.of_seeds()[1]
        leave_metrics(
            *(run.directory, run.flags, {"test": 0.7, "validation": 0.6}),
            best_reachable={"test": known, "validation": None},
            oracles={"test": {"own history": {**known, "auc": 0.81, "gauc": None}}},
        )
        found = lines([base, other], ["test", "validation"])
        end = found.index("\n## a, validation split\n")
        assert found[end - 3 : end - 1] == [
            "| best reachable | 0.9000 | 0.8000 | 0.1000 |  |  |  |  |",
            "| oracle: own history | 0.8100 |  | 0.1000 |  |  |  |  |",
        ]
        assert not any("best reachable" in line for line in found[end:])

    def test_nothing_to_compare_with_yet(self, tmp_path):
        base, other = rows_on(DataSet("a", [], tmp_path), "din", "twin")
        finish(other.of_seeds()[0], test=0.7)
        assert row(lines([base, other]), "twin") == ["0.7000", "0.6000", "0.3000", *[""] * 4]

    def test_an_undefined_auc(self, tmp_path):
        base, other = rows_on(DataSet("a", [], tmp_path), "din", "twin")
        for run in (*base.of_seeds(), *other.of_seeds()):
            finish(run, test=None)
        found = lines([base, other])
        assert row(found, "din") == ["nan ± nan"] * 3 + [""] * 4
        assert any(line.startswith("| twin | nan ± nan | nan ± nan |") for line in found)


class TestSplits:
    def headings(self, entries, *splits):
        return [line.strip() for line in lines(entries, splits) if "##" in line]

    def test_all_that_were_evaluated(self, entries):
        assert self.headings(entries, "all") == [
            *("## one, test split", "## one, test_99 split", "## one, validation split"),
            "## two, test split",
        ]

    def test_those_that_are_asked_for(self, entries):
        assert self.headings(entries, "validation", "test_99") == [
            *("## one, validation split", "## one, test_99 split"),
            *("## two, validation split", "## two, test_99 split"),
        ]
        assert "| din | 0.3650 ± 0.0071 | " in "\n".join(lines(entries, ["test_99"]))

    def test_a_data_set_may_lack_one(self, entries):
        for entry in entries[2:]:
            for run in entry.of_seeds():
                finish(run)
        assert self.headings(entries, "test_99", "test") == [
            *("## one, test_99 split", "## one, test split", "## two, test split")
        ]


def test_files_are_written_whole(entries, tmp_path):
    output, picture = tmp_path / "tables" / "a.md", tmp_path / "pictures" / "a.png"
    write(entries, output, picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
    text = output.read_text()
    assert text.startswith("Mean ±") and text.endswith("](../pictures/a.png)\n")
    assert sorted(path.name for path in tmp_path.glob("*s/*")) == ["a.md", "a.png"]


def test_pictures_are_drawn_again_where_there_are_new_results(entries, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw", lambda table: drawn.append(table.base) or draw(table))
    one, two = (
        [entry for entry in entries if entry.data_set.name == name] for name in ("one", "two")
    )
    tables = [
        Table(name, of_table, "din", ["test"], figure=Figure("bars"))
        for name, of_table in (("First", one), ("Second", two))
    ]
    written = report.Report(plan.Plan(entries, tables), tmp_path / "a.md", tmp_path / "b.png")
    written.write()
    assert len(drawn) == 2
    written.write()
    assert len(drawn) == 2
    finish(two[0].of_seeds()[0])
    written.write()
    assert len(drawn) == 3
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["First.png", "Second.png"]
    assert "](b/First.png)" in (tmp_path / "a.md").read_text()


class TestSeveralTables:
    @pytest.fixture
    def tables(self, entries):
        """Each with another base; the first has a picture, the second shows the speed."""
        for entry, speeds in zip(entries[:2], ((100, 400), (100, 200)), strict=True):
            for run, speed in zip(entry.of_seeds(), speeds, strict=True):
                scores = {"auc": 0.7, "gauc": 0.6, "log_loss": 0.3}
                finish(run, test={**scores, "samples_per_second": speed})
        figure = Figure("bars")
        return [
            Table("Table 1", entries, "din", ["test"], "All models.", figure),
            Table("Table 2", entries[:2], "avg_pooling", ["test"], speed=True),
        ]

    @pytest.fixture
    def found(self, entries, tables):
        return list(report.markdown(plan.Plan(entries, tables), {"Table 1": "a/Table_1.png"}))

    def test_each_has_its_heading_and_picture_before_its_data_sets(self, found):
        assert [line.strip() for line in found if "#" in line or "![" in line] == [
            "## Table 1",
            "![AUC of each row on each data set](a/Table_1.png)",
            "### one, test split",
            "### two, test split",
            "## Table 2",
            "### one, test split",
        ]
        assert found[1].startswith("RelaImpr and difference are of the AUC, against the row that")

    def test_each_has_its_base(self, found):
        assert "All models. Differences are from din." in found
        start = found.index("Differences are from avg_pooling.")
        assert row(found[start:], "avg_pooling")[3:7] == [""] * 4
        assert row(found[start:], "din")[3:5] == ["+0.00%", "+0.0000"]

    def test_speed_is_that_of_the_fastest_seed(self, found):
        start = found.index("Differences are from avg_pooling.")
        assert row(found[start:], "avg_pooling")[-1] == "1.00"
        assert row(found[start:], "din")[-1] == "2.00"
        assert any(line.startswith("Speed: impressions a second") for line in found)

    def test_the_only_table_says_no_speed(self, entries):
        assert not any("Speed" in line or "speed" in line for line in lines(entries))


class TestClaims:
    @pytest.fixture
    def entries(self, tmp_path):
        """A base and a better row, with predictions."""
        entries = rows_on(DataSet("a", [], tmp_path), "din", "twin", "eta")
        for entry, noise in zip(entries, (2, 0.5), strict=False):
            for run in entry.of_seeds():
                finish(run)
                leave_predictions(run, noise)
        return entries

    def of(self, entries, *claims):
        table = Table("", entries, "din", ["test"])
        found = list(report.markdown(plan.Plan(entries, [table], list(claims)), {}))
        end = found.index("\n## Tables\n")
        assert found[0] == "## What the papers claim\n"
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[4:end]]

    def test_come_first(self, entries):
        base, better, _ = entries
        claims = [
            Claim("Search helps", "+0.01", [(Contrast(better, base, "test"), None)], why="So."),
            Claim("It does not", "", [(Contrast(better, base, "test"), None)], "below", 0.001),
        ]
        one, two = self.of(entries, *claims)
        assert one[:4] == ["Search helps", "+0.01", "twin - din on a", "> 0"]
        assert one[4].startswith("+0.") and " to +" in one[5] and one[6] == "<0.001"
        assert one[7:] == ["holds", "So."]
        assert two[3] == "< 0.001" and two[7:] == ["does not hold", ""]

    def test_a_claim_is_named_once(self, entries):
        base, better, _ = entries
        pair = (Contrast(better, base, "test"), Contrast(base, better, "test"))
        one, two = self.of(entries, Claim("Twice", "yes", [pair, pair], why="So."))
        assert one[2] == "twin - din on a; less: din - twin on a"
        assert (one[0], one[1], one[-1]) == ("Twice", "yes", "So.")
        assert (two[0], two[1], two[-1]) == ("", "", "") and two[2] == one[2]

    def test_what_is_missing_is_said(self, entries):
        base, _, other = entries
        claim = Claim("Hashes", "", [(Contrast(other, base, "test"), None)], "equal within", 0.01)
        (cells,) = self.of(entries, claim)
        assert cells[3:] == ["± 0.01", "", "", "", "not measured (**eta: 0 of 2 seeds**)", ""]

    def test_as_a_share_of_the_gap_between_oracles(self, entries):
        base, better, _ = entries
        for run in better.of_seeds():
            known = {"test": {"own": {"auc": 0.7}, "population": {"auc": 0.9}}}
            leave_metrics(run.directory, run.flags, {"test": 0.5, "validation": 0.5}, oracles=known)
        pair = (Contrast(better, base, "test"), None)
        (cells,) = self.of(entries, Claim("More", "", [pair], gap=["own", "population"]))
        difference, share = cells[4].split(" ", 1)
        assert share == f"({float(difference) / 0.2:.0%} of the gap from own to population)"
