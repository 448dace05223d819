"""Files that a run leaves: their names and places, the record in a video, and the state from which a run goes on."""
