"""Floor 4: where the model's steps meet the runtime's stages. The live session and the offline renderer."""
