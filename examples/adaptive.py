"""Samples only where it matters: is each image certified at radius 0.25? Any Keras classifier works, however trained.

python examples/adaptive.py
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

from macer_tf import RadiusBudget, SmoothedClassifier, Votes, evaluate
from macer_tf.noise import ESTIMATION, SELECTION

digits = load_digits()
images, labels = digits.images[..., None] / 16, digits.target  # 8x8, in [0, 1]
train, test = slice(1437), slice(-100, None)
sigma, alpha = 0.25, 0.001

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.GaussianNoise(sigma),  # in training only; without it, nothing could be certified at this sigma
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(images[train], labels[train], batch_size=64, epochs=20, verbose=0)

budget = RadiusBudget(radius=0.25, n=10_000)
smoothed = SmoothedClassifier(model, sigma=sigma, seed=1, levels=256)
ids = np.arange(100)
selection = smoothed.draw(images[test], ids, SELECTION, [0] * 100, [100] * 100).counts
votes = Votes(selection, np.zeros_like(selection))
# `more` says how many samples each image still needs; stop when none needs any.
while (more := budget.more(votes, sigma, alpha)).any():
    undecided = ids[more > 0]
    estimation = votes.estimation.copy()
    estimation[undecided] += smoothed.draw(
        images[test][undecided], undecided, ESTIMATION, votes.n[undecided], more[undecided]
    ).counts
    votes = Votes(selection, estimation)

# Certify with the budget's own `certify`, which accounts for its looks.
evaluation = evaluate(budget.certify(votes, sigma, alpha), labels[test], radii=(0.25,))
# There is no ACR: the radii are only as large as the decision needed.
print(f"certified accuracy at 0.25: {evaluation.certified_accuracy[0]}")
print(f"{votes.n.sum():,} samples, where n = 10,000 for each image takes {100 * budget.n:,}")
