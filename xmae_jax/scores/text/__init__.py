"""Scores of generated text against references, each with a signature; docs/report_scores.md."""
