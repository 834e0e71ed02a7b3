"""Data that needs no photographs: drawn shapes, points in the plane, CIFAR-10."""
