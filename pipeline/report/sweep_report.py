"""A sweep's comparison as one page, and the words that the page and the terminal share.

A comparison is the contents of sweep.json: the swept setting's name, the value that differences refer to, radii, and
for each value its figures, or why it failed.
"""

from macer_tf.certificates import max_radius
from pipeline.report import certification_report, charts, figures, page, words
from pipeline.utils.atomic_files import write_bytes, write_text

FILE_NAME = "sweep.html"

_NOTES = (
    "Differences are paired: means over the same images, with the standard error over the drawing of images. Each "
    "compares one trained model with one other: another training seed moves them too.",
    "A value that is chosen because it is best here is chosen on these images: certify it on other images before "
    "quoting its figures.",
)


def write(directory, comparison, curves, listing):
    """Writes the page, and its figure as PNG, into `directory`.

    Args:
        comparison: see above.
        curves: value -> float64 [images], certified radii, -1 where wrong or abstained.
        listing: group -> list of [name, values in words, meaning].
    """
    setting, members = comparison["setting"], comparison["members"]
    finished = [member for member in members if member["failure"] is None]
    named = {f"{setting} = {value}": radii for value, radii in curves.items()}
    write_bytes(directory / "certified_accuracy.png", figures.save_png(figures.radius_accuracy_curves(named)))
    html = page.render(
        title=_title(comparison),
        summary=_summary(comparison, finished),
        settings={group: [page.Setting(*entry) for entry in entries] for group, entries in listing.items()},
        metrics=_table(comparison),
        figures=[
            page.accuracy_curves(
                charts.certified_accuracy(named, colors=_colors(setting, curves), limit=_limit(finished)),
                f"Curves of certified accuracy by radius, one for each of the {len(finished)} values of {setting}.",
            )
        ],
        notes=[
            *(f"{setting} = {member['value']} failed. {member['failure']}" for member in members if member["failure"]),
            *_NOTES,
            *certification_report.NOTES,
        ],
    )
    write_text(directory / FILE_NAME, html)


def accuracies(comparison, member):
    """A member's certified accuracy at each radius, None if it failed."""
    return member.get("certified_accuracy", [None] * len(comparison["radii"]))


def acr(member):
    """A member's ACR with its standard error, or "failed"."""
    return "failed" if member["failure"] else words.mean(member["acr"], member["acr_standard_error"])


def columns_behind_acr(comparison):
    """(header, a text for each member) of those columns that have anything to show."""
    columns = zip(*map(_behind_acr, comparison["members"]), strict=True)
    headed = zip(("difference", "s/epoch", "paper's ACR *"), columns, strict=True)
    return [(header, [cell or "-" for cell in cells]) for header, cells in headed if any(cells)]


def _behind_acr(member):
    """A member's difference, seconds per epoch and the paper's ACR as texts; None where there is none."""
    difference, seconds, reported = member["difference"], member["seconds_per_epoch"], member["paper"] or {}
    return (
        difference and words.mean(difference["mean"], difference["standard_error"], sign="+"),
        None if seconds is None else f"{seconds:.3g}",
        f"{reported['acr']:.3f}" if reported.get("acr") else None,
    )


def conditions(comparison):
    """What the figures hold for and what the columns are, one line each."""
    members = [member for member in comparison["members"] if member["failure"] is None]
    common = ", ".join(
        f"{name}={_each(members, name, form)}"
        for name, form in (("n", ","), ("n0", ","), ("alpha", "g"), ("sigma", "g"))
    )
    lines = [f"{common}; images: {_each(members, 'image_set')}"]
    if any(member["difference"] for member in members):
        reference = f"{comparison['setting']}={comparison['reference']}"
        lines.append(f"difference: of the ACR from that of {reference}, on the same images, ± its standard error")
    if any(member["seconds_per_epoch"] is not None for member in members):
        lines.append("s/epoch: seconds of a training epoch, the median over the epochs, on the machine that trained")
    if len({(member["n"], member["alpha"]) for member in members}) > 1:
        lines.append("ACR grows with n and alpha: differences between them are not differences between models")
    if len(found := dict.fromkeys(words.bound(member["bound"], member["beta"]) for member in members)) > 1:
        why = ", because some n was chosen after a look at votes" if "anytime" in found else ""
        lines.append(f"bound: {' | '.join(found)}{why}; differences between bounds are not differences between models")
    sets = dict.fromkeys(member["paper"]["image_set"] for member in members if member["paper"])
    if sets:
        lines.append(f"* as reported, at n=100,000 and alpha=0.001; {'; '.join(sets)}")
    return lines


def _colors(setting, curves):
    """A place in the list of colours for each curve; a method has the one in its own report."""
    own = charts.METHOD_COLORS if setting == "method" else {}
    free = iter([place for place in range(len(curves) + len(own)) if place not in own.values()])
    return {f"{setting} = {value}": own[value] if value in own else next(free) for value in curves}


def _limit(members):
    """The largest radius that n and alpha can certify, and its name; None if members differ in it."""
    limits = {(max_radius(*(one[name] for name in ("sigma", "n", "alpha", "bound"))), one["n"]) for one in members}
    if len(limits) > 1:
        return None
    ((limit, n),) = limits
    return limit, charts.name_of_limit(limit, n)


def _title(comparison):
    setting, members = comparison["setting"], comparison["members"]
    fixed = [
        words
        for name, words in (("dataset", f"{members[0]['dataset']}"), ("sigma", f"sigma = {members[0]['sigma']:g}"))
        if setting != name and len({member[name] for member in members}) == 1
    ]
    return f"Sweep of {setting}" + (f": {', '.join(fixed)}" if fixed else "")


def _summary(comparison, finished):
    setting = comparison["setting"]
    best = max(finished, key=lambda member: member["acr"])
    facts = [
        page.Fact(
            "Highest average certified radius (ACR)",
            words.mean(best["acr"], best["acr_standard_error"], digits=3),
            (f"{setting} = {best['value']}", f"± one standard error; {_each(finished, 'image_set')}"),
            short="Highest ACR",
        )
    ]
    if best["difference"]:
        difference = words.mean(best["difference"]["mean"], best["difference"]["standard_error"], sign="+", digits=3)
        facts.append(
            page.Fact(f"Against {setting} = {comparison['reference']}", difference, ("ACR on the same images",))
        )
    n0 = _each(finished, "n0", ",")
    return [
        *facts,
        page.Fact("Values finished", f"{len(finished)} of {len(comparison['members'])}"),
        page.Fact("Samples per image, n", _each(finished, "n", ","), (f"after n0 = {n0} to choose a class",)),
        page.Fact("Failure probability, alpha", _each(finished, "alpha", "g"), ("for each image",)),
    ]


def _table(comparison):
    columns = columns_behind_acr(comparison)
    rows = [
        page.MetricRow(
            f"{comparison['setting']} = {member['value']}",
            tuple(accuracies(comparison, member)),
            acr(member),
            behind=tuple(cells[place] for _, cells in columns),
        )
        for place, member in enumerate(comparison["members"])
    ]
    headers = tuple(header for header, _ in columns)
    return page.MetricsTable(tuple(comparison["radii"]), tuple(rows), headers, tuple(conditions(comparison)))


def _each(members, name, form=""):
    """The members' values of this, in their order, each once."""
    return " | ".join(dict.fromkeys(f"{member[name]:{form}}" for member in members))
