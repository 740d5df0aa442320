"""What turns a model's features into the outputs that an objective names."""
