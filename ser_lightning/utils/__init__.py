"""Helpers below everything else: whole files or none, random seeds, sums over ranks."""
