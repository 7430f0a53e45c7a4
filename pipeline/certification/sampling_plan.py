"""What certification draws and by which bounds it certifies: its settings as one value, and their flags."""

import re
from dataclasses import dataclass, replace

import numpy as np

from macer_tf import bounds, certificates
from macer_tf.budgets import FixedBudget, RadiusBudget, ToleranceBudget
from macer_tf.votes import MAX_SOFT_SAMPLES, Votes
from pipeline.cli.command_line import ABOVE_0, INSIDE_0_1, TEXT, Kind, Setting, choice, whole
from pipeline.utils import code
from pipeline.utils.errors import InputError, reason
from pipeline.utils.numbers import exactly

HARD, ALL = "hard", "all"


def _kinds():
    """Kind of certificate -> its bound, except for the kind "hard", whose bound is the one that its budget allows."""
    return {bound.kind: bound for bound in bounds.BOUNDS.values() if bound.kind != HARD}


def bound_of(certify):
    """The `Bound` of the certificates that a setting asks for; for "hard" and "all", the default one.

    Args:
        certify: "hard", "all", a kind of certificate, or package.module:function for a function that is registered as a
            bound; the module is imported.

    Raises:
        InputError: in one line, if there is no such bound.
    """
    if certify in (HARD, ALL):
        return bounds.get(bounds.DEFAULT)
    if ":" not in certify:
        if certify not in _kinds():
            raise InputError(f"Unknown kind of certificates. Received: {certify}; accepted: {_accepted()}.")
        return _kinds()[certify]
    function = code.attribute(certify)
    bound = next((bound for bound in bounds.BOUNDS.values() if bound.function is function), None)
    if bound is None:
        raise InputError(f"{certify} is not a bound: decorate it with @macer_tf.bounds.register.")
    if bound.kind == HARD:
        raise InputError(f"{certify} is a bound that the budget chooses: give certify=hard instead.")
    _check_users_bound(certify, bound)
    return bound


def _check_users_bound(certify, bound):
    """Tries a user's own bound on a few numbers, before training and sampling are paid for."""
    if bound.kind == ALL or not re.fullmatch(r"[\w.+-]+", bound.kind):
        raise InputError(
            f"The bound {certify} gives its name to files and reports: letters, digits and .+-_ are accepted, and "
            f"not {ALL!r}. Received: {bound.kind!r}"
        )
    if others := [one.name for one in bounds.BOUNDS.values() if one.kind == bound.kind and one is not bound]:
        raise InputError(
            f"Certificates by the bound {certify} would be called {bound.kind}, as those by {others[0]} are; register "
            "it under another name."
        )
    try:
        bound.unanimous(np.array([1, 10, 1000]), 0.001)
    except Exception as error:  # whatever someone's code raises
        raise InputError(f"The bound {certify} cannot be used ({type(error).__name__}: {reason(error)}).") from error


def _accepted():
    return f"{', '.join((HARD, *_kinds(), ALL))}, or package.module:function"


_BUDGET = choice(fixed="fixed", adaptive="adaptive")
_BETAS = Kind("numbers above 0 such as 1,16", lambda text: [ABOVE_0.parse(beta) for beta in text.split(",")])

CERTIFY = Setting("certify", TEXT, _accepted(), HARD)
BUDGET = Setting("budget", _BUDGET, "adaptive: n at most, radii within 1 percent of what n would give", "fixed")
SOFT_BETAS = Setting("soft_betas", _BETAS, "inverse temperatures of the soft certificates", [16.0])
SKIP_WRONG = Setting(
    "skip_wrong", choice(yes=True, no=False), "estimate nothing where the selected class is wrong", True
)
N0 = Setting("n0", whole(1), "samples that choose the class", 100)
N = Setting("n", whole(1), "samples that bound its probability", 100_000)
ALPHA = Setting("alpha", INSIDE_0_1, "largest probability that a certificate is false", 0.001)


# Nobody certifies with more noise, for pixels in [0, 1].
_LARGEST_USUAL_SIGMA = 4.0


def notes_on(sigma):
    """What to say about a noise level far above what pixels in [0, 1] can bear, one line each."""
    if sigma <= _LARGEST_USUAL_SIGMA:
        return []
    return [
        f"sigma={sigma:g} drowns every image: it is in units of pixels in [0, 1]. If it was meant for pixels from 0 to "
        f"255, give {sigma / 255:.3g}."
    ]


