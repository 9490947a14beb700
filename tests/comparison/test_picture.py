import pytest
from finished_runs import finish, leave_metrics, leave_predictions

from tfrec_diffusion.comparison import plan
from tfrec_diffusion.comparison.differences import differences
from tfrec_diffusion.comparison.entry import DataSet
from tfrec_diffusion.comparison.picture import draw
from tfrec_diffusion.comparison.table import Figure, Table

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


@pytest.fixture
def entries(tmp_path):
    """Two rows on two data sets, the first of them with results."""
    entries = []
    for name in ("one", "two"):
        data_set = DataSet(name, [], tmp_path / name)
        entries += plan.from_runs(["din", "avg_pooling"], data_set, 2).entries
    for entry, aucs in zip(entries, ((0.72, 0.74), (0.76, 0.77)), strict=False):
        for run, auc in zip(entry.of_seeds(), aucs, strict=True):
            finish(run, auc - 0.1, test=auc, test_99=auc / 2)
    return entries


def predict(entries, *noise):
    for entry, own in zip(entries, noise, strict=True):
        for run in entry.of_seeds():
            leave_predictions(run, own)


def table(entries, figure, splits=("test",)):
    return Table("", entries, "din", list(splits), figure=figure)


def points(container):
    """Numbers and values of a line or marker, and the ends of its error bars."""
    line, _, (bars,) = container.lines
    ends = [tuple(end[:, 1]) for end in bars.get_segments()]
    return list(line.get_xdata()), list(line.get_ydata()), ends


class TestBars:
    def figure(self, entries, *splits):
        return draw(table(entries, Figure("bars"), splits or ["test"]))

    def test_a_panel_for_each_data_set_and_split(self, entries):
        figure = self.figure(entries, "test", "validation")
        assert [axes.get_title() for axes in figure.axes] == [
            *("one, test", "one, validation", "two, test", "two, validation")
        ]
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
            *("din", "avg_pooling")
        ]

    def test_means_beside_the_base(self, entries):
        one, two = self.figure(entries).axes
        markers = [container.lines[0] for container in one.containers]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in markers] == [
            *((pytest.approx(0.73), 0), (pytest.approx(0.765), 1))
        ]
        assert one.lines[0].get_xdata()[0] == pytest.approx(0.73)  # the dashed one
        assert not two.containers

    def test_error_bars_are_the_interval_of_the_difference(self, entries):
        predict(entries[:2], 2, 0.5)
        one, _ = self.figure(entries).axes
        _, found = differences(entries[:2], entries[0], "test")
        (bar,) = one.containers[1].lines[2]
        low, high = bar.get_segments()[0][:, 0]
        assert (low, high) == pytest.approx(
            (0.765 - found.mean + found.low, 0.765 - found.mean + found.high)
        )
        assert high - low > 0.001

    def test_markers(self, entries):
        """Filled where the difference is sure, gray where seeds are missing."""
        predict(entries[:2], 2, 0.5)
        finish(entries[3].of_seeds()[0], test=0.6)
        figure = self.figure(entries)
        base, sure = (container.lines[0] for container in figure.axes[0].containers)
        (gray,) = (container.lines[0] for container in figure.axes[1].containers)
        assert base.get_markerfacecolor() == "white"
        assert sure.get_markerfacecolor() == "C0" == sure.get_color()
        assert (gray.get_color(), gray.get_markerfacecolor()) == ("0.6", "white")

    def test_a_row_may_be_on_some_data_sets_only(self, entries):
        figure = self.figure([entries[0], *entries[2:]])
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
            *("din", "avg_pooling")
        ]


class TestLine:
    def test_against_the_number_of_each_row(self, entries):
        shown = Figure("line", "channels", {"din": 8, "avg_pooling": 2})
        one, two = draw(table(entries, shown)).axes
        (line,) = one.containers
        numbers, values, _ = points(line)
        assert (numbers, values) == ([2, 8], pytest.approx([0.765, 0.73]))
        assert one.get_xlabel() == "channels" and one.get_xscale() == "linear"
        assert [label.get_text() for label in one.get_xticklabels()] == ["2", "8"]
        assert not two.containers

    def test_several_lines(self, entries):
        shown = Figure("line", "", {"din": [0.001, "big"], "avg_pooling": [0.1, "small"]})
        figure = draw(table(entries[:2], shown))
        (axes,) = figure.axes
        assert [container.get_label() for container in axes.containers] == ["big", "small"]
        assert axes.get_xscale() == "log"
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["big", "small"]


def test_differences_against_the_number_of_each_data_set(entries):
    for entry in entries[2:]:
        for run in entry.of_seeds():
            finish(run)
    predict(entries, 1, 0.5, 1, 0.9)
    shown = Figure("data_sets", "aspects", {"one": 4, "two": 1})
    (axes,) = draw(table(entries, shown)).axes
    (line,) = axes.containers
    (_, of_one), (_, of_two) = (
        differences(rows, rows[0], "test") for rows in (entries[:2], entries[2:])
    )
    numbers, values, ends = points(line)
    assert line.get_label() == "avg_pooling" and axes.get_ylabel() == "AUC less that of din"
    assert (numbers, values) == ([1, 4], pytest.approx([of_two.mean, of_one.mean]))
    assert ends == [pytest.approx(found[1:3]) for found in (of_two, of_one)]


def test_what_is_lost_to_an_oracle_by_the_number_of_each_split(entries):
    aucs = {"spurious_0": (0.8, 0.7), "spurious_50": (0.6, 0.66)}
    known = {"spurious_0": 0.9, "spurious_50": 0.85}
    for i, entry in enumerate(entries[:2]):
        for run in entry.of_seeds():
            splits = {split: of_rows[i] + 0.01 * run.seed for split, of_rows in aucs.items()}
            leave_metrics(
                *(run.directory, run.flags, {**splits, "validation": 0.5}),
                oracles={split: {"best": {"auc": auc}} for split, auc in known.items()},
            )
    shown = Figure("splits", "% spurious", oracle="best")
    (axes,) = draw(table(entries[:2], shown, aucs)).axes
    din, mean = (points(line) for line in axes.containers)
    assert din[:2] == ([0, 50], pytest.approx([0.805 - 0.9, 0.605 - 0.85]))
    assert mean[:2] == ([0, 50], pytest.approx([0.705 - 0.9, 0.665 - 0.85]))
    assert din[2][0] == pytest.approx((-0.095 - 0.01 / 2**0.5, -0.095 + 0.01 / 2**0.5))
    assert axes.get_title() == "one"
