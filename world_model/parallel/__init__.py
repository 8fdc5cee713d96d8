"""Where arrays live on a mesh, and what the backward pass keeps."""
