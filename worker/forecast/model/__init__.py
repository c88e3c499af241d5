"""The forecaster built on ring attention: model, pinball loss, scores, checkpoints."""
