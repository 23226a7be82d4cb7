# One image for every room: compose starts `python -m streams`, `python -m trainers` and `python -m serving` from it.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
WORKDIR /app
RUN apt-get update && apt-get install --yes --no-install-recommends make curl && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml requirements.lock Makefile README.md LICENSE ./
COPY streams streams
COPY index index
COPY serving serving
COPY trainers trainers
COPY queryloop queryloop
RUN make .venv/.filled && useradd --create-home queryloop && mkdir /data && chown queryloop /data
USER queryloop
ENV PATH=/app/.venv/bin:$PATH QUERYLOOP_DATA_DIR=/data
