"""Which tables of a log are impressions, behaviors and side tables, and how they are joined."""

import dataclasses

from tfrec_diffusion.drafting import column_names, event_columns, raw_tables
from tfrec_diffusion.drafting.raw_profile import Profile

# With fewer rows, values may differ by chance.
FEW_ROWS = 50
# Most values of a column that tells what users did.
_EVENTS = 20


@dataclasses.dataclass
class Events:
    """A table of impressions or of behaviors.

    Args:
        profile: `raw_profile.Profile`. The table.
        user: str. Column of the users.
        time: str. Column of the times.
        item: str. Column of the items, `""` if there is none.
        labels: list of `event_columns.Label`s. The labels of impressions, the first one first.
        weight: str. Column of the weights, or `""`.
        request: str. Column of what was shown together, or `""`.
        keep: dict of lists of str. As in `logs_spec.Events`.
        joins: list of pairs of a side table's `Profile` and the column that it is joined by.
        checks: list of str. What the user should check.
    """

    profile: Profile
    user: str
    time: str
    item: str = ""
    labels: list[event_columns.Label] = dataclasses.field(default_factory=list)
    weight: str = ""
    request: str = ""
    keep: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    joins: list[tuple[Profile, str]] = dataclasses.field(default_factory=list)
    checks: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self):
        """str. Column of the first label."""
        return self.labels[0].name

    @property
    def unit(self):
        """str. Unit of the times, a key of `logs_spec.TIME_UNITS`."""
        return self.profile.columns[self.time].unit or "s"

    @property
    def roles(self):
        """set of str. The columns that are something else than attributes or the item."""
        labels = {label.name for label in self.labels}
        return {self.user, self.time, self.weight, self.request, *labels} - {""}

    @property
    def columns(self):
        """dict by name of the `Column`, its `Profile`, and the column that joins it or `""`."""
        found = {name: (column, self.profile, "") for name, column in self.profile.columns.items()}
        for side, on in self.joins:
            for name, column in side.columns.items():
                found.setdefault(name, (column, side, on))
        return found


def find_roles(profiles):
    """Finds out which table is what.

    Args:
        profiles: list of `raw_profile.Profile`. The tables.

    Returns:
        Tuple of the `Events` of impressions and of behaviors, and a dict of str: why the other
        tables are not used, by their names.

    Raises:
        ValueError: If there are no impressions, or they have no column of items.
    """
    impressions, unused = _impressions(profiles)
    rivals = []
    others = [p for p in profiles if p is not impressions.profile and p.name not in unused]
    for profile in others:
        user = event_columns.user(profile, impressions.user)
        times = event_columns.times(profile)
        if user and times and not event_columns.is_unique(profile, user):
            if _is_unlabeled(profile):
                unused[profile.name] = "looks like impressions without a label"
            else:
                rivals.append(Events(profile, user, times[0]))
    shared = {name for rival in rivals for name in rival.profile.columns}
    impressions.item = event_columns.item(impressions.profile, impressions.roles, shared)
    for rival in rivals:
        rival.item = _same(impressions.item, rival)
    rivals = [rival for rival in rivals if not _is_side_table(rival)]
    events = {rival.profile for rival in rivals}
    sides = [p for p in others if p not in events and p.name not in unused]
    _join(impressions, sides, impressions.roles - {impressions.user})
    behaviors = _behaviors(impressions, rivals, unused)
    _join(behaviors, sides, behaviors.roles)
    joined = [side for events in (impressions, behaviors) for side, _ in events.joins]
    unused |= {s.name: _why_not_joined(s, impressions) for s in sides if s not in joined}
    return impressions, behaviors, unused


# Impressions


def _impressions(profiles):
    """The impressions, and why other tables that could be are not used."""
    found = []
    for profile in profiles:
        user, times = event_columns.user(profile), event_columns.times(profile)
        labels = event_columns.labels(profile)
        if user and times and labels and not event_columns.is_unique(profile, user):
            found.append(Events(profile, user, times[0], labels=labels))
    if not found:
        raise ValueError(_no_impressions(profiles))
    found.sort(key=lambda events: (events.labels[0].rank, -_bytes(events.profile)))
    events, *others = found
    main = [label.name for label in events.labels if label.is_main]
    if len(main) > 1:
        events.checks.append(f"is {main[0]} the label, or {' or '.join(main[1:])}?")
    if events.labels[0].positive:
        events.checks.append(f"which values of {events.label} are positive?")
    if not 0 < event_columns.positive_share(events.profile, events.labels[0]) < 1:
        events.checks.append(f"all values of {events.label} that were looked at are the same.")
    weights = [c.name for c in events.profile.columns.values() if event_columns.is_weight(c)]
    events.weight = weights[0] if weights else ""
    events.request = event_columns.request(events.profile, events.roles, events.user)
    if column_names.thing(events.request) == "session":
        events.checks.append(
            f"all impressions of one {events.request} count as shown at the time of its first; "
            "remove request if sessions are long."
        )
    _check_time(events)
    why = "is a table of impressions as well: the spec has one"
    # Beside clicks, a table of likes may be one of behaviors.
    return events, {e.profile.name: why for e in others if e.labels[0].is_main or not main}


