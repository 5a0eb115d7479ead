"""What a forward pass must keep to, and how a broken promise is noticed."""
