"""What a run leaves: its folder, metrics, event files, state, progress."""
