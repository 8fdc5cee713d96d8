"""Names of LingBot-VA's weights elsewhere, and how they are read and written."""
