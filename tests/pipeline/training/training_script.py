"""Runs the Trainer in a process of its own: python training_script.py EXAMPLES RUNS [DEVICES]

RUNS is JSON, a list of [root, settings, steps after which it is interrupted or null]. A backup is written after each
step. With DEVICES, there are so many logical CPU devices, and noise is a function of the image, and so the same on
whichever of them the image lands.
"""

import contextlib
import json
import math
import sys
from pathlib import Path

import tensorflow as tf

from macer_tf.model import MACERModel
from pipeline.components import trainer
from pipeline.orchestration.artifacts import Artifact
from pipeline.orchestration.orchestrator import Execution
from pipeline.training import backups, watchdogs


def noise_of_the_image(self, images, start, training=True):
    copies = tf.cast(tf.range(1, self.num_samples + 1), tf.float32)[None, :, None, None, None]
    return self.sigma * tf.sin(100.0 * copies * (images[:, None] + 0.1))


class Interrupt(watchdogs.StopOnDivergence):
    after = None

    def on_train_batch_end(self, batch, logs=None):
        if self._record.done == self.after:
            raise KeyboardInterrupt


def main(examples, runs, devices=None):
    if devices:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * int(devices)
        )
        MACERModel.draw_noise = noise_of_the_image
    backups._SECONDS_BETWEEN_BACKUPS, backups._SHARE_OF_TIME = 0, math.inf
    watchdogs.StopOnDivergence = Interrupt
    inputs = {"examples": Artifact(Path(examples), "")}
    for root, settings, Interrupt.after in json.loads(runs):
        root = Path(root)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train(Execution(inputs, {"model": root / "model"}, settings, root, root / "scratch", 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
