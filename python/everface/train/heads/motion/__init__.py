"""How a rendered person moves: phonemes and their mouth shapes, blinks, gaze, nods, emotion."""
