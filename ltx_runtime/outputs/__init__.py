"""What a run leaves on disk: where its files go, how a video says what it is, and what a killed run goes on from."""