def _no_impressions(profiles):
    found = []
    for profile in profiles:
        labels = [label.name for label in event_columns.labels(profile)]
        roles = {
            "user": event_columns.user(profile),
            "time": "".join(event_columns.times(profile)[:1]),
            "label": "".join(labels[:1]),
        }
        roles = ", ".join(f"{role}: {name or 'none'}" for role, name in roles.items())
        columns = [
            f"{name} with decimals" if _is_decimal_time(column) else name
            for name, column in profile.columns.items()
        ]
        columns += [f"{name} {why}" for name, why in profile.table.unusable.items()]
        found.append(f"{profile.name} ({roles}; its columns: {', '.join(columns)})")
    return (
        "no table of impressions was found. It needs a user (a column such as user_id, with "
        "several rows of each), a time (since 1970, in ISO 8601 or as TIMESTAMP) and a label (0 "
        "and 1 or true and false, in a column such as click, label or purchase). Found: "
        + "; ".join(found)
    )


def _is_decimal_time(column):
    return column_names.is_time(column.name) and column.numbers and not column.integers


def _check_time(events):
    column = events.profile.columns[events.time]
    others = [name for name in event_columns.times(events.profile) if name != events.time]
    others = [name for name in others if column_names.is_time(name)]
    if not (column.iso or column.unit):
        events.checks.append(f"{events.time} does not look like times since 1970.")
    elif others:
        events.checks.append(f"{events.time} is the time; there is {', '.join(others)} as well.")


def _bytes(profile):
    return sum(path.stat().st_size for path in profile.table.paths)


# Behaviors


def _is_unlabeled(profile):
    words = column_names.words(profile.name)
    return not {"test", "submission", "holdout"}.isdisjoint(words)


def _behaviors(impressions, rivals, unused):
    """The best table of behaviors, or else the positive impressions."""
    attributes = {column_names.thing(n) for n in impressions.columns if n not in impressions.roles}
    fit = [
        rival
        for rival in rivals
        if rival.item
        or attributes & {column_names.thing(n) for n in rival.columns if n not in rival.roles}
    ]
    why = "has nothing in common with the impressions but users and times"
    unused |= {rival.profile.name: why for rival in rivals if rival not in fit}
    if not fit:
        return _clicks(impressions)
    fit.sort(key=lambda rival: (not rival.item, -_bytes(rival.profile)))
    behaviors, *others = fit
    for other in others:
        unused[other.profile.name] = "is a table of behaviors as well: the spec has one"
        behaviors.checks.append(
            f"{other.profile.name} could be the behaviors as well; to use both, write them to "
            "files with the same columns."
        )
    if not behaviors.item:
        behaviors.checks.append(f"without {impressions.item}, histories have attributes only.")
    _check_time(behaviors)
    for name, column in behaviors.profile.columns.items():
        named = column_names.is_event(name) and name not in behaviors.roles
        if named and 1 < column.distinct <= _EVENTS and not column.is_list:
            values = ", ".join(behaviors.profile.counts(name))
            behaviors.checks.append(
                f"{name} is {values}; keep can name those that tell what users like."
            )
    return behaviors


def _same(name, events):
    """The column of a table that is the same as one of another table, or `""`."""
    columns = set(events.profile.columns) - events.roles
    if name in columns:
        return name
    same = [other for other in columns if column_names.thing(other) == column_names.thing(name)]
    return same[0] if len(same) == 1 else ""


def _is_side_table(rival):
    many = rival.profile.rows >= FEW_ROWS
    return many and bool(rival.item) and event_columns.is_unique(rival.profile, rival.item)


def _clicks(impressions):
    """Earlier positive impressions, where there is no table of behaviors."""
    profile, label = impressions.profile, impressions.labels[0]
    behaviors = Events(profile, impressions.user, impressions.time, impressions.item)
    kind = profile.columns[label.name].type
    if raw_tables.can_be_read(kind, "VARCHAR"):
        behaviors.keep = {label.name: event_columns.positive_texts(profile, label)}
        which = f"earlier impressions with a positive {label.name}"
    else:
        which = f"all earlier impressions ({label.name} has the type {kind}, which keep cannot use)"
    behaviors.checks.append(f"there is no table of behaviors, so that {which} are the history.")
    return behaviors


# Side tables


def _join(events, sides, no_keys):
    """Joins the side tables that have other columns and a key that the events have."""
    own = events.profile.columns
    for side in sides:
        keys = [
            (name != events.user, name != events.item, -column.distinct, name)
            for name, column in side.columns.items()
            if name in own and name not in no_keys and _is_key(side, column, own[name])
        ]
        if keys and not set(side.columns) <= set(events.columns):
            events.joins.append((side, min(keys)[-1]))


def _is_key(side, column, own):
    return (
        event_columns.can_be_key(column)
        and event_columns.is_unique(side, column.name)
        and 2 * column.present > side.rows
        and not event_columns.is_time(column)
        and column.integers == own.integers
        and not own.is_list
    )


def _why_not_joined(side, impressions):
    for name, column in side.columns.items():
        if not event_columns.can_be_key(column) or not event_columns.is_unique(side, name):
            continue
        for wanted in (impressions.user, impressions.item):
            same = column_names.thing(name) == column_names.thing(wanted)
            if name != wanted and (same or column_names.words(name) == ["id"]):
                return f"has no column {wanted}; if its {name} is that, call it so"
    return "has no key in common with the impressions or behaviors, or no column that they lack"
