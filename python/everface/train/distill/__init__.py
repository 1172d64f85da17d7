"""Stage 2: self-forcing distribution matching distillation. The student learns on its own rollouts, against teacher and fake score."""
