"""GenBench: an open benchmark of audio-driven talking faces.

`manifest` and `build` describe and make a set; `clips` lets a system under test make its clips; `metrics` has one file a
metric; `scoring`, `report`, `page` and `comparison` turn clips into figures; `profiles` compares accelerated ones with the exact one. See docs/genbench.md.
"""
