"""The two-stage distillation, and the data, the judge and the drawn characters of the default model."""
