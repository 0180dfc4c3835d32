"""The truth behind a simulated log: who the users are, what the items are, and what makes people act.

Every probability depends on a few things, most of which a model can see:

* what an item hides behind its id (its appeal, how lurid it is, its depth, its worth), and its category, brand, price
  and duration;
* the user's country, age band, tier and declared interests, and a little that shows in no column;
* the match: how near the item's category lies to the categories of the user's last `HISTORY` clicks. It moves with
  what was shown and clicked, so no static column can stand in for the history;
* position, device and hour.

Clicks and likes conflict: what is lurid or familiar, and whoever is young, clicks more and likes less.

Axes: **B** rows (impressions), **T** responses in the order of `RESPONSES`, **V** items, **U** users, **C** categories,
**K** topic dimensions, **A** hidden aspects of an item, **L** recent clicks, **Q** requests, **P** positions on a page.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What is drawn for an impression. Purchase and watch are conditional on the click; watch is a share, not an event.
RESPONSES = ("click", "like", "long_view", "purchase", "watch")
CLICK, LIKE, LONG_VIEW, PURCHASE, WATCH = range(len(RESPONSES))

# Clicks that make up a user's present interest: the newest ones, strictly before the request.
HISTORY = 10

CATEGORIES = (
    "art", "audio", "baby", "beauty", "bikes", "books", "cameras", "comics", "cooking", "crafts", "decor", "fashion",
    "fitness", "games", "garden", "kids", "music", "outdoor", "pets", "phones", "shoes", "tools", "toys", "travel",
)  # fmt: skip
# A brand makes items of one category: brand and category together must not tell which item it is.
BRANDS_PER_CATEGORY = 2
BRANDS = tuple(f"brand-{number:02d}" for number in range(BRANDS_PER_CATEGORY * len(CATEGORIES)))
COUNTRIES = ("US", "CN", "IN", "BR", "JP", "DE", "FR", "GB", "KR", "IT", "ES", "PL")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
AGE_SHARES = (0.20, 0.30, 0.22, 0.16, 0.12)
TIERS = ("free", "plus", "prime")
TIER_SHARES = (0.60, 0.25, 0.15)
DEVICES = ("android", "ios", "web", "tablet")
TOPICS = 3
MISSING_PRICE_SHARE = 0.05

# Coefficients, one column a response: click, like, long_view, purchase given click, watched share given click. A name
# without `by` and `log` scales effects of unit variance. Together they put the oracle's AUC near 0.8 for every task,
# of which the hidden aspects carry about 0.05 and the match about 0.03; the tests hold them to that.
BIAS_T = np.array([-1.70, -2.60, -1.25, -1.05, 0.20])
ASPECT_AT = np.array(
    [
        [0.65, 0.00, 0.35, 0.00, 0.10],  # appeal
        [0.50, -0.75, -0.30, -0.25, -0.35],  # luridness
        [0.00, 0.65, 0.75, 0.00, 0.60],  # depth
        [0.00, 0.20, 0.00, 0.80, 0.00],  # worth
    ]
)
LURIDNESS = 1
CATEGORY_T = np.array([0.25, 0.25, 0.25, 0.30, 0.15])
BRAND_T = np.array([0.15, 0.20, 0.10, 0.25, 0.05])
LOG_PRICE_T = np.array([-0.15, 0.00, 0.00, -0.35, 0.00])
LOG_DURATION_T = np.array([0.00, 0.00, -0.50, 0.00, -0.30])
MATCH_T = np.array([0.60, -0.60, 0.45, 0.30, 0.30])
COUNTRY_T = np.array([0.15, 0.25, 0.15, 0.25, 0.10])
AGE_T = np.array([-0.25, 0.45, 0.25, 0.20, 0.20])
TIER_T = np.array([0.10, 0.10, 0.15, 0.45, 0.10])
INTEREST_T = np.array([0.10, 0.20, 0.10, 0.15, 0.05])
PRIVATE_T = np.array([0.10, 0.10, 0.08, 0.08, 0.04])
AGE_BY_LURIDNESS_T = np.array([-0.10, -0.12, 0.00, 0.00, 0.00])
TIER_BY_LOG_PRICE_T = np.array([0.05, 0.00, 0.00, 0.12, 0.00])
LOG_POSITION_T = np.array([-0.45, -0.15, -0.30, 0.00, 0.00])
DEVICE_T = np.array([0.10, 0.15, 0.10, 0.20, 0.10])
EVENING_T = np.array([0.15, 0.20, 0.25, 0.10, 0.15])
# Brings the match to about unit variance.
MATCH_SCALE = 3.0


@dataclass(frozen=True)
class Items:
    """The catalogue, ordered by category. `effect_VT` is everything that does not depend on the user."""

    item_id_V: Ints
    category_V: Ints
    brand_V: Ints
    price_V: Floats  # NaN where it is unknown
    duration_seconds_V: Floats
    luridness_V: Floats
    log_price_V: Floats  # of mean 0 and variance 1; 0 where the price is unknown
    effect_VT: Floats
    popularity_V: Floats  # adds up to 1


@dataclass(frozen=True)
class Users:
    """The population. `effect_UT` is everything that does not depend on the item."""

    country_U: Ints
    age_U: Ints
    tier_U: Ints
    interests_U2: Ints  # two distinct categories
    device_U: Ints  # the one of most sessions
    activity_U: Floats  # adds up to 1
    effect_UT: Floats


@dataclass(frozen=True)
class World:
    """Everything that stays fixed while a log is written. A device numbered `len(DEVICES)` is unknown."""

    items: Items
    users: Users
    topic_CK: Floats  # of unit length
    device_effect: Floats  # [devices and the unknown one, T]


def make_world(users: int, items: int, *, seed: int) -> World:
    """Catalogue, population and topics of a seed, each from a random stream of its own."""
    for_items, for_users, for_rest = (np.random.default_rng([seed, part]) for part in range(3))
    topic_CK = for_rest.standard_normal((len(CATEGORIES), TOPICS))
    device_effect = _effects(for_rest, len(DEVICES), DEVICE_T)
    return World(
        items=_make_items(for_items, items),
        users=_make_users(for_users, users),
        topic_CK=topic_CK / np.linalg.norm(topic_CK, axis=1, keepdims=True),
        device_effect=np.concatenate([device_effect, np.zeros((1, len(RESPONSES)))]),
    )


def response_logits(
    world: World,
    item_B: Ints,
    user_B: Ints,
    *,
    match_B: Floats,
    position_B: Ints,
    device_B: Ints,
    hour_B: Ints,
) -> Floats:
    """The logit of every response of every row. Positions count from 1, hours from 0 to 23, UTC."""
    items, users = world.items, world.users
    age_B, tier_B = _age(users.age_U)[user_B], _tier(users.tier_U)[user_B]
    logits_BT = BIAS_T + items.effect_VT[item_B]
    logits_BT += users.effect_UT[user_B]
    logits_BT += match_B[:, None] * MATCH_T
    logits_BT += (age_B * items.luridness_V[item_B])[:, None] * AGE_BY_LURIDNESS_T
    logits_BT += (tier_B * items.log_price_V[item_B])[:, None] * TIER_BY_LOG_PRICE_T
    logits_BT += np.log(position_B)[:, None] * LOG_POSITION_T
    logits_BT += world.device_effect[device_B]
    logits_BT += np.cos((hour_B - 21) * (2 * np.pi / 24))[:, None] * EVENING_T
    return logits_BT


def page_match(world: World, recent_item_QL: npt.NDArray[np.integer], item_QP: Ints) -> Floats:
    """How near each item of a page lies to its user's recent clicks: the mean inner product of topics, scaled.

    `recent_item_QL` holds item numbers, -1 for none; without any click the match is 0.
    """
    category_V = world.items.category_V
    present_QL = recent_item_QL >= 0
    topic_QLK = world.topic_CK[category_V[recent_item_QL]] * present_QL[:, :, None]
    interest_QK = topic_QLK.sum(axis=1) / np.maximum(present_QL.sum(axis=1), 1)[:, None]
    similarity_QP = np.einsum("qk,qpk->qp", interest_QK, world.topic_CK[category_V[item_QP]])
    return np.asarray(similarity_QP * MATCH_SCALE)


def probability(logits: Floats) -> Floats:
    """The logistic function; the logits made here stay far from where it would overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _make_items(rng: np.random.Generator, items: int) -> Items:
    weights_V = rng.permutation(np.arange(1, items + 1) ** -0.6)
    weights_V /= weights_V.sum()
    # At least one item of each category, and categories in order, so that each is a run of items.
    rest = rng.integers(len(CATEGORIES), size=items - len(CATEGORIES))
    category_V = np.sort(np.concatenate([np.arange(len(CATEGORIES)), rest]))
    brand_V = category_V * BRANDS_PER_CATEGORY + rng.integers(BRANDS_PER_CATEGORY, size=items)
    aspect_VA = _standardised(rng.standard_normal((items, len(ASPECT_AT))), weights_V)
    # Few price points and few durations, or the two would be an item's second name.
    log_price_V, log_duration_V = np.round(2.0 * rng.standard_normal((2, items))) / 2.0
    unknown_V = rng.random(items) < MISSING_PRICE_SHARE
    price_V = np.where(unknown_V, np.nan, np.round(np.exp(3.2 + 0.8 * log_price_V)) - 0.01)
    log_price_V = np.where(unknown_V, 0.0, log_price_V)
    effect_VT = aspect_VA @ ASPECT_AT
    effect_VT += _effects(rng, len(CATEGORIES), CATEGORY_T)[category_V]
    effect_VT += _effects(rng, len(BRANDS), BRAND_T)[brand_V]
    effect_VT += log_price_V[:, None] * LOG_PRICE_T + log_duration_V[:, None] * LOG_DURATION_T
    return Items(
        # As a shop would number them: with gaps, and in the order of nothing.
        item_id_V=100_000 + rng.permutation(9 * items)[:items],
        category_V=category_V,
        brand_V=brand_V,
        price_V=price_V,
        duration_seconds_V=np.round(np.exp(3.6 + 0.5 * log_duration_V)),
        luridness_V=aspect_VA[:, LURIDNESS],
        log_price_V=log_price_V,
        effect_VT=effect_VT,
        popularity_V=weights_V,
    )


