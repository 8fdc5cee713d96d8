"""DreamZero put beside reference numbers, and its exports beside what they were written from."""
