"""The click probabilities that Bayes' rule gives, by what is known of a user, all of them exact.

Every oracle knows how users and clicks are drawn (the constants, each item's appeal, the share of
spurious sessions) and the candidate, whose own values are evidence, too, because candidates show
preferences. Of the sessions that it knows, it knows which are spurious, as the items tell. It does
not know the user's preferences, strengths and intents. It scores a candidate without the others of
its request, as models do.

The likelihood of a history is a product over aspects. So each aspect has a weight for each value
that may be preferred, summed over the strengths. Given the type, aspects match independently, so
that the number of matches has the product of their generating polynomials.
"""

import dataclasses

import numpy as np

from tfrec_diffusion.datasets import planted_users


@dataclasses.dataclass(frozen=True)
class _Knowledge:
    """What an oracle knows of the user.

    Args:
        population: bool. Whether it knows what each type prefers. If not, it holds the preferences
            for independent and every value for equally likely.
        newest: int or `None`. How many of the newest behaviors it knows; `None` is all.
        without_sessions: bool. Whether it does not know the sessions with intents.
        aspects: int or `None`. How many aspects of the behaviors it knows; `None` is all.
        credulous: bool. Whether it takes every session for a genuine one.
    """

    population: bool = False
    newest: int | None = None
    without_sessions: bool = False
    aspects: int | None = None
    credulous: bool = False


_RECENT = planted_users.SESSIONS * planted_users.SESSION
_KNOWLEDGE = {
    "population": _Knowledge(population=True),
    "own": _Knowledge(),
    "newest_20_population": _Knowledge(population=True, newest=20),
    "newest_20": _Knowledge(newest=20),
    "category": _Knowledge(aspects=1),
}
_KNOWLEDGE_OF_SESSIONS = {
    "population_credulous": _Knowledge(population=True, credulous=True),
    "population_without_sessions": _Knowledge(population=True, without_sessions=True),
}


def click_probabilities(world, users):
    """What the oracles predict.

    Args:
        world: `planted_users.World`. The world of the users.
        users: `planted_users.Users`. The users.

    Returns:
        dict of float arrays of shape (users, impressions) by the name of the oracle:
        `"population"`: from the whole history and the types. `"own"`: from the whole history alone.
        `"newest_20_population"` and `"newest_20"`: the same from the newest 20 behaviors.
        `"category"`: from the first aspect of the whole history alone. With sessions, also
        `"population_credulous"`: as `"population"`, but every session is taken for a genuine one;
        and `"population_without_sessions"`: from all but the newest sessions and the types.
    """
    known = {**_KNOWLEDGE, **(_KNOWLEDGE_OF_SESSIONS if world.sessions else {})}
    return {name: _predict(world, users, knowledge) for name, knowledge in known.items()}


def pooled_counts(users):
    """How often the history shows the candidate's values, summed over aspects.

    Args:
        users: `planted_users.Users`. The users.

    Returns:
        int array of shape (users, impressions).
    """
    same = [
        (users.values == users.candidates[:, i, None]).sum((1, 2))
        for i in range(users.candidates.shape[1])
    ]
    return np.stack(same, axis=1)


def _predict(world, users, known):
    even = np.full((1, world.aspects, world.values), 1 / world.values)
    prior = world.prior if known.population else even
    aspects = world.aspects if known.aspects is None else known.aspects
    strengths = np.array(planted_users.STRENGTHS)
    behaviors = _known_behaviors(users.values, known)
    # (users, aspects, values, strengths), as is all that depends on preferences
    likelihood = _likelihood(_counts(behaviors, world.values), strengths)
    likelihood[:, aspects:] = 1
    missed = missed_unseen = 1.0
    if world.sessions:
        ratio, missed, missed_unseen = _sessions(world, users, known, strengths, aspects)
        likelihood *= ratio

    candidates = users.candidates[..., None]  # (users, impressions, aspects, 1)
    matches = candidates == np.arange(world.values)
    shown = (1 - planted_users.SHOWN) / world.values + planted_users.SHOWN * matches
    weights = likelihood[:, None] * shown[..., None]
    every = _match_weights(weights.sum(-1), prior, candidates)
    without = _match_weights((weights * missed).sum(-1), prior, candidates) * missed_unseen
    matches = np.arange(world.aspects + 1)
    log_odds = world.log_odds(matches, users.candidate_items[..., None])
    clicks = without * planted_users.sigmoid(log_odds)
    clicks += (every - without) * planted_users.sigmoid(log_odds + planted_users.INTENT)
    return clicks.sum(-1) / every.sum(-1)


def _counts(behaviors, values):
    """How often each value occurs: (.., behaviors, aspects) to (.., aspects, values)."""
    return np.stack([(behaviors == value).sum(-2) for value in range(values)], axis=-1)


def _shows(strengths, values):
    """Probability that a behavior shows a value: any other than the preferred one, and this."""
    other = (1 - strengths) / values
    return other, other + strengths


