import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import macer_tf.model
from macer_tf import networks
from macer_tf.model import MACERModel
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel
from macer_tf.objective import macer_terms
from macer_tf.optimizers import SGD

SHAPE = (4, 4, 1)
REPORTED = {
    "loss", "classification_loss", "robustness_loss", "smoothed_accuracy", "hinge_fraction", "soft_radius",
}  # fmt: skip


def linear(seed=0, classes=3, shape=SHAPE, **options):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(classes, **options)(layers.Flatten()(inputs)))


def data(count=12, shape=SHAPE, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, *shape), np.float32), rng.integers(classes, size=count)


def regularised():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.01))(x))


def outer(classifier, *before):
    """A model of float images that hands them, through the layers `before`, to the classifier."""
    inputs = x = keras.Input(SHAPE)
    for layer in before:
        x = layer(x)
    return keras.Model(inputs, classifier(x))


def macer(classifier=None, sigma=0.25, num_samples=4, beta=4.0, seed=5, **options):
    return MACERModel(classifier or linear(), sigma, num_samples=num_samples, beta=beta, seed=seed, **options)


def noise_of(count, images, **options):
    """The noise that a model with these options draws at its first `count` steps."""
    twin = macer(**options)
    return [next_noise(twin, images) for _ in range(count)]


def next_noise(twin, images):
    noise = twin.draw_noise(tf.constant(images), 0).numpy()
    twin._noise_step.assign_add(1)
    return noise


def fit(model, images, labels, **options):
    options = {"batch_size": len(images), "shuffle": False, "verbose": 0} | options
    return model.fit(images, labels, **options).history


@functools.cache
def trained_in_slices(microbatch):
    """The weights after training in slices of so many images, and the history."""
    images, labels = data(19)
    model = macer(regularised(), microbatch=microbatch)
    model.compile(SGD(0.1, momentum=0.9, global_clipnorm=1.0), metrics=["accuracy"])
    history = fit(model, images, labels, batch_size=8, epochs=3, validation_data=(images, labels))
    return np.concatenate([weight.ravel() for weight in model.classifier.get_weights()]), history


def weighted_step(model, drawn, images, labels, weights, rate):
    """Weights after one step of gradient descent on the mean over images of weight * (Eq. 17), and that mean."""
    with tf.GradientTape() as tape:
        noisy = (images[:, None] + drawn).reshape(-1, *images.shape[1:])
        logits = tf.reshape(model.classifier(noisy), [len(images), model.num_samples, -1])
        terms = macer_terms(logits, tf.constant(labels), model.sigma, model.gamma, model.beta)
        losses = weights * (terms.classification + model.lam * terms.robustness)
        loss = tf.reduce_sum(losses) / len(images)
    variables = model.classifier.trainable_variables
    gradients = tape.gradient(loss, variables)
    return [v.numpy() - rate * g.numpy() for v, g in zip(variables, gradients, strict=True)], float(loss)


