"""Other libraries and their models, one file each."""
