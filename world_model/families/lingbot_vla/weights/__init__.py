"""Names of LingBot-VLA's weights elsewhere, and how they are read and written."""
