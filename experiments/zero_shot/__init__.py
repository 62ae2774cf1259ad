"""Zero-shot evaluation of several models on data in the layouts that the field uses; see README.md."""
