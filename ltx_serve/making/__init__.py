"""The making of videos: workers that stay warm, the crew that gives them the jobs of the queue, and what it tells."""
