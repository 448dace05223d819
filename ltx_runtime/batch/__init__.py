"""Many videos at once: a file of prompts becomes tasks, and every task an outcome in a file of results."""
