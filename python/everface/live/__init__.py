"""Live sessions: audio in at any rate, paced video and the caller's own audio out. Every server and adapter stands on `LiveSession`."""