class TestTrainStep:
    def test_a_step_worked_out_by_hand(self):
        # One pixel x = 0.5, logits (w * x, 0) with w = 2, one copy, noise fixed at 0.1, beta = 1, lam = 1, gamma = 4.
        # noisy = 0.6, logit 1.2, z = 1 / (1 + e^-1.2) = 0.768525; label 0.
        #   classification = -log z = 0.263282; d/dw = -(1 - z) * 0.6 = -0.138885
        #   xi = 2 * Phi^-1(z) = 2 * 0.733997 = 1.467994; robustness = 0.5 / 2 * (4 - 1.467994) = 0.633001
        #   d/dw = -0.25 * 2 * (1 / phi(0.733997)) * z * (1 - z) * 0.6
        #        = -0.5 * (1 / 0.304734) * 0.177894 * 0.6 = -0.175131
        # w after a step of rate 0.1: 2 + 0.1 * (0.138885 + 0.175131) = 2.031402
        class Fixed(MACERModel):
            def draw_noise(self, images, start, training=True):
                return tf.fill([1, 1, 1, 1, 1], 0.1)

        classifier = linear(classes=2, shape=(1, 1, 1), use_bias=False)
        classifier.set_weights([np.array([[2.0, 0.0]])])
        model = Fixed(classifier, sigma=0.5, num_samples=1, lam=1.0, gamma=4.0, beta=1.0)
        model.compile(keras.optimizers.SGD(0.1))
        history = fit(model, np.full((1, 1, 1, 1), 0.5, np.float32), np.array([0]))
        assert history["classification_loss"] == pytest.approx([0.263282], abs=1e-5)
        assert history["robustness_loss"] == pytest.approx([0.633001], abs=1e-5)
        assert history["loss"] == pytest.approx([0.896284], abs=1e-5)
        assert history["smoothed_accuracy"] == history["hinge_fraction"] == [1.0]
        assert history["soft_radius"] == pytest.approx([0.25 * 1.467994], abs=1e-5)
        # The other logit's weight gets the opposite gradient.
        np.testing.assert_allclose(classifier.get_weights()[0], [[2.031402, -0.031402]], atol=1e-5)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("num_samples", [1, 3])
    def test_the_classifier_sees_every_image_plus_its_noise(self, channels, num_samples):
        seen = []

        class Probe(layers.Layer):
            def call(self, images):
                tf.py_function(lambda batch: seen.append(batch.numpy()), [images], [])
                return images

        shape = (5, 4, channels)
        inputs = keras.Input(shape)
        classifier = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(Probe()(inputs))))
        images, labels = data(3, shape, 2)
        drawn = noise_of(1, images, classifier=linear(shape=shape), num_samples=num_samples)[0]
        model = macer(classifier, num_samples=num_samples)
        model.compile("sgd")
        fit(model, images, labels)
        (noisy,) = [batch for batch in seen if len(batch) == 3 * num_samples]
        for i in range(3):
            for j in range(num_samples):
                np.testing.assert_allclose(noisy[i * num_samples + j] - drawn[i, j], images[i], atol=1e-6)
        assert drawn.std() == pytest.approx(0.25, rel=0.25)

    @pytest.mark.parametrize("lam", [0.0, 3.0])
    def test_a_step_is_gradient_descent_on_equation_17(self, lam):
        images, labels = data()
        model = macer(lam=lam)
        expected, loss = weighted_step(model, noise_of(1, images)[0], images, labels, np.ones(12, "f"), 0.1)
        model.compile(keras.optimizers.SGD(0.1))
        history = fit(model, images, labels)
        assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
        for got, wanted in zip(model.classifier.get_weights(), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)

    def test_lam_zero_and_one_copy_is_cohens_gaussian_training(self):
        images, labels = data(24)
        batches = [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 24, 8)]
        twin = macer(num_samples=1)
        plain = linear()
        plain.compile(
            keras.optimizers.SGD(0.2, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        model = macer(num_samples=1, lam=0.0)
        model.compile(keras.optimizers.SGD(0.2, momentum=0.9))
        start = plain.get_weights()[0]
        for _ in range(3):
            noisy = np.concatenate([batch + next_noise(twin, batch)[:, 0] for batch, _ in batches])
            history = plain.fit(noisy, labels, batch_size=8, shuffle=False, verbose=0).history
            assert fit(model, images, labels, batch_size=8)["loss"] == pytest.approx(history["loss"], abs=1e-6)
        assert np.abs(plain.get_weights()[0] - start).max() > 0.1
        for got, wanted in zip(model.classifier.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-6)

    def test_noise_is_new_at_every_step_and_follows_the_seed(self):
        images = data()[0]
        first, second = noise_of(2, images)
        assert first.shape == (12, 4, *SHAPE)
        assert not np.isin(first, second).any()
        assert len(np.unique(first)) == first.size  # nor do images or copies share any
        np.testing.assert_array_equal(noise_of(1, images)[0], first)
        assert not np.isin(noise_of(1, images, seed=6)[0], first).any()

    def test_without_a_seed_two_models_differ(self):
        classifier = linear()
        assert MACERModel(classifier, 0.25).seed != MACERModel(classifier, 0.25).seed

    def test_regularisation_counts_and_the_parts_add_up(self):
        images, labels = data()
        classifier = linear(kernel_regularizer=keras.regularizers.L2(0.1))
        kernel = classifier.get_weights()[0].copy()
        plain, model = macer(linear()), macer(classifier)
        for some in (plain, model):
            some.compile(keras.optimizers.SGD(0.1))
        without, history = fit(plain, images, labels), fit(model, images, labels)
        penalty = 0.1 * (kernel**2).sum()
        assert history["loss"][0] == pytest.approx(without["loss"][0] + penalty, rel=1e-5)
        parts = history["classification_loss"][0] + history["robustness_loss"][0]
        assert parts == pytest.approx(without["loss"][0], rel=1e-5)
        # The gradient of the penalty is 0.2 * kernel.
        difference = plain.classifier.get_weights()[0] - model.classifier.get_weights()[0]
        np.testing.assert_allclose(difference, 0.1 * 0.2 * kernel, atol=1e-6)

    def test_batch_norm_trains_on_the_noisy_copies(self):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE)
        norm = layers.BatchNormalization(momentum=0.0)
        model = macer(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(norm(inputs)))))
        model.compile("sgd")
        images, labels = data()
        noisy = images[:, None] + noise_of(1, images)[0]
        fit(model, images, labels)
        # With momentum 0 the moving statistics are those of the last batch: 48 noisy copies of 16 pixels.
        assert norm.moving_mean.numpy() == pytest.approx([noisy.mean()], abs=1e-5)
        assert norm.moving_variance.numpy() == pytest.approx([noisy.var()], rel=1e-3)
        before = norm.moving_mean.numpy()
        model.evaluate(images, labels, verbose=0)
        np.testing.assert_array_equal(norm.moving_mean.numpy(), before)

    def test_training_learns(self, digits):
        images, labels = digits[0][:512], digits[1][:512]
        keras.utils.set_random_seed(0)
        model = MACERModel(networks.small_cnn(), 0.25, num_samples=4, lam=2.0, seed=0)
        model.compile(SGD(0.05, global_clipnorm=1.0))
        history = fit(model, images, labels, batch_size=64, epochs=10)
        assert history["smoothed_accuracy"][-1] > 0.7
        assert history["soft_radius"][-1] > 3 * history["soft_radius"][0]


