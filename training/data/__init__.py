"""Data sets: the type, one reader each, and a catalogue that knows them all."""
