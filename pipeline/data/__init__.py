"""Data sets, folders and archives of images, and the examples that a job keeps."""
