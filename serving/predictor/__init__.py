"""The CTR predictor as it is run: network, text, calibration, scorer."""
