"""What a picture records about how it was made, and the files that carry it."""
