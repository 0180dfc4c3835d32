"""Sessions, pages and clicks of a simulated log, one window of time after the other.

A window draws its sessions from a random stream of its own (seed, day, window) and plays their requests in time order
against each user's recent clicks. They are played in rounds: round j holds the j-th request of every user, so a round
is one vectorised step although each request depends on the clicks of the one before. What outlives a window is
`Traffic`: every user's recent clicks and two counters.

Axes: **Q** requests of a window, **G** requests of a round, **P** positions on a page, **S** sessions, **B** rows
(impressions), **T** responses, **U** users, **V** items, **L** recent clicks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.simulate_truth import (
    CATEGORIES,
    CLICK,
    DEVICES,
    HISTORY,
    RESPONSES,
    Floats,
    Ints,
    World,
    page_match,
    probability,
    response_logits,
)

PAGE = 8
LONGEST_SESSION = 4
PAUSE_SECONDS = (20.0, 240.0)
MISSING_DEVICE_SHARE = 0.03
OTHER_DEVICE_SHARE = 0.2
# Share of a page that comes from the one category its session is about; the rest follows popularity.
FOCUS_SHARE = 0.5
DAY_SECONDS = 86_400
MICROSECONDS = 1_000_000
# Shape of the gamma noise on watch time: its deviation is the mean over the square root of this.
WATCH_SHAPE = 4.0
# Relative traffic of the 24 hours of a day.
TRAFFIC = np.array(
    [5, 3, 2, 2, 2, 3, 5, 8, 10, 11, 12, 13, 15, 14, 13, 13, 14, 16, 19, 22, 24, 23, 17, 10],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Window:
    """A stretch of a day: it carries the share `index / windows` to `(index + 1) / windows` of the traffic."""

    day: int
    index: int
    windows: int
    rows: int


@dataclass(frozen=True)
class Requests:
    """Requests of one window, ordered by user and time."""

    user_Q: Ints
    session_Q: Ints
    focus_Q: Ints  # the category the session is about
    device_Q: Ints
    microsecond_Q: Ints  # since midnight; no two of one user are equal
    rank_Q: Ints  # earlier requests of the same user in this window
    rows_Q: Ints  # impressions on the page: PAGE, less for at most one request


@dataclass(frozen=True)
class Impressions:
    """What happened in one window, ordered by time and position."""

    user_B: Ints
    item_B: Ints
    session_B: Ints
    request_B: Ints
    position_B: Ints
    device_B: Ints
    microsecond_B: Ints
    chance_BT: Floats
    drawn_BT: Floats  # uniform on [0, 1): a response happens where it is below its chance
    watch_noise_B: Floats  # of mean 1


class Traffic:
    """Plays windows in order and holds what the next one needs."""

    def __init__(self, world: World, *, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.sessions = 0
        self.requests = 0
        self.recent_item_UL = np.full((len(world.users.activity_U), HISTORY), -1, dtype=np.int32)
        self._activity_U = np.cumsum(world.users.activity_U)
        self._popularity = np.concatenate([[0.0], np.cumsum(world.items.popularity_V)])
        self._first_of_category = np.searchsorted(
            world.items.category_V, np.arange(len(CATEGORIES) + 1)
        )

    def play(self, window: Window) -> Impressions:
        """The impressions of the window; their clicks are remembered for the next."""
        rng = np.random.default_rng([self.seed, 3, window.day, window.index])
        requests = self._draw_requests(rng, window)
        item_QP = self._draw_pages(rng, requests)
        drawn_QPT = rng.random((*item_QP.shape, len(RESPONSES)))
        chance_QPT = self._play_rounds(requests, item_QP, drawn_QPT)
        order_Q = np.argsort(requests.microsecond_Q, kind="stable")
        shown_QP = np.arange(PAGE) < requests.rows_Q[order_Q, None]

        def rows(values_Q: Ints) -> Ints:
            return np.repeat(values_Q, requests.rows_Q[order_Q])

        self.requests += len(order_Q)
        return Impressions(
            user_B=rows(requests.user_Q[order_Q]),
            item_B=item_QP[order_Q][shown_QP],
            session_B=rows(requests.session_Q[order_Q]),
            request_B=rows(np.arange(self.requests - len(order_Q), self.requests)),
            position_B=np.nonzero(shown_QP)[1] + 1,
            device_B=rows(requests.device_Q[order_Q]),
            microsecond_B=rows(requests.microsecond_Q[order_Q]),
            chance_BT=chance_QPT[order_Q][shown_QP],
            drawn_BT=drawn_QPT[order_Q][shown_QP],
            watch_noise_B=rng.gamma(WATCH_SHAPE, 1.0 / WATCH_SHAPE, size=window.rows),
        )

    def _draw_requests(self, rng: np.random.Generator, window: Window) -> Requests:
        count = -(-window.rows // PAGE)
        # More sessions than needed; the requests beyond `count` never happen.
        session_Q = np.repeat(np.arange(count), rng.integers(1, LONGEST_SESSION + 1, size=count))[
            :count
        ]
        sessions = int(session_Q[-1]) + 1
        user_S = np.searchsorted(
            self._activity_U, rng.random(sessions) * self._activity_U[-1], side="right"
        )
        device_S = self._draw_devices(rng, user_S)
        focus_S = rng.integers(len(CATEGORIES), size=sessions)
        microsecond_Q = _draw_times(rng, window, session_Q)
        rows_Q = np.full(count, PAGE)
        rows_Q[-1] -= count * PAGE - window.rows
        user_Q = user_S[session_Q]
        order_Q = np.lexsort((microsecond_Q, user_Q))
        user_Q, session_Q = user_Q[order_Q], session_Q[order_Q]
        rank_Q = np.arange(count) - np.searchsorted(user_Q, user_Q)
        self.sessions += sessions
        return Requests(
            user_Q=user_Q,
            session_Q=session_Q + self.sessions - sessions,
            focus_Q=focus_S[session_Q],
            device_Q=device_S[session_Q],
            # The rank keeps times of one user apart even where two draws agree to the microsecond.
            microsecond_Q=microsecond_Q[order_Q] + rank_Q,
            rank_Q=rank_Q,
            rows_Q=rows_Q[order_Q],
        )

    def _draw_devices(self, rng: np.random.Generator, user_S: Ints) -> Ints:
        """The user's usual device, sometimes another one, sometimes unknown."""
        other_S = rng.integers(len(DEVICES), size=len(user_S))
        kind_S = rng.random(len(user_S))
        device_S = np.where(kind_S < OTHER_DEVICE_SHARE, other_S, self.world.users.device_U[user_S])
        return np.where(kind_S > 1.0 - MISSING_DEVICE_SHARE, len(DEVICES), device_S)

    def _draw_pages(self, rng: np.random.Generator, requests: Requests) -> Ints:
        """Items of every page, none twice; a shorter page leaves its last ones unseen."""
        low_Q = self._popularity[self._first_of_category[requests.focus_Q]]
        high_Q = self._popularity[self._first_of_category[requests.focus_Q + 1]]
        shape = (len(low_Q), PAGE)
        focused_QP = rng.random(shape) < FOCUS_SHARE
        place_QP = rng.random(shape)
        place_QP = np.where(
            focused_QP, low_Q[:, None] + place_QP * (high_Q - low_Q)[:, None], place_QP
        )
        item_QP = self._items_at(place_QP)
        while (repeated_QP := _repeated(item_QP)).any():
            item_QP[repeated_QP] = self._items_at(rng.random(np.count_nonzero(repeated_QP)))
        return item_QP

    def _items_at(self, place: Floats) -> Ints:
        """The items at places between 0 and 1 of the cumulated popularity."""
        found = np.searchsorted(self._popularity, place, side="right") - 1
        # The sum of popularities may fall short of 1 by a rounding error.
        return np.minimum(found, len(self._popularity) - 2)

    def _play_rounds(self, requests: Requests, item_QP: Ints, drawn_QPT: Floats) -> Floats:
        """The chances of every impression, each user's requests seeing the clicks of the ones before."""
        chance_QPT = np.empty_like(drawn_QPT)
        order_Q = np.argsort(requests.rank_Q, kind="stable")
        for at_G in np.split(order_Q, np.cumsum(np.bincount(requests.rank_Q))[:-1]):
            user_G = requests.user_Q[at_G]
            item_GP = item_QP[at_G]
            logits_BT = response_logits(
                self.world,
                item_GP.ravel(),
                np.repeat(user_G, PAGE),
                match_B=page_match(self.world, self.recent_item_UL[user_G], item_GP).ravel(),
                position_B=np.tile(np.arange(1, PAGE + 1), len(at_G)),
                device_B=np.repeat(requests.device_Q[at_G], PAGE),
                hour_B=np.repeat(requests.microsecond_Q[at_G] // (3_600 * MICROSECONDS), PAGE),
            )
            chance_QPT[at_G] = probability(logits_BT).reshape(len(at_G), PAGE, -1)
            clicked_GP = drawn_QPT[at_G, :, CLICK] < chance_QPT[at_G, :, CLICK]
            clicked_GP &= np.arange(PAGE) < requests.rows_Q[at_G, None]
            self._remember(user_G, np.where(clicked_GP, item_GP, -1))
        return chance_QPT

    def _remember(self, user_G: Ints, clicked_item_GP: Ints) -> None:
        """Keep each user's newest clicks; those of one page are ordered by item id, as a pipeline's history is."""
        id_GP = np.where(clicked_item_GP >= 0, self.world.items.item_id_V[clicked_item_GP], -1)
        by_id_GP = np.take_along_axis(
            clicked_item_GP, np.argsort(id_GP, axis=1, kind="stable"), axis=1
        )
        seen_G = np.concatenate([self.recent_item_UL[user_G], by_id_GP], axis=1)
        # Sorting presence moves the gaps to the front; being stable, it leaves the clicks in order.
        newest_GL = np.argsort(seen_G >= 0, axis=1, kind="stable")[:, -HISTORY:]
        self.recent_item_UL[user_G] = np.take_along_axis(seen_G, newest_GL, axis=1)


def _draw_times(rng: np.random.Generator, window: Window, session_Q: Ints) -> Ints:
    """Microseconds since midnight: pauses of seconds to minutes within a session, which never outlasts its window."""
    seconds = np.linspace(0, DAY_SECONDS, len(TRAFFIC) + 1)
    share = np.concatenate([[0.0], np.cumsum(TRAFFIC) / TRAFFIC.sum()])
    sessions = int(session_Q[-1]) + 1
    place_S = (window.index + rng.random(sessions)) / window.windows
    start_S = np.interp(place_S, share, seconds)
    end = np.interp((window.index + 1) / window.windows, share, seconds)
    pause_S = np.minimum(
        rng.uniform(*PAUSE_SECONDS, size=sessions), (end - start_S) / (LONGEST_SESSION + 1)
    )
    step_Q = np.arange(len(session_Q)) - np.searchsorted(session_Q, session_Q)
    second_Q = start_S[session_Q] + step_Q * pause_S[session_Q]
    return np.asarray(second_Q * MICROSECONDS, dtype=np.int64)


def _repeated(item_QP: Ints) -> npt.NDArray[np.bool_]:
    """Where an item stands on its page that already stood there."""
    order_QP = np.argsort(item_QP, axis=1, kind="stable")
    sorted_QP = np.take_along_axis(item_QP, order_QP, axis=1)
    repeated_QP = np.zeros(item_QP.shape, dtype=np.bool_)
    np.put_along_axis(repeated_QP, order_QP[:, 1:], sorted_QP[:, 1:] == sorted_QP[:, :-1], axis=1)
    return repeated_QP
