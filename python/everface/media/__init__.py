"""Floor 3: files and streams in and out. Pictures through Pillow, sound and video through PyAV."""
