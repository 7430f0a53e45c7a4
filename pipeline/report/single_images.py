"""Single images, and which classes are confused: what a page shows of individual certificates."""

import io

import numpy as np
from PIL import Image

from pipeline.report import page, table
from pipeline.report.words import at_least

# Limits that keep a page small: images shown, pixels of a picture's side, classes of a table, pairs of classes listed.
MAX_IMAGES, MAX_SIDE, MAX_CLASSES, MAX_PAIRS = 96, 64, 20, 20
_MAX_VOTED = 3
_WORST_FIRST = (table.WRONG, table.UNESTIMATED, table.ABSTAINED, table.CORRECT, table.CERTIFIED)


def worst_first(certificates, labels):
    """Positions [images]: wrong by descending radius, unestimated, abstained, then the others by ascending radius."""
    outcomes = table.outcomes(certificates, labels)
    rank = np.array([_WORST_FIRST.index(outcome) for outcome in outcomes], np.int64)
    badness = np.where(outcomes == table.WRONG, -certificates.radii, certificates.radii)
    return np.lexsort((certificates.p_lower, badness, rank))


def chosen(order):
    """At most `MAX_IMAGES` of these positions: half of them the first ones, the others evenly spread over the rest."""
    half = MAX_IMAGES // 2
    if len(order) <= MAX_IMAGES:
        return order
    rest = order[half:]
    return np.concatenate([order[:half], rest[np.arange(half) * (len(rest) - 1) // (half - 1)]])


def browser(evaluated):
    """The `page.Images` of an `Evaluated`."""
    order = worst_first(evaluated.certificates, evaluated.labels)
    shown = chosen(order)
    outcomes = table.outcomes(evaluated.certificates, evaluated.labels)
    caption = "Each with a noisy copy as it was voted on, the votes of its estimation samples, and the lower bound on "
    caption += "the probability p_A of the selected class. "
    if len(shown) < len(order):
        half = MAX_IMAGES // 2
        caption += f"Shown are {len(shown)} of {len(order):,} images: the {half} worst, and {half} spread evenly over "
        caption += "the others."
    return page.Images(caption, [_card(int(position), outcomes[position], evaluated) for position in shown])


def confusion(selected, labels, class_names):
    """The `page.Confusion` of selected classes [images] and labels [images], or None if no label is known."""
    known = labels >= 0
    if not known.any():
        return None
    pairs, counts = np.unique(np.stack([labels[known], selected[known]]), axis=1, return_counts=True)
    if len(class_names) <= MAX_CLASSES:
        matrix = np.zeros((len(class_names),) * 2, np.int64)
        matrix[tuple(pairs)] = counts
        # From 0 for none to 4 for the whole row.
        shares = np.ceil(4 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).astype(int)
        rows = [list(zip(*row, strict=True)) for row in zip(matrix.tolist(), shares.tolist(), strict=True)]
        return page.Confusion(class_names, list(zip(class_names, rows, strict=True)), ())
    wrong = [
        (class_names[label], class_names[other], int(count))
        for (label, other), count in zip(pairs.T, counts, strict=True)
        if label != other
    ]
    return page.Confusion(class_names, (), sorted(wrong, key=lambda pair: -pair[2])[:MAX_PAIRS])


def _card(position, outcome, evaluated):
    certificates, names = evaluated.certificates, evaluated.class_names
    label = names[evaluated.labels[position]] if evaluated.labels[position] >= 0 else None
    radius, selected = float(certificates.radii[position]), names[certificates.selected[position]]
    votes, selection = evaluated.votes.estimation[position], evaluated.votes.selection[position]

    def told(counts):
        most = [place for place in np.argsort(-counts, kind="stable")[:_MAX_VOTED] if counts[place]]
        return ", ".join(f"{names[place]}: {counts[place]:,}" for place in most)

    heading = {
        table.CORRECT: f"✓ {selected}",
        table.WRONG: f"✗ {selected}, not {label}",
        table.CERTIFIED: selected,
        table.ABSTAINED: "? abstains" + (f", is {label}" if label is not None else ""),
        table.UNESTIMATED: f"✗ selected {selected}, not {label}",
    }[outcome]
    lines = ["not estimated", f"selection votes {told(selection)}"]
    if votes.sum():
        lines = [
            f"radius {at_least(radius, 3)}" if radius or outcome != table.ABSTAINED else "no radius",
            f"p_A ≥ {at_least(certificates.p_lower[position], 4)}",
            f"votes {told(votes)}",
        ]
    file = evaluated.names[position] if evaluated.names else None
    return page.ImageCard(
        name=f"image {evaluated.ids[position]}" + (f", {file}" if file else ""),
        label=label,
        outcome=outcome,
        radius=radius,
        heading=heading,
        lines=lines,
        pictures=_pictures(position, evaluated, label),
    )


def _pictures(position, evaluated, label):
    image = evaluated.image(position)
    if image is None:
        return ()
    noisy = image + evaluated.noise(position)
    said = f"image {evaluated.ids[position]}" + (f", {label}" if label is not None else "")
    return [(page.data_uri(_png(pixels)), what) for pixels, what in ((image, said), (noisy, f"{said}, with noise"))]


def _png(pixels):
    """A small PNG file of pixels [H, W, C] in [0, 1], which are clipped to that."""
    shown = np.rint(255 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8)
    picture = Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
