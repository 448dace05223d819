"""What a machine and its version folders have and lack, and what to install or build next."""
