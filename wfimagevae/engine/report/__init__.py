"""What a person sees of a run: progress lines, metrics, plots, pages, trackers, GPU figures."""
