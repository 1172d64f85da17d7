"""Floor 0: nouns, configuration, environment, log, errors. Imports nothing of everface."""
