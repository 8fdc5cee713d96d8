"""Model families: each is embedders and heads, a visibility table, a noise schedule and a layout."""
