"""Audio features, and the encoder that makes audio tokens of them."""
