"""Configuration, environment, errors, log, machine, memory, native module. Floor 0: it imports nothing of everface."""
