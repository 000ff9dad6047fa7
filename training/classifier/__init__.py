"""Classifiers of whole images: settings, recipes, data, what is trained."""
