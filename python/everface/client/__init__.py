"""libeverface from Python: the client that C and C++ programs use, with the interface of a live session."""
