"""A run's folder: what lies in it, how it is written and read back."""