class TestKeras:
    def test_what_fit_and_evaluate_report(self):
        images, labels = data()
        model = macer()
        model.compile("sgd", metrics=["accuracy"], weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy()])
        lines = []
        stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: lines.append((epoch, set(logs))))
        history = fit(model, images, labels, epochs=2, callbacks=[stop], validation_data=(images, labels))
        names = REPORTED | {"accuracy", "sparse_categorical_crossentropy"}
        assert set(history) == names | {"val_" + name for name in names}
        assert lines == [(0, set(history)), (1, set(history))]
        # Metrics see the mean softmax, so these two pairs are the same figures.
        assert history["accuracy"] == pytest.approx(history["smoothed_accuracy"])
        assert history["sparse_categorical_crossentropy"] == pytest.approx(history["classification_loss"], rel=1e-4)
        assert set(model.evaluate(images, labels, verbose=0, return_dict=True)) == names

    @pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
    def test_early_stopping_and_checkpoints(self, tmp_path):
        images, labels = data()
        # Hardly any noise and no learning: the loss stays level after the first epoch.
        model = macer(sigma=1e-6, lam=0.0)
        model.compile(keras.optimizers.SGD(0.0))
        callbacks = [
            keras.callbacks.EarlyStopping("loss", min_delta=0.1, patience=2),
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        ]
        assert len(fit(model, images, labels, epochs=9, callbacks=callbacks)["loss"]) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1.keras", "2.keras", "3.keras"]

    @pytest.mark.parametrize("microbatch", [1, 5, 8, 100])
    def test_slices_of_a_batch_give_the_update_of_the_whole_batch(self, microbatch):
        (whole, expected), (sliced, history) = trained_in_slices(None), trained_in_slices(microbatch)
        np.testing.assert_allclose(whole, sliced, atol=1e-5)
        assert expected.keys() == history.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(values, history[name], rtol=1e-5, atol=1e-5, err_msg=name)

    @pytest.mark.parametrize("microbatch", [np.int64(4), 4.0, np.float32(4)])
    def test_a_slices_size_may_be_of_any_type_of_number(self, microbatch):
        model = macer(linear(), microbatch=microbatch)
        model.compile("sgd")
        fit(model, *data())
        assert type(model.microbatch) is int

    def test_evaluate_is_of_the_smoothed_prediction(self):
        # sigma 10 drowns the images: the plain prediction is always right, the smoothed one is at chance.
        images = np.zeros((400, *SHAPE), np.float32)
        labels = np.arange(400) % 2
        images[labels == 1] = 1.0
        classifier = linear(classes=2)
        classifier.set_weights([np.stack([-np.ones(16), np.ones(16)], axis=1), np.array([8.0, -8.0])])
        assert (classifier.predict(images, verbose=0).argmax(axis=1) == labels).all()
        for sigma, low, high in ((10.0, 0.4, 0.75), (0.01, 1.0, 1.0)):
            model = macer(classifier, sigma=sigma, num_samples=1, gamma=1.0)
            model.compile("sgd")
            result = model.evaluate(images, labels, verbose=0, return_dict=True)
            assert low <= result["smoothed_accuracy"] <= high
        # Far from the boundary every xi is past the hinge: the soft radius is sigma / 2 * gamma.
        assert result["soft_radius"] == pytest.approx(0.005)
        assert result["hinge_fraction"] == 0

    def test_evaluate_runs_dropout_at_inference_and_trains_nothing(self):
        seen = []

        class Probe(layers.Layer):
            def call(self, images, training=None):
                seen.append(training)
                return images

        inputs = keras.Input(SHAPE)
        model = macer(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(Probe()(inputs)))))
        model.compile("sgd")
        before = model.classifier.get_weights()
        seen.clear()
        model.evaluate(*data(), verbose=0)
        assert seen[-1] is False
        for got, wanted in zip(model.classifier.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, wanted)
        fit(model, *data())
        assert seen[-1] is True

    def test_call_and_predict_are_the_base_classifiers_logits(self):
        images, _ = data()
        model = macer()
        np.testing.assert_array_equal(model(images), model.classifier(images))
        np.testing.assert_allclose(model.predict(images, verbose=0), model.classifier(images), atol=1e-6)
        assert model.compute_output_shape((None, *SHAPE)) == (None, 3)

    def test_sample_weights(self):
        images, labels = data()
        weights = np.random.default_rng(1).random(12).astype(np.float32) * 2
        model = macer()
        expected, loss = weighted_step(model, noise_of(1, images)[0], images, labels, weights, 0.1)
        model.compile(keras.optimizers.SGD(0.1))
        assert fit(model, images, labels, sample_weight=weights)["loss"][0] == pytest.approx(loss, rel=1e-5)
        for got, wanted in zip(model.classifier.get_weights(), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)

    def test_class_weights(self):
        images, labels = data()
        class_weight = {0: 0.5, 1: 2.0, 2: 3.0}
        weights = np.array([class_weight[label] for label in labels], np.float32)
        model = macer()
        expected, _ = weighted_step(model, noise_of(1, images)[0], images, labels, weights, 0.1)
        model.compile(keras.optimizers.SGD(0.1))
        fit(model, images, labels, class_weight=class_weight)
        np.testing.assert_allclose(model.classifier.get_weights()[0], expected[0], atol=1e-6)

    def test_an_image_of_weight_zero_has_no_gradient(self):
        images, labels = data()
        results = []
        for label in (0, 1, 2):
            labels[3] = label
            model = macer()
            model.compile(keras.optimizers.SGD(0.1))
            fit(model, images, labels, sample_weight=np.where(np.arange(12) == 3, 0.0, 1.0))
            results.append(model.classifier.get_weights()[0])
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    def test_an_epochs_figures_are_means_over_images_also_with_a_small_last_batch(self):
        # Rate 0: the same classifier throughout. Labels as a column, and tf.data, give the same.
        images, labels = data(10)
        model = macer()
        noises = [noise_of(3, images[:size]) for size in (4, 4, 2)]
        losses = []
        for i, start in enumerate((0, 4, 8)):
            part = images[start : start + 4]
            _, loss = weighted_step(model, noises[i][i], part, labels[start : start + 4], np.ones(len(part), "f"), 0.0)
            losses.append(loss * len(part))
        for x, y in ((images, labels), (images, labels[:, None])):
            model = macer()
            model.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
            history = fit(model, x, y, batch_size=4)
            assert history["loss"][0] == pytest.approx(sum(losses) / 10, rel=1e-5)
        model = macer()
        model.compile(keras.optimizers.SGD(0.0))
        history = model.fit(
            tf.data.Dataset.from_tensor_slices((images, labels)).batch(4), shuffle=False, verbose=0
        ).history
        assert history["loss"][0] == pytest.approx(sum(losses) / 10, rel=1e-5)

    @pytest.mark.parametrize(
        ("options", "tolerance"),
        [({"steps_per_execution": 3}, 1e-7), ({"run_eagerly": True}, 1e-6), ({"jit_compile": True}, 1e-5)],
    )
    def test_other_ways_to_execute_give_the_same_weights(self, options, tolerance):
        class GivenNoise(MACERModel):
            # XLA's own noise from the same seed is different.
            def draw_noise(self, images, start, training=True):
                noise = tf.sin(100.0 * tf.cast(tf.range(1, 5), tf.float32)[None, :, None, None, None] * images[:, None])
                return self.sigma * noise

        images, labels = data(24)
        weights, losses = [], []
        for some in ({}, options):
            kind = GivenNoise if "jit_compile" in options else MACERModel
            model = kind(linear(), 0.25, num_samples=4, beta=4.0, seed=5)
            model.compile(SGD(0.1, momentum=0.9), **some)
            losses.append(fit(model, images, labels, batch_size=4, epochs=2)["loss"])
            weights.append(model.classifier.get_weights())
        assert losses[1] == pytest.approx(losses[0], rel=10 * tolerance)
        for got, wanted in zip(*weights, strict=True):
            np.testing.assert_allclose(got, wanted, atol=tolerance)

    def test_jit_is_off_unless_asked_for(self):
        model = macer(gamma=20.0)
        for option in ({}, {"jit_compile": "auto"}, {"jit_compile": False}):
            model.compile("sgd", **option)
            assert model.jit_compile is False

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision(self, policy):
        images, labels = data()
        keras.config.set_dtype_policy(policy)
        try:
            model = macer(linear())
        finally:
            keras.config.set_dtype_policy("float32")
        wanted = macer(linear())
        for some in (model, wanted):
            some.compile(SGD(0.1))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        losses = fit(model, images, labels, epochs=3)["loss"], fit(wanted, images, labels, epochs=3)["loss"]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        got, expected = model.classifier.get_weights()[0], wanted.classifier.get_weights()[0]
        assert got.dtype == np.float32
        # Had the gradients not been unscaled, the step would be 32,768 times as long.
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected - linear().get_weights()[0]).max()

    def test_mixed_float16_scales_the_loss(self):
        # The last kernel is 1e-6, so the hidden layer's gradient is about 1e-8: in float16, without a scale, 0.
        images, labels = data()
        steps = []
        for policy in ("float32", "mixed_float16"):
            keras.utils.set_random_seed(0)
            inputs = keras.Input(SHAPE)
            hidden = layers.Dense(8, dtype=policy)(layers.Flatten()(inputs))
            last = keras.initializers.RandomUniform(-1e-6, 1e-6, seed=1)
            model = macer(
                keras.Model(inputs, layers.Dense(3, kernel_initializer=last, dtype="float32")(hidden)), dtype=policy
            )
            model.compile(SGD(1e5))
            before = model.classifier.get_weights()[0]
            fit(model, images, labels)
            steps.append(model.classifier.get_weights()[0] - before)
        assert np.abs(steps[0]).min() > 0
        np.testing.assert_allclose(steps[1], steps[0], rtol=0.02, atol=0.02 * np.abs(steps[0]).max())

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_the_objective_of_half_precision_logits_is_computed_in_float32(self, policy):
        images, labels = data()
        model = macer(linear(dtype=policy), dtype=policy)
        noise = model.draw_noise(tf.constant(images), 0)
        logits = model.classifier(tf.reshape(images[:, None] + noise, [-1, *SHAPE]))
        assert logits.dtype == policy.removeprefix("mixed_")
        terms = model.loss_terms(tf.constant(images), tf.constant(labels), noise, training=False)
        expected = macer_terms(
            tf.reshape(tf.cast(logits, tf.float64), [12, 4, 3]), tf.constant(labels), 0.25, model.gamma, model.beta
        )
        # float16 resolves 5e-4, bfloat16 4e-3.
        np.testing.assert_allclose(terms.losses["classification_loss"], expected.classification, rtol=1e-5)
        np.testing.assert_allclose(terms.losses["robustness_loss"], 12 * expected.robustness, rtol=1e-5, atol=1e-5)
        assert expected.in_hinge.numpy().any()

    def test_lam_changes_while_training_without_a_retrace(self):
        traces = []

        class Probe(layers.Layer):
            def call(self, images):
                traces.append(1)
                return images

        inputs = keras.Input(SHAPE)
        model = macer(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(Probe()(inputs)))), lam=0.0)
        model.compile(keras.optimizers.SGD(0.0))
        images, labels = data()
        assert fit(model, images, labels)["robustness_loss"] == [0.0]
        before = len(traces)
        model.lam = 2.0
        two = fit(model, images, labels)
        assert model.lam == model.get_config()["lam"] == 2.0
        set_lam = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(model, "lam", 7.0 * epoch))
        deferred = fit(model, images, labels, epochs=2, callbacks=[set_lam])
        assert len(traces) == before
        assert two["robustness_loss"][0] > 0
        assert two["loss"][0] == pytest.approx(two["classification_loss"][0] + two["robustness_loss"][0], rel=1e-5)
        assert deferred["robustness_loss"][0] == 0.0
        assert deferred["robustness_loss"][1] > 2 * two["robustness_loss"][0]

    def test_a_subclassed_classifier_that_is_built_late(self):
        class Classifier(keras.Model):
            def __init__(self):
                super().__init__()
                self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

            def call(self, images):
                return self.dense(self.flatten(images))

        model = macer(Classifier())
        model.compile("sgd", metrics=["accuracy"])
        assert set(fit(model, *data())) == REPORTED | {"accuracy"}

    @pytest.mark.parametrize("microbatch", [None, 5])
    def test_evaluation_never_changes_training(self, microbatch):
        images, labels = data(13)
        weights = []
        for validation in (None, (images, labels)):
            model = macer(microbatch=microbatch)
            model.compile(SGD(0.1, momentum=0.9))
            fit(model, images, labels, batch_size=4, epochs=2, validation_data=validation)
            if validation:
                model.evaluate(images, labels, verbose=0)
                model.test_on_batch(images, labels)
            fit(model, images, labels, batch_size=4)
            weights.append(model.get_weights())
        for without, with_validation in zip(*weights, strict=True):
            np.testing.assert_array_equal(without, with_validation)

    def test_evaluations_in_a_row_give_the_same_figures_in_batches_of_any_size(self):
        images, labels = data(13)
        model = macer(sigma=1.0)
        model.compile("sgd")
        first, second, other = (
            model.evaluate(images, labels, batch_size=size, verbose=0, return_dict=True) for size in (4, 4, 13)
        )
        assert first == second
        assert other == pytest.approx(first, rel=1e-5)

    def test_evaluation_and_training_share_no_noise(self):
        images = tf.constant(data()[0])
        model = macer()
        assert not np.isin(model.draw_noise(images, 0, training=False), model.draw_noise(images, 0)).any()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("sigma", 1.0),
            ("sigma", -1.0),
            ("gamma", 2.0),
            ("beta", 1.0),
            ("seed", 3),
            ("microbatch", 1),
        ],
    )
    def test_what_a_traced_step_has_read_cannot_be_set_later(self, name, value):
        model = macer()
        before = getattr(model, name)
        with pytest.raises(
            AttributeError, match=f"^{name} cannot change once the MACERModel is made;.* {name}={value}$"
        ):
            setattr(model, name, value)
        assert getattr(model, name) == before

    def test_one_hot_labels_of_any_type_train_as_their_classes_do(self):
        images, labels = data()
        weights = []
        one_hot = np.eye(3)[labels]
        for given in (labels, one_hot, one_hot.astype(np.int32), one_hot.astype(bool), labels.astype(np.float64)):
            model = macer()
            model.compile(SGD(0.1), metrics=["accuracy"])
            history = fit(model, images, given)
            assert history["accuracy"] == history["smoothed_accuracy"]
            weights.append(model.get_weights()[0])
        for other in weights[1:]:
            np.testing.assert_array_equal(other, weights[0])

    @pytest.mark.parametrize("monitor", ["val_soft_radius", "smoothed_accuracy", "val_robustness_loss"])
    def test_callbacks_know_which_way_our_figures_go(self, monitor):
        images, labels = data()
        stop = keras.callbacks.EarlyStopping(monitor, patience=0)
        model = macer(lam=1.0)
        model.compile("sgd")
        fit(model, images, labels, validation_data=(images, labels), callbacks=[stop])
        assert stop.monitor_op is (keras.ops.less if monitor.endswith("loss") else keras.ops.greater)

    @pytest.mark.parametrize("microbatch", [None, 5])
    def test_a_fully_convolutional_classifier_trains_at_several_sizes(self, microbatch):
        inputs = keras.Input((None, None, 1))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same")(inputs))
        model = macer(keras.Model(inputs, layers.Dense(3)(x)), microbatch=microbatch)
        model.compile("sgd")
        for side in (6, 8, 5):
            images = np.random.default_rng(side).random((12, side, side, 1), np.float32)
            twin = macer(seed=5)
            twin._noise_step.assign(model._noise_step.value)
            drawn = twin.draw_noise(tf.constant(images), 0).numpy()
            np.testing.assert_array_equal(model.draw_noise(tf.constant(images), 0), drawn)
            assert np.isfinite(fit(model, images, data()[1])["loss"]).all()

    def test_variables_without_a_gradient_and_sparse_gradients_in_slices_of_a_batch(self):
        class Positions(layers.Layer):
            def build(self, shape):
                self.unused = self.add_weight(shape=(2,))
                self.embedding = layers.Embedding(16, 1)
                self.embedding.build(None)

            def call(self, flat):
                return flat + self.embedding(keras.ops.arange(16))[None, :, 0]

        images, labels = data()
        weights = []
        for microbatch in (None, 5):
            keras.utils.set_random_seed(0)
            inputs = keras.Input(SHAPE)
            flat = Positions()(layers.Flatten()(inputs))
            model = macer(keras.Model(inputs, layers.Dense(3)(flat)), microbatch=microbatch)
            model.compile(keras.optimizers.SGD(0.1))
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                fit(model, images, labels)
            weights.append(model.classifier.get_weights())
        for whole, slices in zip(*weights, strict=True):
            np.testing.assert_allclose(slices, whole, atol=1e-6)


