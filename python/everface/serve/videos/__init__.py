"""`/v1/videos`: videos that are rendered one after the other."""
