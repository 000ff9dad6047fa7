"""Using a trained file: predictions, masks, export."""
