"""What is known of a teacher: captured, stored, read."""