# h5py's datasets, which Keras saves weights in, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
class TestSaving:
    def test_going_on_after_load_is_bit_identical_to_never_stopping(self, tmp_path):
        images, labels = data()
        whole = macer(lam=2.0)
        whole.compile(SGD(0.1, momentum=0.9, l2=1e-3), metrics=["accuracy"])
        losses = fit(whole, images, labels, batch_size=5, epochs=4)["loss"]

        model = macer(lam=9.0)
        model.compile(SGD(0.1, momentum=0.9, l2=1e-3), metrics=["accuracy"])
        model.lam = 2.0
        first = fit(model, images, labels, batch_size=5, epochs=2)["loss"]
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert isinstance(loaded, MACERModel)
        assert loaded.get_config() | {"classifier": None} == model.get_config() | {"classifier": None}
        second = fit(loaded, images, labels, batch_size=5, epochs=2)
        assert first + second["loss"] == losses
        assert set(second) == REPORTED | {"accuracy"}
        for got, wanted in zip(loaded.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert isinstance(loaded.optimizer, SGD)
        for got, wanted in zip(loaded.optimizer.variables, whole.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got, wanted)

    def test_the_optimizers_state_is_there_before_fit_goes_on(self, tmp_path):
        model = macer()
        model.compile(SGD(0.1))
        fit(model, *data())
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert int(loaded.optimizer.iterations.numpy()) == 1
        assert np.abs(loaded.optimizer.variables[2].numpy()).max() > 0
        for got, wanted in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got, wanted)

    def test_mixed_float16_keeps_its_loss_scale(self, tmp_path):
        classifier = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3, dtype="mixed_float16")])
        model = macer(classifier, dtype="mixed_float16")
        model.compile(SGD(0.1))
        fit(model, *data())
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
        assert isinstance(loaded.optimizer.inner_optimizer, SGD)
        for got, wanted in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert fit(loaded, *data())["loss"] == fit(model, *data())["loss"]

    def test_the_configuration_is_complete(self):
        options = {"sigma": 0.5, "num_samples": 3, "lam": 1.5, "gamma": 6.0, "beta": 2.0, "seed": 9, "microbatch": 4}
        model = MACERModel(linear(), **options, name="mine")
        config = model.get_config()
        assert {name: config[name] for name in options} == options
        copy = MACERModel.from_config(config)
        assert copy.get_config() | {"classifier": None} == config | {"classifier": None}
        assert copy.classifier.count_params() == model.classifier.count_params() == 51
        assert copy.name == "mine"
        assert copy.classifier is not model.classifier
        images = data()[0]
        np.testing.assert_array_equal(copy.draw_noise(tf.constant(images), 0), model.draw_noise(tf.constant(images), 0))

    def test_weights_alone(self, tmp_path):
        model, other = macer(), macer(linear(seed=1), lam=3.0)
        model.save_weights(tmp_path / "m.weights.h5")
        other.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(other.classifier.get_weights()[0], model.classifier.get_weights()[0])
        assert other.lam == 3.0

    def test_a_classifier_of_ones_own_is_found_by_custom_objects(self, tmp_path):
        class Own(keras.Model):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

            def call(self, images):
                return self.dense(self.flatten(images))

        model = macer(Own())
        model.compile(SGD(0.1))
        fit(model, *data())
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras", custom_objects={"Own": Own})
        for got, wanted in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert fit(loaded, *data())["loss"] == fit(model, *data())["loss"]
        np.testing.assert_array_equal(loaded.predict(data()[0], verbose=0), model.predict(data()[0], verbose=0))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sigma": 0}, r"sigma, the noise level in \[0, 1\] pixel units, must be above 0. Received: sigma=0"),
            ({"sigma": -0.5}, "sigma"),
            ({"sigma": np.nan}, "sigma"),
            ({"sigma": np.inf}, "sigma"),
            ({"gamma": 0}, "gamma must be above 0 and at most 24"),
            ({"gamma": -1}, "gamma"),
            (
                {"gamma": 24.1},
                "gamma must be above 0 and at most 24, the most that float32 can resolve. Received: gamma=24.1",
            ),
            ({"gamma": np.nan}, "gamma"),
            ({"beta": 0}, "beta, the inverse temperature, must be above 0. Received: beta=0"),
            ({"beta": np.inf}, "beta"),
            ({"lam": -1}, "lam must be 0 or above. Received: lam=-1"),
            ({"lam": np.nan}, "lam"),
            ({"lam": 10**400}, "lam must be 0 or above. Received: lam=1000"),
            ({"num_samples": 10**400}, "must be a whole number from 1. Received: num_samples=1000"),
            ({"num_samples": 0}, "must be a whole number from 1. Received: num_samples=0"),
            ({"num_samples": np.inf}, "must be a whole number from 1. Received: num_samples=inf"),
            ({"noise_steps": np.nan}, "must be a whole number from 0. Received: noise_steps=nan"),
            ({"num_samples": 2.5}, "num_samples"),
            ({"seed": -1}, "seed must be a whole number from 0 to 4294967295. Received: seed=-1"),
            ({"seed": 2**32}, "seed"),
            ({"classifier": "lenet"}, "classifier must be a keras.Model. Received: str"),
        ],
    )
    def test_hyper_parameters(self, options, message):
        with pytest.raises(ValueError, match=message) as caught:
            MACERModel(**{"classifier": linear(), "sigma": 0.25, **options})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("lam", [-1.0, np.nan])
    def test_lam_set_later(self, lam):
        model = macer(lam=4.0)
        with pytest.raises(ValueError, match="lam must be 0 or above"):
            model.lam = lam
        assert model.lam == 4.0

    @pytest.mark.parametrize("run_eagerly", [False, True])
    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            ("labels", 3, r"labels must lie in 0..2; the classifier has 3 outputs\.$"),
            ("labels", -1, "labels must lie in 0..2"),
            ("pixels", 1.01, r"pixels must lie in \[0, 1\]; scale the images first\.$"),
            ("pixels", -0.01, "pixels must lie"),
            ("pixels", np.nan, "pixels must lie"),
            ("pixels", np.inf, "pixels must lie"),
        ],
    )
    def test_a_bad_batch_is_one_line_and_changes_nothing(self, place, value, message, run_eagerly):
        images, labels = data()
        if place == "labels":
            labels[5] = value
        else:
            images[5, 1, 2, 0] = value
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE)
        classifier = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.BatchNormalization()(inputs))))
        model = macer(classifier)
        model.compile("sgd", run_eagerly=run_eagerly)
        kept = [weight.numpy() for weight in classifier.trainable_variables]
        for method in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match=message) as caught:
                method(images, labels, verbose=0)
            assert "\n" not in str(caught.value)
        assert np.isfinite(np.concatenate([weight.ravel() for weight in classifier.get_weights()])).all()
        for got, wanted in zip(classifier.trainable_variables, kept, strict=True):
            np.testing.assert_array_equal(got, wanted)

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (data()[0], np.eye(4)[data()[1]], r"as many columns as the classifier has outputs, 3. .*\(None, 4\)"),
            (data()[0], data()[1][:, None, None], r"class indices.* or one-hot rows.* Received: shape=\(None, 1, 1\)"),
            ([data()[0]] * 2, data()[1], "one tensor of images.* Received: 2 tensors"),
            (data()[0], [data()[1]] * 2, "one tensor of images, one of labels.* Received: 2 tensors"),
            ((data()[0] * 255).astype(np.uint8), data()[1], "divide bytes by 255. Received: dtype=uint8"),
            (data()[0], None, "MACERModel needs labels"),
        ],
    )
    def test_what_can_be_told_from_types_and_shapes(self, images, labels, message):
        model = macer()
        model.compile("sgd")
        with pytest.raises(ValueError, match=message) as caught:
            model.fit(images, labels, verbose=0)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            ([layers.Flatten(), layers.Dense(3, activation="softmax", name="last")], r"\(last\) applies softmax"),
            ([layers.Flatten(), layers.Dense(3), layers.Softmax(name="last")], r"\(last\) applies softmax"),
            ([layers.Flatten(), layers.Dense(3), layers.Activation("log_softmax")], "applies log_softmax"),
            ([layers.Flatten(), layers.Dense(3, activation="sigmoid")], "applies sigmoid; remove that activation"),
            ([keras.Sequential([layers.Flatten(), layers.Dense(3, activation="softmax")])], "applies softmax"),
            ([layers.Dense(3)], r"return \[batch, classes\].*Received: output shape \(None, 4, 4, 3\)"),
            ([layers.Flatten(), layers.Dense(1)], r"two classes or more. Received: output shape \(None, 1\)"),
        ],
    )
    def test_a_classifier_that_does_not_return_logits(self, head, message):
        inputs = x = keras.Input(SHAPE)
        for layer in head:
            x = layer(x)
        with pytest.raises(ValueError, match=message) as caught:
            MACERModel(keras.Model(inputs, x), 0.25)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "last",
        [
            keras.ops.softmax,
            keras.activations.softmax,
            lambda x: layers.Activation("linear")(layers.Softmax()(x)),
            lambda x: layers.Dropout(0.1)(keras.ops.cast(keras.ops.softmax(x), "float32")),
            lambda x: (keras.ops.softmax(x) + keras.ops.softmax(2 * x)) / 2,
            lambda x: layers.Lambda(tf.nn.softmax)(x),
        ],
    )
    def test_probabilities_however_they_are_made(self, last):
        inputs = keras.Input(SHAPE)
        logits = layers.Dense(3)(layers.Flatten()(inputs))
        with pytest.raises(ValueError, match=r"must return logits, but its last layer .* applies softmax"):
            MACERModel(keras.Model(inputs, last(logits)), 0.25)
        # Probabilities that are only a part of the logits are none.
        MACERModel(keras.Model(inputs, logits + last(logits)), 0.25)

    def test_probabilities_of_a_subclassed_classifier(self):
        class Softmax(keras.Model):
            def __init__(self):
                super().__init__()
                self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

            def call(self, images):
                return keras.ops.softmax(self.dense(self.flatten(images)))

        model = macer(Softmax())
        model.compile("sgd")
        with pytest.raises(ValueError, match=r"^Bad batch: the classifier returned probabilities instead of logits"):
            fit(model, *data())

    @pytest.mark.parametrize("nested", [keras.Sequential, lambda parts: parts[0], lambda parts: outer(parts[0])])
    def test_a_classifier_that_cuts_pixels_off_to_whole_numbers(self, nested):
        inputs = keras.Input(SHAPE, dtype="uint8")
        classifier = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs))))
        with pytest.raises(
            ValueError, match=r"input is uint8, which truncates pixels.*; make its input float"
        ) as caught:
            MACERModel(nested([classifier]), 0.25)
        assert "\n" not in str(caught.value)
        # Scaled to 0..255 first, it may: that is what its rounding is made for.
        MACERModel(outer(classifier, layers.Rescaling(255.0)), 0.25)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (data()[1] + 0.5, "labels must be whole numbers"),
            (np.full((12, 3), 1 / 3), "rows of one-hot labels must hold one 1"),
            (np.zeros((12, 3)), "rows of one-hot labels must hold one 1"),
            (np.full(12, np.nan), "labels must be whole numbers"),
        ],
    )
    def test_labels_that_name_no_class(self, labels, message):
        model = macer()
        model.compile("sgd")
        with pytest.raises(ValueError, match=message) as caught:
            model.evaluate(data()[0], labels, verbose=0)
        assert "\n" not in str(caught.value)

    def test_a_model_that_already_trains_a_classifier(self):
        inner = macer()
        with pytest.raises(ValueError, match=r"pass that of this MACERModel, its \.classifier\.$"):
            macer(inner)
        macer(inner.classifier)

    def test_a_classifier_that_shows_its_output_only_when_called(self):
        class Rank3(keras.Model):
            def call(self, images):
                return images[..., 0]

        model = macer(Rank3())
        model.compile("sgd")
        with pytest.raises(ValueError, match=r"must return logits \[batch, classes\]"):
            fit(model, *data())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": "sparse_categorical_crossentropy"}, "MACERModel has its own loss; do not pass one"),
            ({"optimizer": None}, r"compile needs an optimizer, such as macer_tf.SGD.*Received: None"),
            ({"jit_compile": True}, "jit_compile=True needs gamma <= 14.*Received: gamma=15"),
        ],
    )
    def test_compile(self, options, message):
        with pytest.raises(ValueError, match=r"does not work with a microbatch, .*Received: microbatch=4"):
            macer(microbatch=4).compile("sgd", jit_compile=True)
        with pytest.raises(ValueError, match=message):
            macer(gamma=15.0).compile(**{"optimizer": "sgd", **options})
        with pytest.raises(ValueError, match=r"gamma <= 14: .*Received: gamma=14.0000001"):
            macer(gamma=14.0000001).compile("sgd", jit_compile=True)
        macer(gamma=14.0).compile("sgd", jit_compile=True)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ([1], [[1.0, 1.0, 1.0]], r"^sample_weight must be one number per image.* Received: shape=\(1, 3\)"),
        ([1], [1.0, 1.0, 1.0], r"^Bad batch: labels, and sample weights if there are any, must be one per image\.$"),
        ([1, 1], None, r"^Bad batch: labels, and sample weights if"),
    ],
)
def test_labels_and_weights_of_more_images_are_not_broadcast(labels, weights, message):
    """Of one image, three weights would be a step three times as long."""
    model = macer()
    model.compile("sgd")
    before = model.classifier.get_weights()
    weights = None if weights is None else np.array(weights)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(data(1)[0], np.array(labels), sample_weight=weights)
    for weight, expected in zip(model.classifier.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x, np.array(["a"] * len(x))),
            r"^Labels must be class indices or one-hot rows\. Received: dtype=<U1",
        ),
        (lambda x, y: (x, y.astype(object)), r"^Labels must be class indices or one-hot rows\. Received: dtype=object"),
        (lambda x, y: (x, ["a"] * len(x)), r"^Labels must be class indices or one-hot rows\. Received: dtype=<U1"),
        (lambda x, y: (x[:0], y[:0]), r"^Expected one or more images\. Received: images \(0, "),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(change, message):
    model = macer()
    model.compile("sgd")
    with pytest.raises(ValueError, match=message):
        model.fit(*change(*data()), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(*data(), validation_data=change(*data()), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(*change(*data()), verbose=0)


def test_loading_needs_no_custom_objects_but_the_import():
    registered = keras.saving.get_registered_object("macer_tf>MACERModel")
    assert registered is macer_tf.model.MACERModel


def test_the_training_step_is_traced_once():
    traces = []

    class Counting(MACERModel):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    model = Counting(networks.small_cnn(), sigma=0.25, num_samples=2, seed=0)
    model.compile(SGD(0.01))
    images, labels = np.zeros((8, 8, 8, 1), np.float32), np.arange(8)
    model.fit(images, labels, batch_size=4, epochs=2, verbose=0)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("losses", "reports", "twice"),
    [(("loss",), (), "loss"), (("a",), ("smoothed_accuracy",), "smoothed_accuracy"), (("a", "b"), ("a",), "a")],
)
def test_terms_whose_names_would_hide_other_figures_are_refused(losses, reports, twice):
    """A term called loss was reported in place of the total, which has the regularisation too."""
    own = type("Own", (NoisyTrainingModel,), {"LOSSES": losses, "REPORTS": reports})
    with pytest.raises(ValueError, match=rf"Own's LOSSES and REPORTS must all be different, .* Received: {twice}$"):
        own(networks.small_cnn(), sigma=0.25, num_samples=1, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOSSES": ("a_loss")}, r"Own's LOSSES must be a tuple of names, such as \('my_loss',\). Received: 'a_loss'$"),
        ({"LOSSES": ("a",), "REPORTS": "b"}, "Own's REPORTS must be a tuple of names, .* Received: 'b'$"),
        ({"LOSSES": ("a",), "HIGHER_IS_BETTER": None}, "HIGHER_IS_BETTER must be a tuple of names, .* Received: None$"),
        ({"LOSSES": (1,)}, r"Own's LOSSES must be a tuple of names, .* Received: \(1,\)$"),
        ({}, r"Own's LOSSES must name one loss or more. Received: \(\)$"),
    ],
)
def test_names_of_terms_that_are_none_are_refused(changes, message):
    """Without the comma, ("a_loss") is a text, which was taken for the names a, _, l, o, s and s."""
    with pytest.raises(ValueError, match=message):
        type("Own", (NoisyTrainingModel,), changes)(networks.small_cnn(), sigma=0.25, num_samples=1, seed=0)


