"""`WS /v1/avatar/stream`: one connection, one live session."""
