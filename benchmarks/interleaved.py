"""Fair timing on a machine that others use too: contestants take turns, and disturbed rounds are dropped."""

import os
import statistics
import time

MATRIX_SIDE = 2048
# Of the processor time that a contestant's cores could have given it; less means that others had them.
LOWEST_SHARE = 0.8


def use_cores(threads):
    """Keeps this process, and the thread pools that it makes from here on, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Rounds:
    """Wall-clock seconds of each contestant in each round that was not disturbed.

    Args:
        contestants: name -> callable without arguments.
        count: rounds to run.
        threads: cores that the contestants have.
        settling: names whose processor time is not looked at: those that do not keep every core busy.

    Raises:
        SystemExit: if no round had its cores.
    """

    def __init__(self, contestants, count, threads, settling=()):
        self.kept, self.count = [], count
        for _ in range(count):
            seconds, shares = {}, {}
            for name, run in contestants.items():
                started, cpu = time.perf_counter(), time.process_time()
                run()
                seconds[name] = time.perf_counter() - started
                shares[name] = (time.process_time() - cpu) / seconds[name] / threads
            if all(share >= LOWEST_SHARE for name, share in shares.items() if name not in settling):
                self.kept.append(seconds)
        if not self.kept:
            raise SystemExit(f"In none of {count} rounds were {threads} cores free; run this on a calm machine.")

    def median(self, name):
        """Median seconds of a contestant."""
        return statistics.median(seconds[name] for seconds in self.kept)

    def ratio(self, name, other):
        """Median over the rounds of how many times as long `name` takes as `other`."""
        return statistics.median(seconds[name] / seconds[other] for seconds in self.kept)

    def __str__(self):
        return f"medians of {len(self.kept)} rounds ({self.count - len(self.kept)} dropped)"


def matrix_product(dtype):
    """One large matrix product in "float32" or "bfloat16": what the cores can do at most. Its FLOPs: MATRIX_FLOPS."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal([MATRIX_SIDE, MATRIX_SIDE]), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))

    def run():
        product().numpy()

    run()
    return run


MATRIX_FLOPS = 2 * MATRIX_SIDE**3


def training_steps(model, batches, steps):
    """`steps` training steps of a compiled Keras model on the next batches of a dataset, as `fit` runs them."""
    iterator = iter(batches)
    model.make_train_function()

    def run():
        for _ in range(steps):
            logs = model.train_function(iterator)
        float(logs["loss"])

    run()
    return run


def constant_batches(shape, batch, num_classes=10):
    """A dataset that returns the same random images [batch, *shape] in [0, 1] and labels for ever."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, *shape), np.float32), rng.integers(0, num_classes, batch)
    return tf.data.Dataset.from_tensors((images, labels)).repeat()
