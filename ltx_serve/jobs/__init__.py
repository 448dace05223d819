"""The jobs of a server: what each asks for and how far it is, the queue that outlives a crash, and their folders."""
