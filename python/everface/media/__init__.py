"""Files in and out: images through Pillow, audio and video through PyAV."""
