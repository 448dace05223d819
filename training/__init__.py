"""The world of drawn clips that the demo version learns from."""
