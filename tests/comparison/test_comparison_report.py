import pytest
from finished_runs import finish, leave_metrics, leave_predictions

from tfrec_diffusion.comparison import plan, report
from tfrec_diffusion.comparison.entry import DataSet, Entry

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


@pytest.fixture
def entries(tmp_path):
    """Two rows on two data sets, the first of them with results."""
    one, two = (DataSet(name, [], tmp_path / name) for name in ("one", "two"))
    rows = ["din", "avg_pooling"]
    entries = [*plan.from_runs(rows, one, 2), *plan.from_runs(rows, two, 2)]
    for entry, aucs in zip(entries, ((0.72, 0.74), (0.76, 0.77)), strict=False):
        for run, auc in zip(entry.of_seeds(), aucs, strict=True):
            finish(run, auc - 0.1, test=auc, test_99=auc / 2)
    return entries


def lines(entries, splits=("test",)):
    return list(report.markdown(list(report.sections_of(entries, list(splits))), "a.png"))


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
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
        finish(base.of_seeds()[0], test=0.6)
        finish(other.of_seeds()[0], test=0.7)
        for entry in (base, other):
            leave_predictions(entry.of_seeds()[0], noise=1)
        assert row(lines([base, other]), "twin") == [
            *("0.7000", "0.6000", "0.3000", "+100.00%", "+0.1000", "", "")
        ]

    def test_what_the_data_set_knows_comes_last(self, tmp_path):
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
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
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
        finish(other.of_seeds()[0], test=0.7)
        assert row(lines([base, other]), "twin") == ["0.7000", "0.6000", "0.3000", *[""] * 4]

    def test_an_undefined_auc(self, tmp_path):
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
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
    report.write(entries, ["test"], output, picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
    text = output.read_text()
    assert text.startswith("Mean ±") and text.endswith("](../pictures/a.png)\n")
    assert sorted(path.name for path in tmp_path.glob("*s/*")) == ["a.md", "a.png"]


def test_rows_that_are_only_there_to_cluster_are_not_shown(entries, tmp_path):
    entries[1].shown = False
    report.write(entries[:2], ["test"], tmp_path / "a.md", tmp_path / "a.png")
    text = (tmp_path / "a.md").read_text()
    assert "| din |" in text and "avg_pooling" not in text


class TestPicture:
    def test_a_panel_for_each_table(self, entries):
        figure = report.draw(list(report.sections_of(entries, ["test", "validation"])))
        assert [axes.get_title() for axes in figure.axes] == [
            *("one, test", "one, validation", "two, test", "two, validation")
        ]
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
            *("din", "avg_pooling")
        ]

    def test_means_and_deviations(self, entries):
        figure = report.draw(list(report.sections_of(entries, ["test"])))
        one, two = figure.axes
        points = [container.lines[0] for container in one.containers]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [
            *((pytest.approx(0.73), 0), (pytest.approx(0.765), 1))
        ]
        (bar,) = one.containers[1].lines[2]
        low, high = bar.get_segments()[0][:, 0]
        assert high - low == pytest.approx(2 * 0.01 / 2**0.5)
        assert one.lines[0].get_xdata()[0] == pytest.approx(0.73)  # the dashed one
        assert not two.containers

    def test_markers(self, entries):
        """Filled where the difference is sure, gray where seeds are missing."""
        for entry, noise in zip(entries[:2], (2, 0.5), strict=True):
            for run in entry.of_seeds():
                leave_predictions(run, noise)
        finish(entries[3].of_seeds()[0], test=0.6)
        figure = report.draw(list(report.sections_of(entries, ["test"])))
        base, sure = (container.lines[0] for container in figure.axes[0].containers)
        (gray,) = (container.lines[0] for container in figure.axes[1].containers)
        assert base.get_markerfacecolor() == "white"
        assert sure.get_markerfacecolor() == "C0" == sure.get_color()
        assert (gray.get_color(), gray.get_markerfacecolor()) == ("0.6", "white")
