"""Which columns of a raw table are its users, times, labels, items and so on."""

from typing import NamedTuple

from tfrec_diffusion.drafting import column_names, raw_profile, raw_tables

# Share of the rows that must have different values of what is a key.
_UNIQUE = 0.95
# Texts that are positive labels, where a column has just one other.
_TRUE = ("1", "1.0", "1.", "true", "yes", "y", "t", "click", "clicked", "positive", "pos")
# Most values of a rating, and how far up its range a rating is positive.
_RATINGS, _GOOD = 20, 0.75


class Label(NamedTuple):
    """A column of labels.

    Args:
        rank: tuple of int. Less for a better name.
        name: str. Name of the column.
        positive: tuple of str. The positive values, empty if they are 0 and 1.
    """

    rank: tuple[int, int]
    name: str
    positive: tuple[str, ...]

    @property
    def is_main(self):
        """bool. Whether its name is one of the best."""
        return self.rank[0] == 0


def labels(profile):
    """The columns of labels.

    Args:
        profile: `raw_profile.Profile`. The table.

    Returns:
        list of `Label`s, the best first. A rating is one only if there is no other.
    """
    found = []
    for i, names in enumerate((column_names.LABELS, column_names.FURTHER_LABELS)):
        for column in profile.columns.values():
            rank = column_names.label_rank(column.name, names)
            positive = None if rank is None else _positive(profile, column)
            if positive is not None:
                found.append(Label((i, rank), column.name, positive))
    return sorted(found) or _ratings(profile)


def positive_texts(profile, label):
    """The positive values of a label as they stand in the files.

    Args:
        profile: `raw_profile.Profile`. The table.
        label: `Label`. The label.

    Returns:
        list of str, those of the sample, or `["1"]` if it has none.
    """
    values = profile.counts(label.name)
    return sorted(label.positive or (v for v in values if v.strip().lower() in _TRUE)) or ["1"]


def positive_share(profile, label):
    """The share of a label's values that are positive.

    Args:
        profile: `raw_profile.Profile`. The table.
        label: `Label`. The label.

    Returns:
        float.
    """
    values, positive = profile.counts(label.name), positive_texts(profile, label)
    return sum(n for value, n in values.items() if value in positive) / sum(values.values())


def _positive(profile, column):
    """The positive values of a column of labels, or `None` if it is none."""
    if column.is_list or not column.present:
        return None
    if column.binary:
        return ()
    if column.distinct != 2 or not raw_tables.can_be_read(column.type, "VARCHAR"):
        return None
    positive = [v for v in profile.counts(column.name) if v.strip().lower() in _TRUE]
    return tuple(positive) if len(positive) == 1 else None


def _ratings(profile):
    return [
        Label((2, 0), column.name, tuple(sorted(_good(profile, column))))
        for column in profile.columns.values()
        if column_names.rank(column.name, column_names.RATINGS) is not None
        and column.numbers
        and 2 < column.distinct <= _RATINGS
        and raw_tables.can_be_read(column.type, "VARCHAR")
    ]


def _good(profile, column):
    least = column.low + _GOOD * (column.high - column.low)
    for value in profile.counts(column.name):
        try:
            if float(value) >= least:
                yield value
        except ValueError:
            pass


def user(profile, like=""):
    """The column of users.

    Args:
        profile: `raw_profile.Profile`. The table.
        like: str. The column of another table's users, which wins. Defaults to `""`.

    Returns:
        str, or `""` if there is none.
    """
    ranks = [
        (name != like, column_names.thing(name) != column_names.thing(like), rank, name)
        for name, column in profile.columns.items()
        if (rank := column_names.rank(name, column_names.USERS)) is not None or name == like
        if can_be_key(column) and 2 * column.present > profile.rows
    ]
    return min(ranks)[-1] if ranks else ""


def times(profile):
    """Columns that may be the times of events.

    Args:
        profile: `raw_profile.Profile`. The table.

    Returns:
        list of str, the best first.
    """
    found = []
    for name, column in profile.columns.items():
        named = column_names.is_time(name)
        known = column.iso or (column.unit and (named or not column_names.is_id(name)))
        if known and not column.is_list and raw_tables.can_be_read(column.type, "BIGINT"):
            found.append((not named, column_names.is_other_time(name), -column.distinct, name))
    if found:
        return [name for *_, name in sorted(found)]
    # Positions may stand for times.
    return [
        name
        for name, column in profile.columns.items()
        if name.lower() in ("time", "timestamp", "ts", "t")
        and column.integers
        and 0 <= column.low <= column.high <= raw_profile.LAST_TIME
    ]


def is_time(column):
    """Whether a column holds times.

    Args:
        column: `raw_profile.Column`.

    Returns:
        bool.
    """
    named = column_names.is_time(column.name)
    is_date = column.integers and column.low and 19000101 <= column.low <= column.high <= 21001231
    return column.iso or (named and bool(column.unit or is_date))


def item(profile, roles, shared):
    """The column of items: by its name, or an id that behaviors have as well.

    Args:
        profile: `raw_profile.Profile`. The impressions.
        roles: set of str. Columns that are something else.
        shared: set of str. Columns of tables that may be behaviors.

    Returns:
        str.

    Raises:
        ValueError: If there is none.
    """
    found = []
    for name, column in profile.columns.items():
        if name in roles or not can_be_key(column) or is_time(column):
            continue
        rank = column_names.rank(name, column_names.ITEMS)
        if rank is not None:
            found.append((0, rank, -column.distinct, name))
        elif column_names.is_id(name) and column.words < 1:
            found.append((2 - (name in shared), 0, -column.distinct, name))
    if not found:
        raise ValueError(
            f"{profile.name} has no column of items (such as item_id, product_id, video_id or "
            f"another id). Its columns: {', '.join(profile.columns)}"
        )
    return min(found)[-1]


def request(profile, roles, user_):
    """The column of what was shown together, which several rows of a user have.

    Args:
        profile: `raw_profile.Profile`. The impressions.
        roles: set of str. Columns that are something else.
        user_: str. The column of users.

    Returns:
        str, or `""` if there is none.
    """
    found = []
    for name, column in profile.columns.items():
        rank = column_names.rank(name, column_names.REQUESTS)
        if rank is None or name in roles or not column_names.is_id(name) or not can_be_key(column):
            continue
        users, pairs, rows = profile.distinct(user_, name)
        if users < pairs < rows:
            found.append((rank, name))
    return min(found)[-1] if found else ""


def is_weight(column):
    """Whether a column holds weights of impressions.

    Args:
        column: `raw_profile.Column`.

    Returns:
        bool.
    """
    named = column_names.rank(column.name, column_names.WEIGHTS) is not None
    return named and column.numbers and column.low >= 0 and not column.is_list


def can_be_key(column):
    """Whether a column may hold ids.

    Args:
        column: `raw_profile.Column`.

    Returns:
        bool.
    """
    ids = (column.integers or not column.numbers) and not (column.is_list or column.binary)
    readable = any(raw_tables.can_be_read(column.type, kind) for kind in ("BIGINT", "VARCHAR"))
    return ids and readable and not column.iso and column.distinct > 1


def is_unique(profile, name):
    """Whether nearly every row has a value of its own.

    Args:
        profile: `raw_profile.Profile`. The table.
        name: str. Name of a column.

    Returns:
        bool.
    """
    values, rows = profile.distinct(name)
    return values >= _UNIQUE * rows
