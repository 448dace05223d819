"""Many machines, joined by Ray: its nodes make the tasks of a batch, and this process stores the videos."""
