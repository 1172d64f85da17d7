"""Floor 3: official checkpoints in. Names and layouts, strict streaming loads, `.pth` conversion, LoRA merge, fp8, pull."""
