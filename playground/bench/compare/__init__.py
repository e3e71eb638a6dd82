"""Runs the same prompts under two to four configurations of the engine and keeps what differs: text, times, memory."""
