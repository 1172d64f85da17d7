"""The engine process: live sessions for programs that hold no Python, over a Unix socket and shared memory. See docs/engine.md."""
