"""The glimpse model: settings, data, what is trained, how it is scored."""