def cheaper(settings, limit):
    """Names of settings that would make drawing shorter, for `console.print_if_long`; `limit` is that of the images."""
    is_plain = settings["budget"] == "fixed" and settings["certify"] == HARD
    return ["n", limit, *(["budget=adaptive"] if is_plain else [])]


@dataclass(frozen=True)
class SamplingPlan:
    """What is drawn, and which certificates it gives.

    Attributes:
        n0, n, alpha: selection samples of an image, estimation samples (the most, if adaptive), failure probability.
        certify: "hard", "all", or another kind of certificate, as `Bound.kind` calls it.
        betas: inverse temperatures of the soft votes; none if only hard certificates are wanted.
        radii: stop as soon as it is decided whether an image is certified at each; None if that is not asked for.
        tolerance: stop where the radius is expected to be within this fraction of what n samples would give; or None.
        skip_wrong: whether images whose selected class is not the label get no estimation samples. Certified accuracy
            and ACR are the same. Soft certificates select their own class, so with them no image is skipped.
    """

    n0: int
    n: int
    alpha: float
    certify: str = HARD
    betas: tuple = ()
    radii: tuple | None = None
    tolerance: float | None = None
    skip_wrong: bool = True

    @classmethod
    def of(cls, settings, betas, radii=None, tolerance=None, skip_wrong=True):
        """The plan for settings by name.

        Args:
            settings: `n0`, `n`, `alpha`, `certify` and `budget`.
            betas: inverse temperatures of soft certificates, if there are any.
            radii, tolerance: what an adaptive budget is asked for, if it is one.
            skip_wrong: as above.

        Raises:
            InputError: in one line, if they do not go together or could certify nothing.
        """
        bound = bound_of(settings["certify"])
        is_soft = settings["certify"] == ALL or bound.is_soft
        if settings["budget"] == "fixed":
            radii = tolerance = None
        elif settings["certify"] != HARD:
            raise InputError(
                "budget=adaptive is for certify=hard: the other bounds hold for a number of samples fixed "
                f"beforehand. Received: certify={settings['certify']}"
            )
        plan = cls(
            **{name: settings[name] for name in ("n0", "n", "alpha")},
            certify=settings["certify"] if settings["certify"] in (HARD, ALL) else bound.kind,
            betas=tuple(sorted(set(betas))) if is_soft else (),
            radii=radii,
            tolerance=tolerance,
            skip_wrong=skip_wrong,
        )
        if is_soft and max(plan.n, plan.n0) > MAX_SOFT_SAMPLES:
            raise InputError(
                f"Soft votes hold up to {MAX_SOFT_SAMPLES:,} samples per image. Received: n={plan.n}, n0={plan.n0}"
            )
        try:
            for _, bound, _ in plan.kinds:
                if bounds.get(bound).needs_fixed_n:  # what a budget for radii can reach, `check_sigma` finds out
                    certificates.check_can_certify(plan.n, plan.alpha, bound)
        except ValueError as error:
            raise InputError(f"n is too small. {error}") from None
        return plan

    @classmethod
    def of_run(cls, settings):
        """The plan of `pipeline.run`: if adaptive, for radii within 1 % of what n samples would give.

        Raises:
            InputError: as `of`.
        """
        return cls.of(settings, settings["soft_betas"], tolerance=0.01)

    @property
    def budget(self):
        """The `budgets` object."""
        if self.radii is not None:
            return RadiusBudget(tuple(self.radii), self.n)
        return FixedBudget(self.n) if self.tolerance is None else ToleranceBudget(self.tolerance, self.n)

    @property
    def kinds(self):
        """(name, bound, beta) of every kind of certificate; the first one is the run's own."""
        hard = (HARD, bounds.DEFAULT if self.radii is None else "anytime", None)
        others = []
        for bound in _kinds().values():
            if self.certify not in (bound.kind, ALL):
                continue
            # Betas with all their digits, because otherwise two could share a name.
            named = [(f"{bound.kind}-{exactly(beta)}", bound.name, beta) for beta in self.betas]
            others += named if bound.is_soft else [(bound.kind, bound.name, None)]
        return [hard, *others] if self.certify in (HARD, ALL) else others

    @property
    def is_randomized(self):
        """Whether a bound needs the votes' uniforms."""
        return any(bounds.get(bound).is_randomized for _, bound, _ in self.kinds)

    @property
    def first_look(self):
        """What the estimation samples, and the class that they are for, depend on; a JSON value."""
        # How many samples bring the radius near enough depends on alpha, too.
        of_alpha = {} if self.tolerance is None else {"alpha": self.alpha}
        radii = self.radii and list(self.radii)
        return {"n0": self.n0, "n": self.n, "radii": radii, "tolerance": self.tolerance, **of_alpha}

    def check_sigma(self, sigma):
        """Raises InputError if n samples could never decide what is asked for at this noise level."""
        votes = Votes(np.array([[self.n0, 0]]), np.zeros((1, 2), np.int64))
        try:
            self.budget.more(votes, sigma, self.alpha)
        except ValueError as error:
            raise InputError(str(error)) from None

    def spares(self, labels):
        """Whether the budget may spare images, given these labels: int64 [images], -1 where not known; or None."""
        is_known = labels is not None and (labels >= 0).all()
        return is_known and self.skip_wrong and self.certify == HARD

    @property
    def is_fixed(self):
        """Whether every image gets n samples."""
        return self.radii is None and self.tolerance is None

    @property
    def is_exact(self):
        """Whether an image must not have more samples than its budget asked for."""
        return self.radii is None

    def share_of_alpha(self, first_looks):
        """The share of alpha that is left for each image; None on a first look.

        Args:
            first_looks: `first_look` of each plan that the samples were first drawn for; None for an unknown one.

        Returns:
            None if it was this plan, made before any of the samples was drawn. Otherwise, its number of samples was
            chosen after a look: 1. But 1/2 if the class, too, may have been chosen after a look, because another n0
            had selected one before: a false certificate of the most likely class and one of any other class are then
            two events.
        """
        if first_looks == [self.first_look]:
            return None
        return 1 if all(first and first["n0"] == self.n0 for first in first_looks) else 0.5

    def certificates(self, votes, sigma, share_of_alpha=None):
        """Kind's name -> `Certificates`.

        Args:
            votes: `Votes` of what the budget asked for.
            sigma: noise level.
            share_of_alpha: as above. After a look, the certificates are by the anytime bound, which allows for it.
        """
        if share_of_alpha is not None:
            certified = certificates.certify(votes, sigma, self.alpha * share_of_alpha, "anytime")
            return {HARD: replace(certified, alpha=self.alpha)}
        if self.certify == HARD:
            return {HARD: self.budget.certify(votes, sigma, self.alpha)}
        return {name: self.budget.certify(votes, sigma, self.alpha, bound, beta) for name, bound, beta in self.kinds}

    def check_another_look(self, first, share_of_alpha):
        """Raises InputError if votes that were drawn for `first` cannot also be certified for this plan."""
        if self.certify != HARD:
            raise InputError(
                f"Samples of this noise were first drawn for {in_words(first)}, and certificates other than hard ones "
                f"need a number of samples fixed before any was seen: give another seed. Received: {self.certify}"
            )
        try:
            certificates.check_can_certify(self.n, self.alpha * share_of_alpha, "anytime")
        except ValueError as error:
            raise InputError(
                f"Votes of this model and seed were first drawn for {in_words(first)}, so another n is a choice "
                "after a look and its certificates use the anytime-valid bound; "
                f"n={self.n} is too small for that. "
                f"{error} Or give {in_words(first)} again, or another seed, whose votes are new."
            ) from None


def in_words(first_look):
    """`SamplingPlan.first_look` in words; None stands for an unknown one."""
    if first_look is None:
        return "something that can no longer be read"
    # All digits: rounded ones, given again, would be another look.
    asked = [f"n0={first_look['n0']:,}", f"n={first_look['n']:,}"]
    if first_look["radii"] is not None:
        asked.append(f"radii={','.join(map(exactly, first_look['radii']))}")
    if first_look["tolerance"] is not None:
        asked.append(f"tolerance={exactly(first_look['tolerance'])}")
    if "alpha" in first_look:
        asked.append(f"alpha={exactly(first_look['alpha'])}")
    return ", ".join(asked)
