"""Objectives: modules that own a network and turn a batch into a loss."""
