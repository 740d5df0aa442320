"""Evaluators: rows of predictions to numbers; each has one method, `evaluate`."""
