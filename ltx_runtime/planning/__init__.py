"""The request for a video, checked against a version, and the choice of backends to run it; nothing is loaded here."""
