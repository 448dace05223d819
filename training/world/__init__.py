"""The drawn world: scenes, how they are painted, and what is said of them."""
