"""Loads a SavedModel as a model server does and runs it: python -m serving.validate SAVED_MODEL IMAGES.npy

No Keras and no code of the model: a graph and its variables, by the loader of `saved_model_cli`. Prints one JSON
object: the outputs, name -> list.
"""

import json
import os
import sys

import numpy as np


def run(saved_model, images):
    """The outputs of `serving_default` on images, name -> array.

    Raises:
        ValueError: if the model answers where it must refuse (NaN or pixels outside [0, 1]), or an output has not
            one value an image.
    """
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved_model)
        signature = meta_graph.signature_def["serving_default"]
        fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
        feed = signature.inputs["images"].name
        outputs = session.run(fetches, {feed: images})
        for name, values in outputs.items():
            if len(values) != len(images):
                raise ValueError(f"Output {name} has {len(values)} values for {len(images)} images.")
        for bad in (np.nan, 2.0):
            try:
                session.run(fetches, {feed: np.full_like(images[:1], bad)})
            except tf.errors.InvalidArgumentError:
                continue
            raise ValueError(f"The model certified an image of pixels {bad}.")
    return outputs


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    outputs = run(sys.argv[1], np.load(sys.argv[2]))
    print(json.dumps({name: values.tolist() for name, values in outputs.items()}))
