"""Models in other people's formats, and what goes with them: terms of the data, a model card."""
