"""Sources of weights: a path that the user gives, or the Hugging Face hub."""
