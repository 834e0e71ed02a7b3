"""Measuring images: metrics of pairs and of sets, their evaluation, and what it reports."""
