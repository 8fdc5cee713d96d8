"""What families on Wan's backbone share."""
