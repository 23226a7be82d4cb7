"""How a CTR predictor is made: examples from the lake, training, calibration, metrics."""
