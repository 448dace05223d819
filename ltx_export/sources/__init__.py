"""Where weights come from: a path that the user gives, or the Hugging Face hub."""
