"""The shipped questions of `oblique-clip ablate --preset`, a file each; see `oblique_clip.sweep.question`."""
