"""The autoscaler's own constants: one set for every workload, each with what it trades."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Times in seconds."""

    budget_share: float = 0.75
    """Share of the error budget that is aimed at; the rest is for what no forecast sees."""
    budget_window_s: float = 86_400.0
    """How long a miss is remembered."""
    budget_prior_s: float = 3_600.0
    """How long a fresh memory takes itself to have met the budget exactly: it neither saves nor spends at first."""
    min_prior_requests: float = 100.0
    """And at least this many requests: the more, the less a trickle's first misses count, and the longer it takes until
    its budget tells."""
    price_gain: float = 1.5
    """e-folds of the shadow price per budget overspent."""
    saving_gain: float = 1.5
    """The same for a budget that is not spent."""
    max_pressure: float = 1.5
    """Most e-folds up: a lost budget is not won back at any price."""
    gain_without_primary: float = 8.0
    """As `price_gain`, for a fleet without a primary replica."""
    max_pressure_without_primary: float = 3.0
    """As `max_pressure`, for such a fleet."""
    max_saving: float = 3.0
    """Most e-folds down."""
    price_scale: float = 0.15
    """Shadow price at a budget spent exactly, in units of (one replica) / (budgeted misses of the mean load)."""
    hold_cold_starts: float = 0.3
    """How many cold starts long a replica is kept after it was last needed (ski rental: at 1, keeping it costs at most
    what starting it again would)."""
    min_hold_s: float = 60.0
    """The same where starts are quick: longer pays for idle replicas, shorter for starts."""
    regret_cold_starts: float = 2.0
    """A scale-down that is taken back within this many cold starts was a mistake: the next one waits twice as long."""
    max_regret: float = 3.0
    """Most doublings."""
    regret_memory_s: float = 3_600.0
    """How long a mistake is remembered: the doublings fade by a factor of e in this time."""
    stay_s: float = 300.0
    """How long a replica is expected to stay: its start, paid for and serving nothing, must pay in that time."""
    gone_s: float = 700.0
    """How long a stopped replica is expected to be gone: what that saves must pay for its next start."""
    relearn_s: float = 900.0
    """No scale-down before this much was seen."""
    step_down_margin: float = 0.05
    """A smaller fleet must score this much better."""
    pending_timeout_cold_starts: float = 2.0
    """A replica that starts for longer than this many 90th percentiles of a cold start is given up."""
    min_pending_timeout_s: float = 60.0
    """And not before this: starts that are quick vary more than their distribution says."""
    first_pending_timeout_s: float = 600.0
    """As `min_pending_timeout_s`, before any start of the pool was seen through: a first one may fetch the weights and
    compile."""
    num_patient_failures: int = 2
    """After this many starts that were given up in a row, each is given twice the time of the one before: it may be
    slow rather than lost."""
    max_pending_timeout_s: float = 3_600.0
    """The end of that doubling."""
    back_off_s: float = 60.0
    """How long a pool without capacity is left alone: longer misses what comes back, shorter asks in vain. Doubled with
    each failure in a row."""
    max_back_off_s: float = 900.0
    """The end of that doubling."""
    patience_s: float = 10.0
    """How long a late request may wait while nothing is up that could serve it. One that was turned away has waited
    long enough."""