def _likelihood(counts, strengths):
    """Likelihood of each preferred value and strength, up to a factor for each aspect and user."""
    other, preferred = _shows(strengths, counts.shape[-1])
    length = counts.sum(-1)[..., None, None]
    logarithm = counts[..., None] * np.log(preferred / other) + length * np.log(other)
    return np.exp(logarithm - logarithm.max((-2, -1), keepdims=True))


def _match_weights(weights, prior, candidates):
    """Weight of each number of matches.

    Args:
        weights: float array of shape (users, impressions, aspects, values). Of preferred values.
        prior: float array of shape (types, aspects, values).
        candidates: int array of shape (users, impressions, aspects, 1). Values of the candidates.

    Returns:
        float array of shape (users, impressions, aspects + 1).
    """
    types, aspects, _ = prior.shape
    polynomial = np.ones((*weights.shape[:2], types, 1))
    for aspect in range(aspects):
        of_aspect, candidate = weights[:, :, aspect], candidates[:, :, aspect]
        every = of_aspect @ prior[:, aspect].T
        match = np.take_along_axis(of_aspect, candidate, -1) * prior[:, aspect].T[candidate[..., 0]]
        longer = np.zeros((*polynomial.shape[:-1], aspect + 2))
        longer[..., :-1] += polynomial * (every - match)[..., None]
        longer[..., 1:] += polynomial * match[..., None]
        polynomial = longer
    return polynomial.mean(2)


def _sessions(world, users, known, strengths, aspects):
    """What the newest sessions tell.

    Args:
        world: `planted_users.World`. The world of the users.
        users: `planted_users.Users`. The users.
        known: `_Knowledge`. What is known of them.
        strengths: float array of shape (strengths,). The strengths that there are.
        aspects: int. How many aspects of the behaviors are known.

    Returns:
        Tuple of a float array of shape (users, aspects, values, strengths): how much likelier the
        known sessions are, given preferred value and strength, than ordinary behaviors; a float
        array of shape (users, impressions, aspects, values, strengths): the probability that an
        aspect of a candidate has no intent of a known genuine session; and a float: the probability
        that no aspect has an intent of an unknown genuine session.
    """
    has_intent = 1 / world.aspects
    this_intent = has_intent / world.values
    genuine = np.ones_like(users.spurious) if known.credulous else ~users.spurious
    known_sessions = _known_sessions(users.values, known)
    likelihood, missed = np.ones(1), np.ones(1)
    for session, behaviors in known_sessions:
        of_other, of_preferred = _intent_ratios(_counts(behaviors, world.values), strengths)
        every = of_other.sum(-2, keepdims=True) - of_other + of_preferred
        ratio = 1 - has_intent + this_intent * every
        ratio[:, aspects:] = 1
        likelihood = likelihood * ratio
        hit = _of_candidates(of_other, of_preferred, users.candidates)
        hit = this_intent * hit / ratio[:, None]
        hit[:, :, aspects:] = this_intent
        missed = missed * (1 - hit * genuine[:, session, None, None, None, None])
    share = 0.0 if known.credulous else users.spurious_share
    missed_by_one = share + (1 - share) * (1 - this_intent) ** world.aspects
    return likelihood, missed, missed_by_one ** (planted_users.SESSIONS - len(known_sessions))


def _known_behaviors(values, known):
    if known.without_sessions:
        return values[:, :-_RECENT]
    return values if known.newest is None else values[:, -known.newest :]


def _known_sessions(values, known):
    """The known ones of the sessions with intents, oldest first: number and behaviors of each."""
    if known.without_sessions:
        return []
    sessions = np.split(values[:, -_RECENT:], planted_users.SESSIONS, axis=1)
    skipped = (
        0
        if known.newest is None
        else planted_users.SESSIONS - known.newest // planted_users.SESSION
    )
    return list(enumerate(sessions))[skipped:]


def _intent_ratios(counts, strengths):
    """How much more likely a session is with an intent than without any.

    Args:
        counts: int array of shape (users, aspects, values). How often the session shows each value.
        strengths: float array of shape (strengths,).

    Returns:
        Two float arrays of shape (users, aspects, values, strengths): for each value as the intent,
        if it is not the preferred one and if it is.
    """
    shows = planted_users.SHOWS_INTENT
    rest = (1 - shows) ** (counts.sum(-1, keepdims=True) - counts)
    ratios = []
    for chance in _shows(strengths, counts.shape[-1]):
        ratio = (shows + (1 - shows) * chance) / chance
        ratios.append(ratio ** counts[..., None] * rest[..., None])
    return ratios


def _of_candidates(of_other, of_preferred, candidates):
    """The ratios of the candidates' values, given each preferred value and strength.

    Args:
        of_other: float array of shape (users, aspects, values, strengths).
        of_preferred: float array of the same shape.
        candidates: int array of shape (users, impressions, aspects).

    Returns:
        float array of shape (users, impressions, aspects, values, strengths).
    """
    index = candidates[..., None, None]
    other, preferred = (
        np.take_along_axis(ratios[:, None], index, -2) for ratios in (of_other, of_preferred)
    )
    values = np.arange(of_other.shape[-2])[:, None]
    return np.where(index == values, preferred, other)
