"""everface: a real-time runtime for Live Avatar. Sound goes in, a talking face comes out, for ever."""

__version__ = "0.1.0"
