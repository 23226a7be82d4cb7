# Two images: EXTRA=cpu for streams and serving, EXTRA=gpu, with FAISS for GPU, for the trainers. Neither runs as root.
# Compose starts `python -m streams`, `python -m serving` and `python -m trainers` from them.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 PIP_ROOT_USER_ACTION=ignore QUERYLOOP_DATA_DIR=/data
WORKDIR /app
RUN apt-get update && apt-get install --yes --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
# The same number in both images, since they share /data. USER below names the number, so that Kubernetes' runAsNonRoot can check it.
RUN groupadd --gid 1000 queryloop && useradd --uid 1000 --gid 1000 --create-home queryloop \
    && install --directory --owner=1000 --group=1000 /data
ARG EXTRA=cpu
COPY requirements-${EXTRA}.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements-${EXTRA}.lock
COPY pyproject.toml README.md LICENSE ./
COPY streams streams
COPY index index
COPY serving serving
COPY trainers trainers
COPY queryloop queryloop
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER 1000:1000
