"""How good are predicted findings? Functions of NumPy arrays in float64; docs/scores.md."""
