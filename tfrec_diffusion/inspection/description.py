"""The description of a prepared data set, part by part as it becomes known."""

from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.inspection import picture_file, tables
from tfrec_diffusion.inspection.counts import count
from tfrec_diffusion.inspection.curves import curves
from tfrec_diffusion.inspection.first_requests import first_requests
from tfrec_diffusion.inspection.picture import draw
from tfrec_diffusion.prepared_directory import PreparedDirectory


def describe(directory, *, picture, label="", split=None, requests=3):
    """Describes a prepared data set, reads every record once, and draws what it has counted.

    Memory grows with the users and the rows of the key tables, not with the records. The points
    that are drawn lie beside the picture as CSV.

    Args:
        directory: str or `pathlib.Path`. The prepared data set.
        picture: str or `pathlib.Path`. File to write, in a format that its name says.
        label: str. As in `RequestData`. Defaults to `""`.
        split: str or `None`. The only split to read. If `None`, all. Defaults to `None`.
        requests: int. How many requests of the first split to show. Defaults to `3`.

    Yields:
        str. Lines of a part: the schema, each of the first requests, each table of counts.

    Raises:
        FileNotFoundError: If there is no prepared data set, or no directory for the picture.
        ValueError: If there is no such split or label, or matplotlib is not installed.
    """
    picture_file.check(picture)
    data = RequestData(directory, label=label)
    # In the order in which they were written, training first.
    splits = PreparedDirectory(directory).report["splits"]
    if split is not None:
        data.shards(split)  # refuses an unknown one
        splits = {split: splits[split]}
    # Records do not tell their day, so these counts are those of the preparation, which counts the
    # first label only.
    days = {name: known["days"] for name, known in splits.items() if "days" in known and not label}

    yield tables.schema_table(data)
    yield from first_requests(data, next(iter(splits)), requests)
    counts = {name: count(data, name) for name in splits}
    yield from tables.count_tables(data.schema, counts)
    yield from tables.day_tables(days)
    yield from tables.context_tables(data.schema, counts)
    drawn = curves(data.schema, counts, days)
    picture_file.write(picture, draw(drawn, data.schema), drawn)
