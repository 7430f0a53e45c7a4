"""One set of votes, certified by every bound. Soft bounds certify another classifier: the mean of softmax scores.

python examples/every_bound.py
"""

import keras
from sklearn.datasets import load_digits

from macer_tf import MACERModel, SmoothedClassifier, bounds, certify, evaluate, networks

digits = load_digits()
images, labels = digits.images[..., None] / 16, digits.target  # 8x8, in [0, 1]
train, test = slice(1437), slice(-100, None)

keras.utils.set_random_seed(0)
model = MACERModel(networks.small_cnn(), sigma=0.25, num_samples=8, lam=4.0, seed=0)
model.compile(keras.optimizers.Adam(0.005))
model.fit(images[train], labels[train], batch_size=64, epochs=10, verbose=0)

beta = 16.0  # inverse temperature of the soft votes
votes = SmoothedClassifier(model, seed=1, levels=256, betas=(beta,)).votes(images[test], n0=100, n=1000)
for bound in bounds.names():
    # n = 1,000 was fixed before any vote was seen. If you choose n after a look, only the anytime bound is valid.
    is_soft = bound in bounds.names(is_soft=True)
    certificates = certify(votes, sigma=0.25, alpha=0.001, bound=bound, beta=beta if is_soft else None)
    print(f"{bound}: {evaluate(certificates, labels[test], radii=(0, 0.25, 0.5))}")
