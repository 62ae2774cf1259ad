"""The comparison of forms at the sizes of the literature, on a machine with GPUs; see README.md."""
