"""Speed and accuracy of exported networks."""
