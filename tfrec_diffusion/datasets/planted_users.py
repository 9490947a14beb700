"""Users with planted interests: what they prefer, what they have done and what they are shown.

A user prefers one value of each of several aspects, such as topic, style and brand; most users have
the preferences of their type. A behavior shows a preference with a probability, the strength, which
is large or small for each aspect of each user. Else it shows any value. So a history tells some
preferences well and others hardly, and who knows the types can tell more than the history shows.

Given the preferences and strengths, the values that a behavior shows are independent. Its item is
drawn by popularity. Where the aspects are visible, it is drawn among all items: the values then
belong to the behavior, and the item tells nothing about them. Where they are hidden, it is drawn
among the items with just these values, and there are items with every combination of values. Either
way the likelihood of a history is a product over aspects, which makes the posteriors of
`planted_oracles` exact for any number of aspects. With 5000 items that have fixed values of 4
aspects of 16 values, most of the 65,536 combinations would be missing, and which ones would make
the aspects depend on each other.

With sessions, each of the newest sessions has an intent in each aspect with probability
1 / aspects, which is one intent per session on average. (Exactly one would make the aspects
dependent.) Half of the session's behaviors show it. A candidate with an intent of a genuine session
is clicked more. A spurious session looks the same and has no effect, but all its items are of one
tier of popularity, which those of a genuine session never are: the items tell the kind of session.
"""

import dataclasses
import functools
import math
import statistics

import numpy as np

# Preferences
ANEW = 0.1  # probability that a preference is drawn anew instead of taken from the type
STRENGTHS = (0.02, 0.2)  # equally likely
SHOWN = 0.3  # probability that a candidate shows the preference; else it shows any value

# Clicks
INTENT = 1.2  # log-odds of having an intent of a genuine session
_MATCH = 1.8  # log-odds of one more match, with 4 aspects of 16 values
_APPEAL = 0.3  # log-odds of the item's appeal
_MEAN_LOG_ODDS = -0.125

# Sessions
SESSION = 10  # behaviors of a session
SESSIONS = 5  # how many of the newest sessions have intents
SHOWS_INTENT = 0.5  # probability that a behavior shows an intent of its session
SPURIOUS_SHARE = 0.2  # of the sessions, where a split does not have another
# Share of the popular tier in all behaviors, a little less than the half that the prepared item
# table takes for its first tier, so that the tier holds all popular items.
_POPULAR = 0.49
_PAUSE = (3600, 20 * 3600)  # seconds between sessions: the least, and the mean of the rest

# Equally likely values of a standard normal distribution.
_NORMAL = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 201) for i in range(201)])


@dataclasses.dataclass(frozen=True)
class World:
    """What is the same for all users.

    Args:
        items: int. As in `planted.Planted`.
        aspects: int. As in `planted.Planted`.
        values: int. As in `planted.Planted`.
        types: int. As in `planted.Planted`.
        visible: bool. As in `planted.Planted`.
        impressions: int. As in `planted.Planted`.
        history_length: int. As in `planted.Planted`.
        sessions: bool. As in `planted.Planted`.
        spurious_items: str. As in `planted.Planted`.
        seed: int. As in `planted.Planted`.
    """

    items: int
    aspects: int
    values: int
    types: int
    visible: bool
    impressions: int
    history_length: int
    sessions: bool
    spurious_items: str
    seed: int

    @functools.cached_property
    def type_values(self):
        """int array of shape (types, aspects). What each type prefers."""
        rng = np.random.default_rng([self.seed, 0])
        return rng.integers(self.values, size=(self.types, self.aspects))

    @functools.cached_property
    def prior(self):
        """float array of shape (types, aspects, values). Probability of a preference, given the
        type. Without types, users are of one type to which all values are alike.
        """
        if not self.types:
            return np.full((1, self.aspects, self.values), 1 / self.values)
        own = self.type_values[..., None] == np.arange(self.values)
        return (1 - ANEW) * own + ANEW / self.values

    @functools.cached_property
    def catalog(self):
        """`Catalog`. The items."""
        spurious = 0.0
        if self.sessions:
            spurious = SPURIOUS_SHARE * SESSIONS * SESSION / self.history_length
        popular = _POPULAR - (spurious if self.spurious_items == "popular" else 0)
        groups = 1 if self.visible else self.values**self.aspects
        rng = np.random.default_rng([self.seed, 1])
        return Catalog(self.items, groups, popular / (1 - spurious), rng)

    @functools.cached_property
    def match(self):
        """float. Log-odds that one more matching aspect adds."""
        return match_weight(self.aspects, self.values)

    def log_odds(self, matches, items):
        """Log-odds of a click without intents.

        Args:
            matches: int array. Numbers of aspects in which the user prefers what candidates show.
            items: int array of the same shape. Positions of the candidates in the catalog.

        Returns:
            float array of the same shape.
        """
        bias = _bias(self.aspects, self.values, self.match)
        return bias + self.match * matches + _APPEAL * self.catalog.appeal[items]


