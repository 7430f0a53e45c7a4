"""The bounds that certificates rest on, by name: the one list that everything else uses.

`certificates.certify`, the limits of what n samples can certify, and the pipeline's kinds of certificates derive from
it. To add a bound, decorate a function:

    @bounds.register("my-bound")
    def my_lower(successes, n, alpha): ...
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from macer_tf import confidence
from macer_tf.checks import as_array
from macer_tf.votes import Votes

DEFAULT = "clopper-pearson"

# Name -> bound, in the order of registration; `register` adds to it.
BOUNDS: dict[str, "Bound"] = {}


@dataclass(frozen=True)
class Bound:
    """A one-sided lower confidence bound on the selected class's probability, or on its mean soft score.

    Examples:
        >>> from macer_tf import bounds
        >>> bound = bounds.get("clopper-pearson")
        >>> round(float(bound.unanimous(100, alpha=0.001)), 4)
        0.9333
        >>> bound.is_soft, bound.needs_fixed_n
        (False, True)

    Attributes:
        name: the name to ask for it by.
        function: returns the bound. It takes (successes, n, alpha) for class counts or, for soft scores in [0, 1],
            (mean, variance, n, alpha), with the unbiased sample variance. It must hold with probability at least
            1 - alpha over the samples. It takes NumPy arrays [images], n from 1, and returns float64 [images], below 1.
        is_soft: whether it is a bound on soft scores, and so about the soft-smoothed classifier.
        needs_fixed_n: whether n must be fixed before any estimation sample is seen.
        is_randomized: whether the function of class counts takes a fourth argument, U, uniform on [0, 1] and one per
            image; the bound must decrease in U.
        kind: what its certificates are called in reports and settings. "hard" ones use the bound that the budget
            allows.
    """

    name: str
    function: Callable[..., np.ndarray]
    is_soft: bool = False
    needs_fixed_n: bool = True
    is_randomized: bool = False
    kind: str = "hard"

    def lower(self, votes: Votes, selected: np.ndarray, alpha: float, beta: float | None = None) -> np.ndarray:
        """The bound for the selected class of each image.

        Args:
            votes: `Votes`, with soft moments at `beta` for a soft bound, and with uniforms for a randomised one.
            selected: int64 [images], one class each.
            alpha: failure probability for each image.
            beta: inverse temperature, for a soft bound only.

        Returns:
            float64 [images].
        """

        def of_selected(values):
            return np.take_along_axis(values, selected[:, None], axis=1)[:, 0]

        uniforms = [votes.uniforms] if self.is_randomized else []
        if not self.is_soft:
            return self._of_drawn(votes.n, alpha, [of_selected(votes.estimation)], uniforms)
        assert beta is not None
        moments = votes.soft[beta]
        values = [of_selected(moments.mean(votes.n)), of_selected(moments.variance(votes.n))]
        return self._of_drawn(votes.n, alpha, values)

    def unanimous(self, n: int | np.ndarray, alpha: float) -> np.ndarray:
        """The bound's largest possible value: n samples, all for one class or all with score 1; same shape as n."""
        n = np.asarray(n)
        if self.is_soft:
            return self._of_drawn(n, alpha, [np.ones(n.shape), np.zeros(n.shape)])
        return self._of_drawn(n, alpha, [n], [np.zeros(n.shape)] * self.is_randomized)

    def _of_drawn(self, n, alpha, values, uniforms=()):
        """What the function returns for images that have samples, and 0 for others; only a bound becomes a radius."""
        drawn, lower = n != 0, np.zeros(n.shape)
        if not drawn.any():
            return lower
        found = as_array(
            f"What the bound {self.name} returns",
            self.function(*(of_all[drawn] for of_all in (*values, n)), alpha, *(of_all[drawn] for of_all in uniforms)),
        )
        if found.shape != n[drawn].shape or found.dtype != np.float64:  # a narrower type may have rounded up
            raise ValueError(
                f"The bound {self.name} must return one float64 for each n, {n[drawn].shape}. Received: "
                f"{found.dtype} {found.shape}"
            )
        # No number of samples shows that a probability is 1; above 1, and for NaN, there is no radius.
        if not (found < 1).all():
            raise ValueError(f"The bound {self.name} must return numbers below 1. Received: {found.max()}")
        lower[drawn] = found
        return lower


def register(
    name: str,
    *,
    is_soft: bool = False,
    needs_fixed_n: bool = True,
    is_randomized: bool = False,
    kind: str | None = None,
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Decorator: registers a function as the bound called `name`.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import bounds
        >>> @bounds.register("hoeffding-of-counts")
        ... def hoeffding_of_counts(successes, n, alpha):
        ...     return np.maximum(successes / n - np.sqrt(-np.log(alpha) / (2 * n)), 0)
        >>> "hoeffding-of-counts" in bounds.names()
        True
        >>> del bounds.BOUNDS["hoeffding-of-counts"]  # so that this example leaves nothing behind

    Args:
        name: the name to ask for it by, as in `certify(votes, sigma, alpha, bound=name)`.
        is_soft: see `Bound`.
        needs_fixed_n: see `Bound`.
        is_randomized: see `Bound`.
        kind: see `Bound`; by default `name`, or "soft-<name>" for soft bounds.

    Raises:
        ValueError: if there is already a bound of that name, or it is not a string.
    """
    if not isinstance(name, str):
        raise ValueError(f"A bound is registered by its name: @bounds.register('my-bound'). Received: {name!r}")
    if name in BOUNDS:
        raise ValueError(f"A bound of this name already exists; choose another name. Received: name={name!r}")

    def add(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        BOUNDS[name] = Bound(
            name, function, is_soft, needs_fixed_n, is_randomized, kind or (f"soft-{name}" if is_soft else name)
        )
        return function

    return add


def get(name: str) -> Bound:
    """The bound called `name`.

    Examples:
        >>> from macer_tf import bounds
        >>> bounds.get("anytime").needs_fixed_n
        False

    Raises:
        ValueError: if there is no such bound.
    """
    if not isinstance(name, str) or name not in BOUNDS:
        raise ValueError(f"bound must be one of {', '.join(BOUNDS)}. Received: bound={name!r}")
    return BOUNDS[name]


def names(is_soft: bool | None = None) -> tuple[str, ...]:
    """Names of all bounds, or of only the soft or only the hard ones, in the order in which they were registered.

    Examples:
        >>> from macer_tf import bounds
        >>> bounds.names(is_soft=True)
        ('hoeffding', 'empirical-bernstein')
    """
    return tuple(name for name, bound in BOUNDS.items() if is_soft in (None, bound.is_soft))


register(DEFAULT, kind="hard")(confidence.clopper_pearson_lower)
register("anytime", needs_fixed_n=False, kind="hard")(confidence.anytime_lower)


@register("hoeffding", is_soft=True)
def _hoeffding(mean, variance, n, alpha):
    return confidence.hoeffding_lower(mean, n, alpha)


register("empirical-bernstein", is_soft=True, kind="soft-bernstein")(confidence.empirical_bernstein_lower)
register("randomized-clopper-pearson", is_randomized=True, kind="hard-randomized")(
    confidence.randomized_clopper_pearson_lower
)
