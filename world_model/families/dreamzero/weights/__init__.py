"""Names of DreamZero's weights elsewhere, and how they are read and written."""