def match_weight(aspects, values):
    """Log-odds of a match that give the true click probabilities the AUC that 4 aspects have.

    Args:
        aspects: int. Number of aspects.
        values: int. Number of values of each.

    Returns:
        float. It is 1.8 for 4 aspects of 16 values.
    """
    goal = _true_auc(4, 16, _MATCH)
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if _true_auc(aspects, values, middle) < goal:
            low = middle
        else:
            high = middle
    return round(low, 4)


def _true_auc(aspects, values, weight):
    """AUC of the true click probabilities among infinitely many candidates, without sessions."""
    matches, chance = np.arange(aspects + 1), _match_probability(values)
    mass = [math.comb(aspects, k) * chance**k * (1 - chance) ** (aspects - k) for k in matches]
    log_odds = _bias(aspects, values, weight) + weight * matches[:, None] + _APPEAL * _NORMAL
    order = np.argsort(log_odds, axis=None)
    probability = sigmoid(log_odds.ravel()[order])
    mass = np.repeat(mass, len(_NORMAL))[order]
    positive, negative = mass * probability, mass * (1 - probability)
    below = np.cumsum(negative) - negative / 2
    return (positive * below).sum() / (positive.sum() * negative.sum())


def _bias(aspects, values, weight):
    """Log-odds without a match, such that the mean log-odds are the same for all aspects."""
    return _MEAN_LOG_ODDS - weight * aspects * _match_probability(values)


def _match_probability(values):
    return SHOWN + (1 - SHOWN) / values


def sigmoid(log_odds):
    """The probabilities that log-odds stand for.

    Args:
        log_odds: float array of any shape.

    Returns:
        float array of the same shape.
    """
    return 1 / (1 + np.exp(-log_odds))


class Catalog:
    """The items, in one group for each combination of values, or all in one group.

    Args:
        items: int. Number of items, at least `groups`.
        groups: int. Number of groups. Item i is in group i * groups // items.
        popular: float. Share of the behaviors of a group whose items are of its popular tier.
        rng: `np.random.Generator`.

    Attributes:
        ids: int array of shape (items,). Ids in no order.
        groups: int array of shape (items,). The group of each item, ascending.
        popularity: float array of shape (items,). Shares within the groups, descending there.
        is_popular: bool array of shape (items,). Which items are of the popular tier.
        appeal: float array of shape (items,). How much each item is liked by everybody.
    """

    def __init__(self, items, groups, popular, rng):
        self.ids = rng.permutation(items) + 1
        self.appeal = rng.normal(size=items)
        self.groups = np.arange(items) * groups // items
        popularity = np.exp(rng.normal(size=items))
        popularity = popularity[np.lexsort((-popularity, self.groups))]
        self.popularity = popularity / np.bincount(self.groups, popularity)[self.groups]
        self._first = np.searchsorted(self.groups, np.arange(groups + 1))
        # The items of a group share an interval of length 1 that begins at the group's number.
        self._ends = np.cumsum(self.popularity)
        self.is_popular = self._ends - self.groups <= popular
        self._popular_until = (self._ends - self.groups)[self.is_popular].max(initial=0.0)

    def by_popularity(self, draws, groups):
        """Items by their popularity.

        Args:
            draws: float array. Evenly distributed in [0, 1).
            groups: int array of the same shape. The group of each item.

        Returns:
            int array of the same shape. Positions of items.
        """
        found = np.searchsorted(self._ends, groups + draws, side="right")
        return np.clip(found, self._first[groups], self._first[groups + 1] - 1)

    def evenly(self, draws, groups):
        """Items that are equally likely.

        Args:
            draws: float array. Evenly distributed in [0, 1).
            groups: int array of the same shape. The group of each item.

        Returns:
            int array of the same shape. Positions of items.
        """
        first, end = self._first[groups], self._first[groups + 1]
        return first + (draws * (end - first)).astype(np.int64)

    def of_tier(self, draws, popular):
        """Moves draws into a tier of the only group.

        Args:
            draws: float array. Evenly distributed in [0, 1).
            popular: bool. Whether it is the popular tier.

        Returns:
            float array of the same shape, as `by_popularity` takes it.
        """
        until = self._popular_until
        return draws * until if popular else until + draws * (1 - until)

    def are_popular(self, draws):
        """Whether draws give items of the popular tier of the only group.

        Args:
            draws: float array, as `by_popularity` takes it.

        Returns:
            bool array of the same shape.
        """
        return draws < self._popular_until