def _make_users(rng: np.random.Generator, users: int) -> Users:
    country_U = rng.choice(len(COUNTRIES), size=users, p=_falling(len(COUNTRIES)))
    age_U = rng.choice(len(AGE_BANDS), size=users, p=AGE_SHARES)
    tier_U = rng.choice(len(TIERS), size=users, p=TIER_SHARES)
    first_U = rng.integers(len(CATEGORIES), size=users)
    second_U = (first_U + rng.integers(1, len(CATEGORIES), size=users)) % len(CATEGORIES)
    activity_U = rng.gamma(1.5, size=users) + 0.05
    effect_UT = rng.standard_normal((users, len(RESPONSES))) * PRIVATE_T
    effect_UT += _effects(rng, len(COUNTRIES), COUNTRY_T)[country_U]
    interest_CT = _effects(rng, len(CATEGORIES), INTEREST_T)
    effect_UT += interest_CT[first_U] + interest_CT[second_U]
    effect_UT += _age(age_U)[:, None] * AGE_T + _tier(tier_U)[:, None] * TIER_T
    return Users(
        country_U=country_U,
        age_U=age_U,
        tier_U=tier_U,
        interests_U2=np.stack([first_U, second_U], axis=1),
        device_U=rng.choice(len(DEVICES), size=users, p=_falling(len(DEVICES))),
        activity_U=activity_U / activity_U.sum(),
        effect_UT=effect_UT,
    )


def _effects(rng: np.random.Generator, levels: int, scale_T: Floats) -> Floats:
    """An effect on every response for each level of something, of the given deviation across levels."""
    return _standardised(rng.standard_normal((levels, len(scale_T)))) * scale_T


def _age(age_U: Ints) -> Floats:
    """Age bands as numbers from -1.5 (youngest) to 1.5."""
    return np.asarray((age_U / (len(AGE_BANDS) - 1) - 0.5) * 3.0)


def _tier(tier_U: Ints) -> Floats:
    """Tiers as numbers from -1.5 (free) to 1.5."""
    return np.asarray((tier_U / (len(TIERS) - 1) - 0.5) * 3.0)


def _falling(levels: int) -> Floats:
    """Shares in proportion to 1, 1/2, 1/3 ..."""
    weights = 1.0 / np.arange(1, levels + 1)
    return np.asarray(weights / weights.sum())


def _standardised(values: Floats, weights: Floats | None = None) -> Floats:
    """Columns of mean 0 and variance 1 under the weights, so that what can be learned hardly depends on the seed."""
    centred = values - np.average(values, axis=0, weights=weights)
    return np.asarray(centred / np.sqrt(np.average(centred**2, axis=0, weights=weights)))
