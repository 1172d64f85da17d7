"""From the packets of an audio file to samples whose time is right."""
