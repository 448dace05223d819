"""What is asked for, checked against a version, and what runs it; nothing is loaded here."""
