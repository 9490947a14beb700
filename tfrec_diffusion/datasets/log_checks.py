"""What `logs` tells of its tables: their times, and whether impressions and behaviors meet."""

import datetime

import numpy as np

from tfrec_diffusion.datasets import logs_spec, tables

# Share of the impressions below which next to nothing meets.
_LEAST = 0.01
# Times count from 1970 itself, and tell no unit, where the splits are before this time.
_CALENDAR_SINCE = 20 * 365
# How many days from the splits times surely are wrong, and within how many they may be right.
_FAR, _NEAR = 20 * 365, 10 * 365
_DAY = 24 * 60 * 60 * 10**9


def drop_times_of_another_unit(database, name, column, unit, spec):
    """Drops the rows whose time would be right if it were in another unit than the spec's.

    These are times more than 20 years from the splits that, in another unit, are within ten years
    of them. No other time is dropped, so that times may count from any day, and the positions of
    behaviors may stand for their times.

    Args:
        database: `tables.Database`. Has the loaded table.
        name: str. Name of the table, `"impressions"` or `"behaviors"`.
        column: str. Name of the column of times.
        unit: str. The unit of the times, a key of `logs_spec.TIME_UNITS`.
        spec: `logs_spec.Spec`. Has the splits.

    Raises:
        ValueError: If too many rows are dropped.
    """
    if spec.train_until < _CALENDAR_SINCE * _DAY:
        return
    time = tables.column(column)
    far = "NOT " + _within(time, spec, _FAR, unit)
    for other in logs_spec.TIME_UNITS:
        if other == unit:
            continue
        wrong = f"{far} AND {_within(time, spec, _NEAR, other)}"
        ((first, last),) = database.execute(
            f"SELECT min({time}), max({time}) FROM {name} WHERE {wrong}"
        )
        if first is not None:
            are, would_be = (
                f"in {u} from {_day(first, u)} to {_day(last, u)}" for u in (unit, other)
            )
            reason = f'{column} is {are}, but {would_be}: "time_unit" must be {other!r}'
            database.drop(name, wrong, reason)


def report_times(database, report, spec):
    """Reports the first and last time of the impressions and of the behaviors.

    Args:
        database: `tables.Database`. Has the sorted tables.
        report: `report.Report`. Gets the times, and a warning if most are far from the splits.
        spec: `logs_spec.Spec`. Has the splits and the time zone.
    """
    zone = datetime.timezone(datetime.timedelta(hours=spec.time_zone_hours))
    times = {}
    for name in ("impressions", "behaviors"):
        ((first, last, middle),) = database.execute(
            f"SELECT min(time), max(time), approx_quantile(time, 0.5) FROM {name}_by_user"
        )
        if first is None:
            continue
        first, last = (_iso(time, zone) for time in (first, last))
        times[name] = {"first": first, "last": last}
        years = (spec.train_until - middle) / (365 * _DAY)
        if spec.train_until >= _CALENDAR_SINCE * _DAY and abs(years) > 20:
            report.warn(
                f"most {name} are {abs(years):.0f} years {'before' if years > 0 else 'after'} "
                f"train_until={spec.splits.train_until}: their times are from {first} to {last}"
            )
    report.note("times", times)


def report_meeting(database, report, spec, shared):
    """Reports how many impressions have users and values that behaviors have as well.

    Args:
        database: `tables.Database`. Has the sorted tables.
        report: `report.Report`. Gets the counts, and a warning if next to nothing meets.
        spec: `logs_spec.Spec`. Has the names of the columns of users.
        shared: dict. By name and column of a candidate feature: name and column of the history
            feature with the same table, and SQL of the missing value.
    """
    ((impressions, known, after),) = database.execute(
        """
        SELECT count(*), count(first), count(*) FILTER (first < time)
        FROM impressions_by_user
        LEFT JOIN (SELECT "user", min(time) AS first FROM behaviors_by_user GROUP BY "user")
        USING ("user")
        """
    )
    ((behaviors,),) = database.execute("SELECT count(*) FROM behaviors_by_user")
    users = [f"{name}.{getattr(spec, name).user}" for name in ("impressions", "behaviors")]
    meeting = {users[0]: {"impressions": impressions, "among_behaviors": known}}
    if behaviors and known < _LEAST * impressions:
        sides = [
            f'SELECT id AS value FROM users WHERE number IN (SELECT "user" FROM {name}_by_user)'
            for name in ("impressions", "behaviors")
        ]
        _warn(database, report, known, impressions, users, sides)
    elif after < _LEAST * impressions:
        report.warn(
            f"{after:,} of {impressions:,} impressions have a history: behaviors are missing or "
            "not earlier than the impressions of their users"
        )
    for (candidate, column), (history, other, missing) in shared.items():
        sides = [
            f"SELECT {tables.quoted(f'f_{feature}')} AS value FROM {name}_by_user WHERE "
            f"{tables.quoted(f'f_{feature}')} <> {missing}"
            for name, feature in (("impressions", candidate), ("behaviors", history))
        ]
        ((values, found),) = database.execute(
            f"SELECT count(*), count(*) FILTER (value IN (SELECT DISTINCT value FROM ({sides[1]})))"
            f" FROM ({sides[0]})"
        )
        columns = [f"impressions.{column}", f"behaviors.{other}"]
        meeting[columns[0]] = {"impressions": values, "among_behaviors": found}
        if behaviors and found < _LEAST * values:
            _warn(database, report, found, values, columns, sides)
    report.note(
        "histories",
        {"impressions": impressions, "with_history": after, "behaviors": behaviors},
    )
    report.note("meeting", meeting)


def _warn(database, report, found, values, columns, sides):
    examples = [
        " and ".join(
            repr(str(value))
            for (value,) in database.execute(
                f"SELECT DISTINCT value FROM ({side}) ORDER BY value LIMIT 2"
            )
        )
        for side in sides
    ]
    report.warn(
        f"{columns[0]} and {columns[1]} hardly meet: {found:,} of {values:,} impressions have a "
        f"value that occurs among behaviors. Impressions have {examples[0]}, behaviors "
        f"{examples[1]}"
    )


def _within(time, spec, days, unit):
    """SQL that holds for times of a unit that are within some days of the splits."""
    since, until = spec.train_until - days * _DAY, spec.validation_until + days * _DAY
    size = logs_spec.TIME_UNITS[unit]
    return f"{time} BETWEEN {since // size} AND {until // size}"


def _day(time, unit):
    return str(np.datetime64(time, unit).astype("datetime64[D]"))


def _iso(time, zone):
    return str(datetime.datetime.fromtimestamp(time // 10**9, zone))
