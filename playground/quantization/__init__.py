"""Weights stored in few bits: what a quantized matrix is, how one is made, read from files and multiplied with."""
