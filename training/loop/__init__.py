"""Step, epoch, run and checkpoint, whatever is trained."""
