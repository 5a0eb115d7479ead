"""What is known of cold pages, and of past queries, without reading a key (SPEC 3)."""
