"""What is in a prepared data set: text and a picture."""
