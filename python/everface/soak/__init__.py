"""A session for hours: whether memory, descriptors, the order of events and the distance of audio and video stay as they were."""
