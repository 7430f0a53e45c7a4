import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf.optimizers import SGD

START = [np.linspace(-1, 1, 6).reshape(2, 3), np.array([0.5, -2.0])]


def gradients(parameters, step):
    """Of a loss that is not quadratic and changes from step to step."""
    return [np.sin(3 * p + step) + 0.3 * p for p in parameters]


def torch_sgd(steps, rate, momentum, l2, clip=None):
    """torch.optim.SGD(momentum, weight_decay=l2) in NumPy, after torch.nn.utils.clip_grad_norm_ if `clip`.

    torch starts the momentum buffer at the first gradient, which is momentum * 0 + gradient.
    """
    parameters, buffers = [p.copy() for p in START], [None, None]
    for step in range(steps):
        grads = gradients(parameters, step)
        if clip is not None:
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            grads = [g * min(1.0, clip / norm) for g in grads]
        for i, g in enumerate(grads):
            g = g + l2 * parameters[i]
            buffers[i] = g if buffers[i] is None else momentum * buffers[i] + g
            parameters[i] = parameters[i] - rate(step) * buffers[i]
    return parameters


def run(optimizer, steps, rate):
    # The second is called a bias: torch decays it too.
    variables = [
        keras.Variable(p, dtype="float64", name=name) for p, name in zip(START, ("kernel", "bias"), strict=True)
    ]
    for step in range(steps):
        optimizer.learning_rate = rate(step)
        grads = gradients([v.numpy() for v in variables], step)
        optimizer.apply([tf.constant(g) for g in grads], variables)
    return [v.numpy() for v in variables]


def drop(step):
    return 0.05 if step < 10 else 0.005


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize(("momentum", "l2"), [(0.9, 0.05), (0.0, 0.05), (0.9, 0.0)])
def test_follows_torchs_sgd_through_a_change_of_learning_rate(momentum, l2, clip):
    optimizer = SGD(0.05, momentum=momentum, l2=l2, global_clipnorm=clip)
    got, expected = run(optimizer, 20, drop), torch_sgd(20, drop, momentum, l2, clip)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-8)  # the learning rate is kept in float32


def test_clipping_was_at_work():
    assert np.abs(torch_sgd(20, drop, 0.9, 0.05)[0] - torch_sgd(20, drop, 0.9, 0.05, 0.7)[0]).max() > 0.01


def test_keras_own_sgd_is_another_recipe():
    expected = torch_sgd(20, drop, 0.9, 0.05)
    for options in ({"weight_decay": 0.05}, {}):
        other = run(keras.optimizers.SGD(0.05, momentum=0.9, **options), 20, drop)
        assert max(np.abs(a - b).max() for a, b in zip(other, expected, strict=True)) > 0.01


def test_configuration_round_trips():
    optimizer = SGD(0.02, momentum=0.8, l2=5e-4, global_clipnorm=1.0)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, SGD)
    assert (copy.momentum, copy.l2, copy.global_clipnorm) == (0.8, 5e-4, 1.0)
    assert float(copy.learning_rate) == pytest.approx(0.02)
    assert copy.get_config() == optimizer.get_config()


def test_a_schedule_survives_serialisation():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.01, 0.001])
    optimizer = SGD.from_config(SGD(schedule).get_config())
    variable = keras.Variable(np.zeros(1), dtype="float64")
    for expected in (0.1, 0.1, 0.1, 0.01, 0.01, 0.001):
        assert float(optimizer.learning_rate) == pytest.approx(expected)
        optimizer.apply([tf.zeros(1, tf.float64)], [variable])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": None}, "momentum must be at least 0 and below 1. Received: momentum=None"),
        ({"l2": float("nan")}, "l2 must be 0 or above, and finite. Received: l2=nan"),
        ({"l2": "1e-4"}, "l2 must be 0 or above, and finite. Received: l2='1e-4'"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1. Received: momentum=1.0"),
        ({"momentum": -0.1}, "momentum"),
        ({"l2": -1e-4}, "l2 must be 0 or above, and finite. Received: l2=-0.0001"),
        ({"learning_rate": float("nan")}, "learning_rate must be 0 or above, and finite. Received: learning_rate=nan"),
        ({"clipnorm": -1}, "clipnorm must be above 0. Received: clipnorm=-1"),
        ({"global_clipnorm": 0.0}, "global_clipnorm must be above 0. Received: global_clipnorm=0.0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        SGD(**options)
