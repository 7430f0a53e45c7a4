"""The TFX-style pipeline: examples, training, certification on Beam, evaluation, validation, push."""
