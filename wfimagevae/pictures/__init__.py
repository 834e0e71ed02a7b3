"""From pixels to files: image writers, grids, contact sheets, maps, frames and animations."""
