# The training image: docker build -t REGISTRY/wamax:TAG . && docker push REGISTRY/wamax:TAG
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /wamax
COPY . .
# What was tested, then the TPU runtime that belongs to that jax.
RUN pip install --no-cache-dir --no-deps -r requirements.lock \
 && pip install --no-cache-dir --no-deps --no-build-isolation -e . \
 && pip install --no-cache-dir libtpu==0.0.42.1
