"""How a system under test makes its clips."""