ONE = (tf.ones([8]), tf.ones([8, 1]), tf.ones([]))
# Of a size that is only known when the step runs.
ANY = (tf.Variable(tf.ones([8]), shape=[None]), tf.Variable(tf.ones([8, 3]), shape=[None, 3]))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (LossTerms({"a": ONE[1]}, {}, tf.ones([8, 3])), r"return a of shape \[batch\]. Received: \(8, 1\)$"),
        (LossTerms({"a": ONE[2]}, {}, tf.ones([8, 3])), r"return a of shape \[batch\]. Received: \(\)$"),
        (
            LossTerms({"a": ONE[0]}, {}, tf.ones([8, 1, 3])),
            r"probabilities of shape \[batch, classes\]. Received: \(8, 1",
        ),
        (LossTerms({"b": ONE[0]}, {}, tf.ones([8, 3])), "return the losses that LOSSES names: a. Received: b$"),
        (LossTerms({"a": ONE[0]}, {"b": ONE[0]}, tf.ones([8, 3])), "reports that REPORTS names: none. Received: b$"),
        ({"a": ONE[0]}, "Own.loss_terms must return LossTerms. Received: dict$"),
        (LossTerms([("a", ONE[0])], {}, tf.ones([8, 3])), "must return its losses as a dict. Received: list$"),
        (LossTerms({"a": ONE[0]}, None, tf.ones([8, 3])), "must return its reports as a dict. Received: NoneType$"),
        (LossTerms({"a": None}, {}, tf.ones([8, 3])), r"return a of shape \[batch\]. Received: NoneType$"),
        (LossTerms({"a": tf.cast(ANY[0], "float64")}, {}, ANY[1]), "return a as float32. Received: float64$"),
        (LossTerms({"a": ONE[0][:1]}, {}, ANY[1]), r"each image, and no others. Received: a of shape \(1,\) for im"),
        (LossTerms({"a": ANY[0]}, {}, tf.ones([1, 3])), r"others. Received: probabilities of shape \(1, 3\) for ima"),
        (
            LossTerms({"a": tf.Variable([1.0], shape=[None])}, {}, ANY[1]),
            "Own.loss_terms must return a value for each image, and no others.$",
        ),
    ],
)
def test_loss_terms_of_another_form_are_refused(returned, message):
    """The first of them would be trained on, at eight times the learning rate."""

    class Own(NoisyTrainingModel):
        LOSSES = ("a",)

        def loss_terms(self, images, labels, noise, training):
            return returned

    model = Own(networks.small_cnn(), sigma=0.25, num_samples=1, seed=0)
    model.compile("sgd")
    with pytest.raises(ValueError, match=message) as caught:
        model.test_on_batch(np.zeros((8, 8, 8, 1)), np.zeros(8))
    assert "\n" not in str(caught.value)
