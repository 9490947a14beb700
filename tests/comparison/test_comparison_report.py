import pytest
from finished_runs import finish

from tfrec_diffusion.comparison import plan, report
from tfrec_diffusion.comparison.entry import DataSet

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


class TestMarkdown:
    def test_tables(self, entries):
        header = ["| | AUC | GAUC | log loss | RelaImpr | p |", "|---|---|---|---|---|---|"]
        assert lines(entries) == [
            "Mean ± standard deviation over 2 seeds.",
            "RelaImpr and p (Welch's t-test on the AUCs) are against din.",
            *("\n## one, test split\n", *header),
            f"| din {DIN}  |  |",
            f"| avg_pooling {MEAN} +15.22% | 0.129 |",
            *("\n## two, test split\n", *header),
            "| din (**0 of 2 seeds**) |  |  |  |  |  |",
            "| avg_pooling (**0 of 2 seeds**) |  |  |  |  |  |",
            "\n![AUC of each row on each data set](a.png)",
        ]

    def test_the_learning_rate_of_tuned_rows(self, tmp_path):
        (entry,) = plan.from_runs(["din"], DataSet("a", [], tmp_path), 2, ["0.001", "0.01"])
        for run, auc in zip(entry.of_learning_rates(), (0.6, 0.7), strict=True):
            finish(run, auc, test=0.8)
        found = lines([entry])
        assert found[1] == (
            "The learning rate is the one of 0.001, 0.01 with the best AUC on the validation "
            "split, seed 0."
        )
        assert found[-4:-1] == [
            "| | learning rate | AUC | GAUC | log loss | RelaImpr | p |",
            "|---|---|---|---|---|---|---|",
            "| din (**1 of 2 seeds**) | 0.01 | 0.8000 | 0.7000 | 0.2000 |  |  |",
        ]

    def test_of_one_seed_there_is_no_p(self, tmp_path):
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
        finish(base.of_seeds()[0], test=0.6)
        finish(other.of_seeds()[0], test=0.7)
        assert "| twin (**1 of 2 seeds**) | 0.7000 | 0.6000 | 0.3000 | +100.00% |  |" in lines(
            [base, other]
        )

    def test_nothing_to_compare_with_yet(self, tmp_path):
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
        finish(other.of_seeds()[0], test=0.7)
        assert "| twin (**1 of 2 seeds**) | 0.7000 | 0.6000 | 0.3000 |  |  |" in lines(
            [base, other]
        )

    def test_an_undefined_auc(self, tmp_path):
        base, other = plan.from_runs(["din", "twin"], DataSet("a", [], tmp_path), 2)
        for run in (*base.of_seeds(), *other.of_seeds()):
            finish(run, test=None)
        found = lines([base, other])
        assert "| din | nan ± nan | nan ± nan | nan ± nan |  |  |" in found
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
        for run, auc in zip(entries[1].of_seeds(), (0.90, 0.901), strict=True):
            finish(run, test=auc)
        for run, auc in zip(entries[0].of_seeds(), (0.72, 0.721), strict=True):
            finish(run, test=auc)
        finish(entries[3].of_seeds()[0], test=0.6)
        figure = report.draw(list(report.sections_of(entries, ["test"])))
        base, sure = (container.lines[0] for container in figure.axes[0].containers)
        (gray,) = (container.lines[0] for container in figure.axes[1].containers)
        assert base.get_markerfacecolor() == "white"
        assert sure.get_markerfacecolor() == "C0" == sure.get_color()
        assert (gray.get_color(), gray.get_markerfacecolor()) == ("0.6", "white")
