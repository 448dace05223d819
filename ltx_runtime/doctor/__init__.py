"""The doctor: examines a machine and its version folders, and advises what to install or build next."""
