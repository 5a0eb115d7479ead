"""What runs on the device, in Triton's language. Arguments have no types but Triton's own: pointers and numbers."""
