"""Captions of images, and filters by what they and their records say."""
