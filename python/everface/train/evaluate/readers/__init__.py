"""What reads the truth of drawn characters from pixels: the mouth, the eyes, the pose."""
