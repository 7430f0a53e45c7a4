"""Checks of hyper-parameters, each with one line for what is out of range. Imports no TensorFlow."""

import math

# float32 flushes probabilities below 1.2e-38 = Phi(-12.9) to zero; a hinge at 24 reaches down to about Phi(-12.4).
MAX_GAMMA = 24.0
# XLA evaluates the quantile as erfinv(2p - 1), which in float64 resolves no p below about 1e-15 = Phi(-7.9).
MAX_GAMMA_XLA = 14.0


def check_hyperparameters(sigma, gamma, beta, lam=0.0, num_samples=1):
    """Raises ValueError, in one line, for a hyper-parameter outside its range."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma, the noise level in [0, 1] pixel units, must be above 0. Received: sigma={sigma}")
    if not 0 < gamma <= MAX_GAMMA:
        raise ValueError(
            f"gamma must be above 0 and at most {MAX_GAMMA:g}, what float32 can resolve. Received: gamma={gamma}"
        )
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta, the inverse temperature, must be above 0. Received: beta={beta}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be 0 or above. Received: lam={lam}")
    if num_samples != int(num_samples) or num_samples < 1:
        raise ValueError(
            f"num_samples, the noisy copies of each image, must be a whole number from 1. Received: "
            f"num_samples={num_samples}"
        )


def check_seed(seed):
    """Returns `seed` as an int. Raises ValueError unless it is a whole number in [0, 2**32)."""
    if seed != int(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 4294967295. Received: seed={seed}")
    return int(seed)
