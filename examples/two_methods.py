"""Gaussian training and MACER on the same digits, and the paired difference of their average certified radius.

One seed and 100 images show how to compare, not which method is better: with other settings for both, the difference
is as small as its standard error.

python examples/two_methods.py
"""

import keras
from sklearn.datasets import load_digits

from macer_tf import MACERModel, SmoothedClassifier, evaluate, networks
from macer_tf.evaluation import correct_radii, mean_and_standard_error

digits = load_digits()
images, labels = digits.images[..., None] / 16, digits.target  # 8x8, in [0, 1]
train, test = slice(1437), slice(-100, None)

radii = {}
for name, settings in {"Gaussian": {"lam": 0.0, "num_samples": 1}, "MACER": {"lam": 12.0, "num_samples": 16}}.items():
    keras.utils.set_random_seed(0)  # the same initial weights
    model = MACERModel(networks.small_cnn(), sigma=0.25, seed=0, **settings)
    steps = 20 * 23  # 20 epochs of 23 batches
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.004, steps)))
    model.fit(images[train], labels[train], batch_size=64, epochs=20, verbose=0)
    # The same seed draws the same noise for both. Pixels are multiples of 1/16, and hence of 1/256.
    certificates = SmoothedClassifier(model, seed=1, levels=256).certify(images[test], n=1000)
    print(f"{name}: {evaluate(certificates, labels[test])}")
    radii[name] = correct_radii(certificates, labels[test]).clip(0)  # wrong and abstained images count as 0

mean, error = mean_and_standard_error(radii["MACER"] - radii["Gaussian"])
print(f"MACER's ACR minus Gaussian training's, on the same images: {mean:+.3f} ± {error:.3f}")
