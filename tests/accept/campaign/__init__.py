"""The fault campaign: kills, flipped bits and malformed input, many of each, drawn by a seed."""