class Users:
    """Some users, with all that they have done and are shown.

    Args:
        world: `World`. What is the same for all users.
        number: int. How many users.
        spurious_share: float. Probability that a session is spurious. With the same `rng` and
            another share, the users have the same preferences, values, intents and candidates.
        rng: `np.random.Generator`.

    Attributes:
        spurious_share: float.
        types: int array of shape (users,). -1 where there are no types.
        preferred: int array of shape (users, aspects). The preferred values.
        strengths: float array of shape (users, aspects). Each one of `STRENGTHS`.
        values: int array of shape (users, behaviors, aspects). What behaviors show, newest last.
        items: int array of shape (users, behaviors). Positions of the items in the catalog.
        ages: int array of shape (users, behaviors). Seconds from a behavior to the request.
        intents: int array of shape (users, sessions, aspects). Intents of the newest sessions, -1
            for none. There are no sessions unless the world has them.
        spurious: bool array of shape (users, sessions). Which of these sessions are spurious.
        candidates: int array of shape (users, impressions, aspects). What candidates show.
        candidate_items: int array of shape (users, impressions). Positions of the items.
        probabilities: float array of shape (users, impressions). True click probabilities.
        labels: bool array of shape (users, impressions).
        when: float array of shape (users,). When the request is, in [0, 1) of the split's time.
    """

    def __init__(self, world, number, spurious_share, rng):
        self._world, self._rng = world, rng
        self.spurious_share = spurious_share
        shape = (number, world.aspects)
        self.types = rng.integers(world.types, size=number) if world.types else np.full(number, -1)
        self.preferred = rng.integers(world.values, size=shape)
        if world.types:
            anew = rng.random(shape) < ANEW
            self.preferred = np.where(anew, self.preferred, world.type_values[self.types])
        self.strengths = rng.choice(STRENGTHS, size=shape)
        self.when = rng.random(number)
        self._behave()
        self._show()

    def _behave(self):
        world, rng = self._world, self._rng
        number = len(self.when)
        shape = (number, world.history_length)
        shows = rng.random((*shape, world.aspects), np.float32) < self.strengths[:, None]
        anything = rng.integers(world.values, size=shows.shape, dtype=np.int16)
        self.values = np.where(shows, self.preferred[:, None].astype(np.int16), anything)
        draws = rng.random(shape)
        sessions = SESSIONS if world.sessions else 0
        self.intents = np.full((number, sessions, world.aspects), -1)
        self.spurious = np.zeros((number, sessions), bool)
        if sessions:
            newest = slice(-SESSIONS * SESSION, None)
            self.values[:, newest] = self._with_intents(self.values[:, newest])
            draws[:, newest] = self._of_one_tier(draws[:, newest])
        self.items = world.catalog.by_popularity(draws, self._groups(self.values))
        steps = rng.integers(20, 600, shape)  # from each behavior to the next, newest first
        least, mean = _PAUSE
        pauses = least + rng.exponential(mean, shape).astype(np.int64)
        steps = np.where(np.arange(world.history_length) % SESSION == 0, pauses, steps)
        steps[:, 0] = rng.integers(60, 1200, number)  # to the request
        self.ages = np.cumsum(steps, axis=1)[:, ::-1]

    def _with_intents(self, values):
        """Draws intents; has half of the behaviors of the newest sessions show them."""
        world, rng = self._world, self._rng
        has = rng.random(self.intents.shape) < 1 / world.aspects
        intents = rng.integers(world.values, size=has.shape)
        self.intents = np.where(has, intents, -1)
        usual = values.reshape(-1, SESSIONS, SESSION, world.aspects)
        shows = has[:, :, None] & (rng.random(usual.shape) < SHOWS_INTENT)
        return np.where(shows, intents[:, :, None], usual).reshape(values.shape)

    def _of_one_tier(self, draws):
        """Draws which sessions are spurious; makes their items, and no others, of one tier."""
        world, rng = self._world, self._rng
        self.spurious = rng.random(self.spurious.shape) < self.spurious_share
        popular = world.spurious_items == "popular"
        usual = draws.reshape(-1, SESSIONS, SESSION)
        again = rng.random(usual.shape)
        of_tier = world.catalog.of_tier(again, popular)
        of_other = world.catalog.of_tier(again, not popular)
        alike = (world.catalog.are_popular(usual) == popular).all(2, keepdims=True)
        is_first = np.arange(SESSION) == 0
        genuine = np.where(alike & is_first, of_other, usual)
        return np.where(self.spurious[..., None], of_tier, genuine).reshape(draws.shape)

    def _show(self):
        world, rng = self._world, self._rng
        shape = (len(self.when), world.impressions)
        shows = rng.random((*shape, world.aspects)) < SHOWN
        anything = rng.integers(world.values, size=shows.shape)
        self.candidates = np.where(shows, self.preferred[:, None], anything)
        groups = self._groups(self.candidates)
        self.candidate_items = world.catalog.evenly(rng.random(shape), groups)
        matches = (self.candidates == self.preferred[:, None]).sum(-1)
        intended = self.candidates[:, :, None] == self.intents[:, None]
        intended = (intended & ~self.spurious[:, None, :, None]).any((2, 3))
        log_odds = world.log_odds(matches, self.candidate_items) + INTENT * intended
        self.probabilities = sigmoid(log_odds)
        self.labels = rng.random(shape) < self.probabilities

    def _groups(self, values):
        """The group in the catalog for each combination of values."""
        world = self._world
        groups = np.zeros(values.shape[:-1], np.int64)
        if not world.visible:
            for aspect in range(world.aspects):
                groups = groups * world.values + values[..., aspect]
        return groups
